"""What the synthesiser in `corpora.speech` knows of English: its sounds, and how words are put together from them.

Formants are those of a grown man with a tract of 17.5 cm, rounded. The vowels are after Peterson and Barney, "Control methods
used in a study of the vowels" (1952), and Hillenbrand and others, "Acoustic characteristics of American English vowels" (1995);
the consonants and the durations are after Klatt, "Software for a cascade/parallel formant synthesizer" (1980). All were set
down from general knowledge and then moved by ear and eye: they are ours, and stand in none of those tables as they stand here.
"""

from __future__ import annotations

from dataclasses import dataclass

Formants = tuple[float, float, float, float]


@dataclass(frozen=True)
class Hiss:
    """A noise made at a narrow place: a peak on a flat floor.

    Attributes:
        centre, width: of the peak, in Hz.
        flat: the floor below the peak, as a part of its height.
    """

    centre: float
    width: float
    flat: float


@dataclass(frozen=True)
class Phoneme:
    """One sound. Levels are amplitudes beside a vowel's, which is 1.

    Attributes:
        formants: the first four resonances of the tract, Hz.
        end: where they have glided to when the sound ends, for a diphthong.
        ms: how long it lasts when nobody hurries.
        voice: level of the vibrating vocal folds.
        breath: level of the noise made at the vocal folds, which passes through the tract.
        noise: level of the noise made at the narrow place; `hiss` is its spectrum.
        damp: how much wider than a vowel's its formants are.
        zero: the frequency that the closed mouth swallows while the nose sings, Hz; 0 for none.
        give: how far its F2 and F3 (wholly, for 1) become those of the vowel beside it.
        kind: `vowel`, `glide`, `nasal`, `fricative` or `stop`. A stop is silence (with `voice`, a hum) for `ms`, then `burst` ms
            of `noise`, then `vot` ms of `breath` until the next vowel's voice sets in.
    """

    formants: Formants
    ms: float
    kind: str = "vowel"
    end: Formants | None = None
    voice: float = 1.0
    breath: float = 0.0
    noise: float = 0.0
    hiss: Hiss | None = None
    damp: float = 1.0
    zero: float = 0.0
    give: float = 0.0
    burst: float = 0.0
    vot: float = 0.0


def vowel(ms: float, f1: float, f2: float, f3: float, *end: float) -> Phoneme:
    return Phoneme((f1, f2, f3, 3500), ms, end=(*end, 3500) if end else None)


def glide(ms: float, f1: float, f2: float, f3: float, voice: float, give: float) -> Phoneme:
    return Phoneme((f1, f2, f3, 3400), ms, "glide", voice=voice, damp=1.3, give=give)


def nasal(ms: float, f2: float, f3: float, zero: float, give: float) -> Phoneme:
    return Phoneme((280, f2, f3, 3400), ms, "nasal", voice=0.5, damp=1.6, zero=zero, give=give)


def fricative(ms: float, f2: float, f3: float, noise: float, hiss: Hiss, voice: float = 0.0, give: float = 0.4) -> Phoneme:
    return Phoneme((320, f2, f3, 3500), ms, "fricative", voice=voice, noise=noise, hiss=hiss, damp=2.0, give=give)


def stop(f2: float, f3: float, noise: float, hiss: Hiss, burst: float, vot: float, voice: float = 0.0, give: float = 0.4) -> Phoneme:
    formants = (250, f2, f3, 3500)
    return Phoneme(formants, 60, "stop", None, voice, 0.18, noise, hiss, damp=1.5, give=give, burst=burst, vot=vot)


SHARP, HUSH = Hiss(3850, 900, 0.08), Hiss(2700, 800, 0.1)  # as in see and she
LIP, TOOTH = Hiss(2600, 4000, 0.7), Hiss(3300, 3000, 0.6)  # as in five and three
PUFF, TAP, KNOCK = Hiss(900, 900, 0.3), Hiss(3600, 1300, 0.2), Hiss(1900, 500, 0.15)  # as p, t and k open

# The names are SAMPA's, but for R, L and l. .
PHONEMES: dict[str, Phoneme] = {
    # short and long vowels
    "i": vowel(130, 290, 2280, 3000),  # green
    "I": vowel(95, 410, 1980, 2560),  # six
    "e": vowel(115, 550, 1830, 2490),  # red
    "a": vowel(140, 680, 1720, 2420),  # black
    "A": vowel(150, 740, 1120, 2450),  # star
    "O": vowel(150, 580, 860, 2420),  # small
    "o": vowel(115, 610, 960, 2420),  # what, as in London
    "u": vowel(130, 330, 1500, 2350, 310, 1050, 2250),  # blue
    "V": vowel(110, 640, 1210, 2450),  # one
    "3": vowel(140, 480, 1340, 1700),  # circle, with an r
    "E": vowel(140, 500, 1450, 2450),  # circle, without one
    "@": vowel(65, 480, 1450, 2450),  # seven, the second one
    "R": vowel(85, 470, 1330, 1700),  # colour, the second one, with an r
    "L": vowel(100, 450, 820, 2600),  # purple, the second one: an l that is a vowel
    # diphthongs
    "aI": vowel(205, 760, 1180, 2450, 380, 2050, 2600),  # five
    "eI": vowel(165, 490, 1880, 2500, 330, 2220, 2800),  # eight
    "oU": vowel(165, 530, 980, 2380, 380, 820, 2300),  # below
    "@U": vowel(165, 520, 1400, 2400, 370, 950, 2300),  # below, as in London
    "aU": vowel(190, 740, 1280, 2430, 430, 900, 2350),  # how
    # sounds like vowels
    "w": glide(70, 300, 650, 2200, 0.6, 0.1),
    "j": glide(70, 270, 2200, 2950, 0.6, 0.1),
    "r": glide(75, 330, 1100, 1500, 0.7, 0.15),
    "l": glide(70, 350, 1080, 2700, 0.6, 0.25),
    "l.": glide(85, 440, 800, 2600, 0.7, 0.1),  # small: behind a vowel
    "m": nasal(75, 1050, 2250, 780, 0.35),
    "n": nasal(75, 1550, 2550, 900, 0.3),
    "N": nasal(75, 2000, 2600, 1000, 0.5),  # triangle
    # noises
    "h": Phoneme((500, 1450, 2450, 3500), 65, "fricative", voice=0.0, breath=0.22, damp=2.0, give=1.0),
    "s": fricative(120, 1600, 2600, 0.13, SHARP),
    "z": fricative(90, 1600, 2600, 0.09, SHARP, voice=0.3),
    "S": fricative(120, 1800, 2500, 0.25, HUSH),
    "f": fricative(105, 1150, 2250, 0.05, LIP),
    "v": fricative(60, 1150, 2250, 0.03, LIP, voice=0.5),
    "T": fricative(100, 1350, 2550, 0.04, TOOTH),
    "D": fricative(45, 1350, 2550, 0.025, TOOTH, voice=0.5),
    # stops
    "p": stop(850, 2200, 0.2, PUFF, 10, 45),
    "t": stop(1750, 2650, 0.25, TAP, 30, 40),
    "k": stop(1850, 2200, 0.25, KNOCK, 24, 45, give=0.6),
    "b": stop(850, 2200, 0.16, PUFF, 7, 0, voice=0.12),
    "d": stop(1750, 2650, 0.2, TAP, 12, 0, voice=0.12),
    "g": stop(1950, 2200, 0.2, KNOCK, 18, 0, voice=0.12, give=0.6),
    "dZ": stop(1800, 2500, 0.22, HUSH, 65, 0, voice=0.12),
}

# How each word is said by those who say their r everywhere, and (behind the bar) by those who keep it for vowels to come.
SPOKEN = {
    "zero": "z I r oU | z I r @U",
    "one": "w V n",
    "two": "t u",
    "three": "T r i",
    "four": "f O R | f O",
    "five": "f aI v",
    "six": "s I k s",
    "seven": "s e v @ n",
    "eight": "eI t",
    "nine": "n aI n",
    "red": "r e d",
    "orange": "O r I n dZ | o r I n dZ",
    "yellow": "j e l oU | j e l @U",
    "green": "g r i n",
    "blue": "b l u",
    "purple": "p 3 p L | p E p L",
    "white": "w aI t",
    "black": "b l a k",
    "circle": "s 3 k L | s E k L",
    "square": "s k w e R | s k w e @",
    "triangle": "t r aI a N g L",
    "star": "s t A R | s t A",
    "cross": "k r O s | k r o s",
    "heart": "h A R t | h A t",
    "small": "s m O l.",
    "large": "l A R dZ | l A dZ",
    "left": "l e f t",
    "right": "r aI t",
    "above": "@ b V v",
    "below": "b I l oU | b I l @U",
    "what": "w V t | w o t",
    "colour": "k V l R | k V l @",
    "shape": "S eI p",
    "size": "s aI z",
    "where": "w e R | w e @",
    "how": "h aU",
    "many": "m e n i",
    "is": "I z",
    "it": "I t",
    "the": "D @",
    "of": "@ v | o v",
}

# Pairs that the questions of `corpora.shapes` are made of, and the start of an answer: these may always be said.
PHRASES = (
    "what colour is it", "what shape is it", "what size is it", "where is it", "how many", "what is above the",
    "what is below the", "what is left of the", "what is right of the", "is the circle", "the square", "the triangle",
    "the star", "the cross", "the heart", "is red", "is orange", "is yellow", "is green", "is blue", "is purple",
    "is white", "is black",
)  # fmt: skip
