"""Lets a model answer about pictures and sounds, and compares what it says with the truth: exactly, by words, by characters.

Each figure stands beside its controls. With blank media (a grey picture, a silent sound) or with those of another row the score
must fall to chance: a model that still scores has been guessing from the words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from rapidfuzz.distance import Levenshtein
from torch import nn

from config import MediaModelConfig
from inference.dialogue import Chat, Message
from inference.engine import Engine, text_of
from inference.request import Piece, Request, Settings
from multimodal import embedded
from multimodal.fusion import token_count
from multimodal.samples import Picture, Sample, Sound, Turn
from multimodal.shards import encode, outline
from tokenizer import Tokenizer

BATCH = 32  # answered at once


@dataclass(frozen=True)
class Verdict:
    """Of `count` answers the share that is exactly right, and the rates of wrong words and characters, each against the truth.

    Attributes:
        blank, shuffled: the share that is right with empty media, and with those of another row.
        floor: the share that is right if the commonest answer is always given.
    """

    part: str
    count: int
    exact: float
    wer: float
    cer: float
    blank: float
    shuffled: float
    floor: float


@dataclass(frozen=True)
class Example:
    """One row, what the model says to it, and what it should."""

    part: str
    sample: Sample
    answer: str
    truth: str

    @property
    def right(self) -> bool:
        return self.answer == self.truth

    @property
    def asked(self) -> str:
        """The question as text, pictures and sounds in brackets."""
        names = {Picture: "[picture]", Sound: "[sound]"}
        return " ".join(names.get(type(part), part) for turn in self.sample.turns[:-1] for part in turn.parts)


def answers(model: nn.Module, tokenizer: Tokenizer, samples: Iterable[Sample]) -> list[str]:
    """The likeliest answer to each sample's last question, token by token, as the server would give it. The question is put whole, as
    training showed it: no more of the block is kept free than the true answer takes. An answer may have all that is left."""
    chat = Chat(tokenizer, documents=True, places=model.places)
    engine = Engine(model, tokenizer, slots=BATCH)
    pieces, requests = [], []
    for sample in samples:
        messages = [Message(turn.role, turn.parts) for turn in sample.turns[:-1]]
        said = truth(sample)
        length = len(tokenizer.encode(f" {said}")) if said else 0
        prompt = chat.prompt(messages, model.config.block_size, length)
        written: list[Piece] = []
        room = model.config.block_size + 1 - len(prompt.ids)  # the last token needs no place, as nothing follows it
        most = max(room, length + 1)  # media that another row lent may be too long
        settings = Settings(max_new_tokens=most, temperature=0, stop=prompt.stop)
        requests.append(Request(prompt.ids, settings, written.append, scope=str(len(requests)), media=prompt.media))
        pieces.append(written)
    engine.run(requests)
    return ["".join(map(text_of, written)).strip() for written in pieces]


def truth(sample: Sample) -> str:
    """What the assistant should say last."""
    return "".join(part for part in sample.turns[-1].parts if isinstance(part, str)).strip()


def judge(model: nn.Module, tokenizer: Tokenizer, part: str, samples: Sequence[Sample]) -> tuple[Verdict, list[Example]]:
    """One part's figures, with their controls, and what was answered."""
    truths = list(map(truth, samples))
    told = [answers(model, tokenizer, rows) for rows in (samples, list(map(blank, samples)), shuffled(samples))]
    exact, empty, other = (share(given, truths) for given in told)
    verdict = Verdict(
        part=part,
        count=len(samples),
        exact=exact,
        wer=error_rate([given.split() for given in told[0]], [each.split() for each in truths]),
        cer=error_rate(told[0], truths),
        blank=empty,
        shuffled=other,
        floor=Counter(truths).most_common(1)[0][1] / len(truths),
    )
    return verdict, [Example(part, *each) for each in zip(samples, told[0], truths, strict=True)]


def figures(verdict: Verdict) -> dict[str, float]:
    """A verdict for a file."""
    return {name: value for name, value in asdict(verdict).items() if name != "part"}


def share(given: Sequence[str], truths: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(given, truths, strict=True)) / len(truths)


def error_rate(given: Sequence[Sequence], truths: Sequence[Sequence]) -> float:
    """Insertions, deletions and substitutions, of the length of the truth."""
    wrong = sum(Levenshtein.distance(a, b) for a, b in zip(given, truths, strict=True))
    return wrong / max(1, sum(map(len, truths)))


def examples(model: nn.Module, tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[Example]:
    """The model's answers to some rows."""
    given = answers(model, tokenizer, samples)
    return [Example(each.source, each, said, truth(each)) for each, said in zip(samples, given, strict=True)]


def fits(sample: Sample, tokenizer: Tokenizer, config: MediaModelConfig) -> bool:
    """Whether the block has room for a whole row, its answer and its media."""
    ids, _ = encode(outline(sample), tokenizer)
    return len(ids) + sum(token_count(medium, config) - 1 for medium in sample.media) <= config.block_size + 1


# ---- controls


def blank(sample: Sample) -> Sample:
    """The same question with nothing to see or to hear."""

    def emptied(part):
        if isinstance(part, Picture):
            return Picture(np.full_like(part.pixels, 128))
        return Sound(np.zeros_like(part.wave)) if isinstance(part, Sound) else part

    return changed(sample, emptied)


def shuffled(samples: Sequence[Sample]) -> list[Sample]:
    """Each question with the pictures and sounds of the sample half a list away."""
    half = len(samples) // 2
    found = []
    for number, sample in enumerate(samples):
        other = samples[(number + half) % len(samples)]
        lent = {kind: [part for part in other.media if isinstance(part, kind)] for kind in (Picture, Sound)}

        def lend(part, lent=lent):
            kind = type(part)
            return lent[kind].pop(0) if lent.get(kind) else part

        found.append(changed(sample, lend))
    return found


def changed(sample: Sample, change: Callable) -> Sample:
    turns = [Turn(turn.role, tuple(map(change, turn.parts))) for turn in sample.turns]
    return replace(sample, turns=tuple(turns))


# ---- the embedded parts

FRESH = 2 * 10**6  # seed of rows that are neither trained nor validated on
TASKS = {  # what is judged, on rows that training never met: the part, whether with new pairs, whether with new voices
    "captions, seen pairs": ("captions", False, False),
    "captions, held-out pairs": ("captions", True, False),
    "relations": ("relations", False, False),
    "questions": ("questions", False, False),
    "speech, unseen voices and orders": ("speech", False, True),
    "spoken questions, unseen voices": ("spoken-questions", False, True),
    "silence": ("silence", False, False),
}


def embedded_rows(parts: Iterable[str], config: MediaModelConfig, count: int) -> dict[str, list[Sample]]:
    """Fresh rows of some embedded parts, by the task that they are for."""
    return {
        name: list(embedded.PARTS[part].make(count, FRESH, embedded.Setting(config.image_size, *held_out, rate=config.audio_rate)))
        for name, (part, *held_out) in TASKS.items()
        if part in parts
    }


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """The figures as lines."""
    lines = [f"{'by generation':<34}{'exact':>8}{'WER':>8}{'CER':>8}{'blank':>8}{'shuffled':>10}{'floor':>8}{'rows':>6}"]
    for v in verdicts:
        shares = "".join(f"{100 * value:>7.1f}%" for value in (v.exact, v.wer, v.cer, v.blank))
        lines.append(f"{v.part:<34}{shares}{100 * v.shuffled:>9.1f}%{100 * v.floor:>7.1f}%{v.count:>6}")
    return lines
