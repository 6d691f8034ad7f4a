"""Short English stories whose entropy is known exactly.

A story is a walk through a small world: a few flags (who holds the thing, who is hungry, where
everybody is) decide which events can come next, one of them is drawn, its open words are drawn,
and the flags change. Every draw has an explicit probability, and no two walks spell the same
text, so the information in a story is simply the sum over its draws of -log2 p. A model trained
on these stories can therefore be told how far from perfect it is.

The same table does both directions. `story` walks by drawing from each distribution, `judge`
walks by looking up in the same distributions what the text says; neither knows an event the
other does not.

    python -m corpora.stories           three stories and the figures of the language
"""

from __future__ import annotations

import argparse
import re
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache, reduce
from itertools import accumulate
from math import log2
from operator import or_
from random import Random

from corpora.story_events import EVENTS, FACTS, GROUPS, TOPICS
from corpora.story_words import BOYS, GIRLS, NUMBERS, plural, with_article, word_classes

PEOPLE = ("hero", "friend")
LOOSE = ("friend", "thing", "pet", "told")  # flags that stand in no group
PRONOUN_SHARE = 1 / 8  # how often the one who acts is called he or she
LEAD_SHARE = 0.3  # how often a sentence that may begin with "then" or the like does
LEADS = ("after that, ", "before long, ", "just then, ", "next, ", "soon ", "then ")

# A paragraph grows older with every event after the opening that leaves no trouble behind. CLOSE is
# the chance that the first and that any later paragraph closes at each age, the last one also at any
# later age, and ANOTHER that one more follows before the end.
CLOSE = ((0.05, 0.25, 0.65, 0.75), (0.1, 0.65, 0.8))
ANOTHER = (0.25, 0.1)
FRESH = ("turn", "ending")  # the topics that begin a new paragraph
LONGEST = 4000  # characters; beyond any story, so a judge need not read on


@dataclass(frozen=True)
class Story:
    """A story and its information: `bits` is -log2 of the probability of exactly this text."""

    text: str
    bits: float


@dataclass(frozen=True)
class Verdict:
    """What `judge` found. `bits` is there exactly when the text is a story that can be told."""

    grammatical: bool
    consistent: bool
    bits: float | None
    reason: str


# -------------------------------------------------------------------- distributions over phrases


class Spread:
    """A distribution over phrases: one to draw from, and the cost in bits of each."""

    __slots__ = ("bits", "edges", "phrases")

    def __init__(self, phrases: tuple[str, ...], weights: tuple[float, ...] | None = None):
        self.phrases = phrases
        self.edges = tuple(accumulate(weights)) if weights else None
        total = self.edges[-1] if self.edges else len(phrases)
        self.bits = {
            phrase: log2(total / weight)
            for phrase, weight in zip(phrases, weights or (1,) * len(phrases), strict=True)
        }

    def draw(self, random: float) -> str:
        if self.edges is None:
            return self.phrases[int(random * len(self.phrases))]
        return self.phrases[bisect(self.edges, random * self.edges[-1])]


@cache
def _certain(phrase: str) -> Spread:
    return Spread((phrase,))


@cache
def _classes() -> dict[str, tuple[str, ...]]:
    names = GIRLS + BOYS
    return {**word_classes(), "name": names, "kid": names}


@cache
def _forms(slot: str) -> dict[str, str]:
    """The phrases a slot can spell, each with the word it stands for."""
    form, _, name = slot.rpartition(" ")
    words = _classes()[name]
    if name == "kid":
        return {f"{_gendered('girl', word)} named {word}": word for word in words}
    shape = {"": str, "a": with_article, "many": plural}[form]
    return {shape(word): word for word in words}


# A word that agrees with a person: of a girl, of a boy.
GENDERED = {
    "he": ("she", "he"),
    "his": ("her", "his"),
    "him": ("her", "him"),
    "girl": ("girl", "boy"),
    "daughter": ("daughter", "son"),
}


def _gendered(word: str, name: str) -> str:
    return GENDERED[word][name in BOYS]


# -------------------------------------------------------------------- the pieces of a sentence


@dataclass(slots=True)
class World:
    """All that a story has to remember."""

    flags: int
    roles: dict[str, str] = field(default_factory=dict)
    age: int = 0  # events since the paragraph began
    part: int = 0  # paragraphs before this one


class Words:
    """Words that always stand there."""

    def __init__(self, text: str):
        self.certain = _certain(text)

    def spread(self, world: World) -> Spread:
        return self.certain


class Draw:
    """A word from a class, remembered under a role if one is named."""

    def __init__(self, slot: str, role: str | None):
        self.role = role
        self.words = _forms(slot)
        self.all = Spread(tuple(self.words))
        self.others: dict[bool, Spread] = {}

    def spread(self, world: World) -> Spread:
        if self.role != "friend":
            return self.all
        return self._other(world.roles["hero"] in BOYS)

    def _other(self, boy: bool) -> Spread:
        """A boy's friend is a girl and a girl's a boy, so that he and she are never in doubt."""
        if boy not in self.others:
            others = GIRLS if boy else BOYS
            self.others[boy] = Spread(
                tuple(phrase for phrase, word in self.words.items() if word in others)
            )
        return self.others[boy]


class Recall:
    """The word remembered under a role."""

    def __init__(self, role: str, form: str):
        self.role = role
        self.shape = plural if form == "many" else str

    def spread(self, world: World) -> Spread:
        return _certain(self.shape(world.roles[self.role]))


class Gendered:
    """A pronoun or noun that agrees with a person."""

    def __init__(self, person: str, word: str):
        self.person = person
        self.word = word

    def spread(self, world: World) -> Spread:
        return _certain(_gendered(self.word, world.roles[self.person]))


class Subject:
    """A person by name, or as he or she."""

    def __init__(self, person: str):
        self.person = person

    def spread(self, world: World) -> Spread:
        return _name_or_pronoun(world.roles[self.person])


@cache
def _name_or_pronoun(name: str) -> Spread:
    return Spread((_gendered("he", name), name), (PRONOUN_SHARE, 1 - PRONOUN_SHARE))


class Sum:
    """The number that n and m make together, or that is left of n without m."""

    def __init__(self, sign: int):
        self.sign = sign

    def spread(self, world: World) -> Spread:
        n, m = (NUMBERS.index(world.roles[role]) for role in ("n", "m"))
        return _certain(NUMBERS[n + self.sign * m])


class Lead:
    """A word that leads in, or none."""

    leads = Spread(("", *LEADS), (1 - LEAD_SHARE, *(LEAD_SHARE / len(LEADS) for _ in LEADS)))

    def spread(self, world: World) -> Spread:
        return self.leads


# -------------------------------------------------------------------- flags


@cache
def _groups() -> dict[str, int]:
    """Each group by name, and each flag, as the bits it owns."""
    names = {}
    for group, members in GROUPS.items():
        names[group] = [flag for member in members.split() for flag in _each(member)]
    bits = {}
    for flag in [*(flag for flags in names.values() for flag in flags), *LOOSE]:
        bits[flag] = 1 << len(bits)
    for group, flags in names.items():
        bits[group] = reduce(or_, (bits[flag] for flag in flags))
    return bits


def _each(flag: str) -> list[str]:
    """x.hungry stands for hero.hungry and friend.hungry."""
    return [f"{p}.{flag[2:]}" for p in PEOPLE] if flag.startswith("x.") else [flag]


def _flag(name: str) -> int:
    return _groups()[name]


def _any(names: Iterable[str]) -> int:
    return reduce(or_, map(_flag, names), 0)


@cache
def _mates(name: str) -> int:
    """The flags that go down when this one goes up."""
    for group in GROUPS:
        if _flag(group) & _flag(name):
            return _flag(group)
    return _flag(name)


# -------------------------------------------------------------------- events


class Casting:
    """An event with its people cast: what it needs, says and does in one world."""

    def __init__(self, event: Event, cast: dict[str, str], needs: str, then: str):
        self.event = event
        self.cast = cast
        self.needs = [self._named(need) for need in needs.split()]
        self.any_of = tuple(_any(need.split("|")) for need in self.needs if need[0] != "-")
        self.none_of = _any(need[1:] for need in self.needs if need[0] == "-")
        self.tokens = tuple(self._token(piece) for piece in event.pieces)
        self.keep, self.set = -1, 0
        for change in then.split():
            self._then(self._named(change))

    def _named(self, text: str) -> str:
        for role, person in self.cast.items():
            text = re.sub(rf"\b{role}\.", f"{person}.", text)
        return text

    def _then(self, change: str) -> None:
        down = change.startswith("-")
        bits = _flag(change.lstrip("-"))
        cleared = bits if down else _mates(change)
        self.keep &= ~cleared
        self.set = self.set & ~cleared | (0 if down else bits)

    def _token(self, piece: str):
        if not piece.startswith("{"):
            return Words(piece)
        slot = piece[1:-1]
        if slot == "lead":
            return Lead()
        if slot in {"n+m", "n-m"}:
            return Sum(1 if "+" in slot else -1)
        body, _, role = slot.partition(">")
        if role:
            return Draw(body, role)
        person, _, word = body.rstrip("!").partition(".")
        person = self.cast.get(person, person)
        if person in PEOPLE:
            if word:
                return Gendered(person, word)
            return Subject(person) if body == "x" else Recall(person, "")
        form, _, name = body.rpartition(" ")
        return Draw(body, None) if name in _classes() else Recall(name, form)

    def possible(self, flags: int) -> bool:
        return not flags & self.none_of and all(flags & some for some in self.any_of)

    def happen(self, world: World) -> None:
        """Change the world as the event does."""
        world.flags = world.flags & self.keep | self.set
        if self.event.topic == "turn":
            world.age, world.part = 0, world.part + 1
        elif self.event.topic != "opening" and world.flags & _OPEN and not world.flags & _TROUBLE:
            world.age += 1


class Event:
    """One row of the table, in every casting it allows."""

    def __init__(self, topic: str, needs: str, sentence: str, then: str):
        _, topic_needs, topic_then = TOPICS[topic]
        needs, then = f"{topic_needs} {needs}", f"{topic_then} {then}"
        self.topic = topic
        self.sentence = sentence
        self.pieces = [piece for piece in re.split(r"(\{[^}]*\})", sentence) if piece]
        self.castings = [
            Casting(self, cast, f"{needs} {extra}", then)
            for cast, extra in self._casts(f"{needs} {then} {sentence}")
        ]

    @staticmethod
    def _casts(row: str) -> list[tuple[dict[str, str], str]]:
        """Who can play x and y, and what that needs."""
        both = {"x": "hero", "y": "friend"}, {"x": "friend", "y": "hero"}
        if re.search(r"\{y", row):
            return [(cast, "friend") for cast in both]
        if re.search(r"\{x", row):
            return [(both[0], ""), (both[1], "friend")]
        return [({}, "")]


@cache
def _events() -> dict[str, list[Event]]:
    return {topic: [Event(topic, *row) for row in rows] for topic, rows in EVENTS.items()}


_OPEN = _flag("open")
_TROUBLE = _flag("trouble")
_DONE = _flag("done")


@cache
def _relevant(topic: str) -> int:
    """The flags the events of a topic ask about."""
    castings = [casting for event in _events()[topic] for casting in event.castings]
    asked = 0
    for casting in castings:
        asked |= casting.none_of
        for some in casting.any_of:
            asked |= some
    return asked


@cache
def _possible(topic: str, flags: int) -> tuple[Casting, ...]:
    """What can happen next within a topic; every possible casting is equally likely."""
    castings = (casting for event in _events()[topic] for casting in event.castings)
    return tuple(casting for casting in castings if casting.possible(flags))


@dataclass(frozen=True, slots=True)
class Menu:
    """What can happen next: the topics, each with its castings and the cost in bits of any one."""

    edges: tuple[float, ...]  # where each topic ends on the way from 0 to 1
    topics: tuple[tuple[tuple[Casting, ...], float], ...]


@lru_cache(maxsize=1 << 16)
def _menu(flags: int, age: int, part: int) -> Menu:
    """The menu of a state: first a topic by its share, then evenly within the topic."""
    possible = {topic: _possible(topic, flags & _relevant(topic)) for topic in TOPICS}
    weights = {topic: TOPICS[topic][0] for topic, castings in possible.items() if castings}
    shares = {t: share for t, share in _shares(weights, age, part).items() if share > 0}
    return Menu(
        tuple(accumulate(shares.values())),
        tuple((possible[t], log2(len(possible[t]) / share)) for t, share in shares.items()),
    )


def _shares(weights: dict[str, float], age: int, part: int) -> dict[str, float]:
    """The weights as probabilities, once the paragraph's chance to close is set aside."""
    may_close = "ending" in weights
    part = min(part, len(CLOSE) - 1)
    close = CLOSE[part][min(age, len(CLOSE[part]) - 1)] if may_close else 0.0
    free = {topic: weight for topic, weight in weights.items() if topic not in FRESH}
    total = sum(free.values())
    shares = {topic: (1 - close) * weight / total for topic, weight in free.items()}
    if may_close:
        shares |= {"turn": close * ANOTHER[part], "ending": close * (1 - ANOTHER[part])}
    return shares


def _menu_of(world: World) -> Menu:
    return _menu(world.flags, world.age, world.part)


# -------------------------------------------------------------------- telling


def story(seed: int, index: int) -> Story:
    """Story number `index` of the endless series `seed`; the same on every machine."""
    random = Random(f"story {seed} {index}").random
    world = _beginning()
    text, bits = [], 0.0
    while not world.flags & _DONE:
        casting, cost = _pick(_menu_of(world), random)
        bits += cost
        if text:
            text.append("\n\n" if casting.event.topic in FRESH else " ")
        sentence, cost = _say(casting, world, random)
        text.append(sentence)
        bits += cost
    return Story("".join(text), bits)


def stories(count: int, seed: int = 0, start: int = 0) -> Iterator[Story]:
    """`count` stories of the series `seed`, from number `start` on."""
    for index in range(start, start + count):
        yield story(seed, index)


def _beginning() -> World:
    return World(_flag("start"))


def _pick(menu: Menu, random) -> tuple[Casting, float]:
    """One casting, and what it costs in bits."""
    last = len(menu.topics) - 1
    castings, cost = menu.topics[min(bisect(menu.edges, random()), last)]  # 1.0 may round down
    return castings[int(random() * len(castings))], cost


def _say(casting: Casting, world: World, random) -> tuple[str, float]:
    """The sentence of an event, its open words drawn, and what the draws cost in bits."""
    phrases, bits = [], 0.0
    for token in casting.tokens:
        spread = token.spread(world)
        if len(spread.phrases) == 1:
            phrases.append(spread.phrases[0])
            continue
        phrase = spread.draw(random())
        phrases.append(phrase)
        bits += spread.bits[phrase]
        if type(token) is Draw and token.role:
            world.roles[token.role] = token.words[phrase]
    casting.happen(world)
    sentence = "".join(phrases)
    return sentence[0].upper() + sentence[1:], bits


# -------------------------------------------------------------------- reading


@dataclass(slots=True)
class Node:
    """A place in the tree of all sentences: what may be read next, and what ends here."""

    words: dict[str, Node] = field(default_factory=dict)
    slots: dict[str, Node] = field(default_factory=dict)
    event: Event | None = None


@cache
def _tree() -> Node:
    root = Node()
    for events in _events().values():
        for event in events:
            node = root
            for piece in event.pieces:
                branches = node.slots if piece.startswith("{") else node.words
                node = branches.setdefault(piece, Node())
            assert node.event is None, f"told twice: {event.sentence}"
            node.event = event
    return root


@cache
def _vocabulary(piece: str) -> frozenset[str]:
    """All a slot can ever say, whatever the facts."""
    slot = piece[1:-1].partition(">")[0]
    names = GIRLS + BOYS
    if slot == "lead":
        return frozenset(["", *LEADS])
    if slot in {"n+m", "n-m"}:
        return frozenset(NUMBERS)
    person, _, word = slot.rstrip("!").partition(".")
    if person in {"x", "y", *PEOPLE}:
        said = GENDERED[word] if word else names
        return frozenset([*said, *GENDERED["he"]] if slot == "x" else said)
    form, _, name = slot.rpartition(" ")
    if name == "kid":
        return frozenset(f"{kid} named {each}" for kid in GENDERED["girl"] for each in names)
    if name in _classes():
        return frozenset(_forms(slot))
    drawn_from = set(re.findall(r"(\w+)>" + name, str(EVENTS)))
    return frozenset(phrase for part in drawn_from for phrase in _forms(f"{form} {part}".strip()))


@cache
def _longest(piece: str) -> int:
    return max(map(len, _vocabulary(piece)))


def _ends(piece: str, sentence: str, at: int) -> list[int]:
    """Where a slot that begins at `at` can end."""
    vocabulary = _vocabulary(piece)
    if len(vocabulary) < 10:
        return [at + len(phrase) for phrase in vocabulary if sentence.startswith(phrase, at)]
    stop = min(len(sentence), at + _longest(piece))
    return [end for end in range(at + 1, stop + 1) if sentence[at:end] in vocabulary]


def _readings(sentence: str) -> list[tuple[Event, list[str]]]:
    """Every event that a sentence can tell, with the phrases in its slots."""
    found: list[tuple[Event, list[str]]] = []
    if sentence[:1].isupper() or sentence[:1] == '"':
        _read(sentence, 0, _tree(), [], found)
        lowered = sentence[0].lower() + sentence[1:]
        if lowered != sentence:
            _read(lowered, 0, _tree(), [], found)
    return found


def _read(sentence: str, at: int, node: Node, phrases: list[str], found: list) -> None:
    if at == len(sentence) and node.event:
        found.append((node.event, phrases))
    for words, child in node.words.items():
        if sentence.startswith(words, at):
            _read(sentence, at + len(words), child, [*phrases, words], found)
    for piece, child in node.slots.items():
        for end in _ends(piece, sentence, at):
            _read(sentence, end, child, [*phrases, sentence[at:end]], found)


def _sentences(paragraph: str) -> list[str]:
    """Cut a paragraph where a sentence ends, but not inside what somebody says."""
    sentences, start, quoted = [], 0, False
    for at, letter in enumerate(paragraph):
        if letter == '"':
            quoted = not quoted
        elif letter == " " and not quoted and _ends_here(paragraph, at):
            sentences.append(paragraph[start:at])
            start = at + 1
    return [*sentences, paragraph[start:]]


def _ends_here(paragraph: str, space: int) -> bool:
    before, after = paragraph[max(0, space - 2) : space], paragraph[space + 1 : space + 2]
    stopped = before.endswith((".", "!", "?", '."', '!"', '?"'))
    return stopped and (after.isupper() or after == '"')


# -------------------------------------------------------------------- judging


@dataclass(slots=True)
class Told:
    """A sentence of a text, and what it can mean taken by itself."""

    text: str
    fresh: bool  # it begins a paragraph, other than the first
    readings: list[tuple[Event, list[str]]]


def judge(text: str) -> Verdict:
    """Is this a story of the language, word for word? Never raises, whatever the text."""
    if len(text) > LONGEST:
        return Verdict(False, False, None, "longer than any story")
    told = [
        Told(sentence, number == 0 and place > 0, _readings(sentence))
        for place, paragraph in enumerate(text.split("\n\n"))
        for number, sentence in enumerate(_sentences(paragraph))
    ]
    fault = _slip(told)
    if fault:
        return Verdict(False, False, None, fault)
    world, bits = _beginning(), 0.0
    for number, sentence in enumerate(told, 1):
        cost, fault = _follow(world, sentence)
        if fault:
            return Verdict(True, False, None, f"sentence {number}, {sentence.text!r}: {fault}")
        bits += cost
    return Verdict(True, True, bits, "a story from beginning to end")


def _slip(told: list[Told]) -> str:
    """The first sentence that no story has, or the end that is missing; empty if all is well."""
    for number, sentence in enumerate(told, 1):
        if not sentence.readings:
            return f"sentence {number}: not a sentence of the language: {sentence.text[:80]!r}"
    if all(event.topic != "opening" for event, _ in told[0].readings):
        return "sentence 1: this is not how a story begins"
    if all(event.topic != "ending" for event, _ in told[-1].readings):
        return f"sentence {len(told)}: the story does not end"
    return ""


def _follow(world: World, sentence: Told) -> tuple[float, str]:
    """Let a sentence happen in the world: its cost in bits, or else why it cannot."""
    costs = {casting: cost for castings, cost in _menu_of(world).topics for casting in castings}
    faults = []
    for event, phrases in sentence.readings:
        for casting in event.castings:
            known = dict(world.roles)
            bits, fitting, fault = _match(casting, phrases, world)
            fault = fault or _layout_fault(event, sentence)
            if not fault and casting in costs:
                casting.happen(world)
                return costs[casting] + bits, ""
            met, unmet = _unmet(casting, world)
            faults.append((fitting, 0, fault) if fault else (fitting, met, unmet))
            world.roles = known
    return 0.0, max(faults)[-1]


def _match(casting: Casting, phrases: list[str], world: World) -> tuple[float, int, str]:
    """What the phrases of a sentence cost in this casting, how many fit, and what does not."""
    bits = 0.0
    for fitting, (token, phrase) in enumerate(zip(casting.tokens, phrases, strict=True)):
        try:
            spread = token.spread(world)
        except KeyError:  # nobody introduced it, so a need is not met either
            return bits, -1, _unmet(casting, world)[1]
        if phrase not in spread.bits:
            only = spread.phrases[0] if len(spread.phrases) == 1 else "another word"
            return bits, fitting, f"it says {phrase!r} where {only!r} belongs"
        bits += spread.bits[phrase]
        if type(token) is Draw and token.role:
            world.roles[token.role] = token.words[phrase]
    return bits, len(phrases), ""


def _layout_fault(event: Event, sentence: Told) -> str:
    if event.topic in FRESH and not sentence.fresh:
        return "a new paragraph should begin here"
    if sentence.fresh and event.topic not in FRESH:
        return "no new paragraph should begin here"
    return ""


def _unmet(casting: Casting, world: World) -> tuple[int, str]:
    """How many of its needs are met, and the first fact that stands against the event."""
    needs = sorted(casting.needs, key=lambda need: need in GROUPS)  # the most telling first
    unmet = [need for need in needs if not _met(need, world.flags)]
    if not unmet:
        return len(needs), "the paragraph is too long or too short here"
    return len(needs) - len(unmet), _explain(unmet[0], world)


def _met(need: str, flags: int) -> bool:
    if need.startswith("-"):
        return not flags & _flag(need[1:])
    return any(flags & _flag(flag) for flag in need.split("|"))


def _explain(need: str, world: World) -> str:
    """The fact that is missing, or in the way, in plain words."""
    if need in GROUPS["phase"].split():
        return "it comes at the wrong point of the story"
    if need == "-trouble":
        return f"first something else must come right: {_fact(_raised('trouble', world), world)}"
    if need.startswith("-"):
        return f"but {_fact(need[1:], world)}"
    missing = " or ".join(_fact(flag, world) for flag in need.split("|"))
    if need.endswith(".has") and world.flags & _flag("holder"):
        return f"but {_fact(_raised('holder', world), world)}"
    return f"nothing says that {missing}"


def _raised(group: str, world: World) -> str:
    """The flag of a group that is up."""
    flags = (flag for member in GROUPS[group].split() for flag in _each(member))
    return next(flag for flag in flags if world.flags & _flag(flag))


def _fact(flag: str, world: World) -> str:
    person, _, rest = flag.rpartition(".")
    known = {"thing": "thing", "pet": "animal", **world.roles}
    name = world.roles.get(person or "hero", "the friend")
    fact = FACTS[f"x.{rest}" if person else flag]
    return fact.format(x=name, thing=known["thing"], pet=known["pet"])


# -------------------------------------------------------------------- figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Print stories and the figures of the language.")
    parser.add_argument("--count", type=int, default=3, help="stories to print")
    parser.add_argument("--seed", type=int, default=0, help="which series of stories")
    args = parser.parse_args()
    for told in stories(args.count, args.seed):
        print(f"{told.text}\n[{told.bits:.1f} bits, {len(told.text)} bytes]\n")
    print(_figures(2000, args.seed))


def _figures(count: int, seed: int = 0) -> str:
    """The size of the language, measured over `count` stories."""
    sample = list(stories(count, seed))
    size = sum(len(told.text) for told in sample)
    words = {word for told in sample for word in re.findall("[a-z]+", told.text.lower())}
    kinds = sum(map(len, EVENTS.values()))
    return (
        f"{count:,} stories: {len(words):,} words, {kinds} kinds of event, "
        f"{size / count:.0f} bytes a story, "
        f"{sum(told.bits for told in sample) / size:.3f} bits per byte"
    )


if __name__ == "__main__":
    main()
