"""The embedded parts of the data: drawn shapes, synthetic speech, and both together. Each row follows from its part's seed alone.

    captions          a picture of one thing, and what it shows
    relations         a picture of two things, and how they stand to each other
    questions         a picture and a written question
    speech            words, to be written down
    spoken-questions  a picture and a spoken question
    silence           nothing is said, and nothing is to be written down
    stories           text alone (`sources.py` reads it)
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from corpora import shapes, speech, speech_sounds
from multimodal.decode import at_rate
from multimodal.samples import Picture, Sample, Sound, Turn

DESCRIBE, TRANSCRIBE = "describe", "transcribe"  # what is asked where there is no question


@dataclass(frozen=True)
class Setting:
    """How media are made: the side of a picture in pixels, and whether with pairs of colour and shape, and with voices and orders of
    words, that training never meets. Of a picture so many written questions are asked, one after the other. A sound has so many
    samples a second (`rate`)."""

    side: int
    new_pairs: bool = False
    new_voices: bool = False
    questions: int = 1
    rate: int = speech.RATE

    @property
    def held_out(self) -> bool:
        return self.new_pairs or self.new_voices


def captions(n: int, seed: int, how: Setting) -> Iterator[Sample]:
    for scene in shapes.scenes(n, seed, 1, how.new_pairs):
        yield sample("captions", (picture(scene, how), DESCRIBE), shapes.caption(scene))


def relations(n: int, seed: int, how: Setting) -> Iterator[Sample]:
    for scene in shapes.scenes(n, seed, 2, how.new_pairs):
        yield sample("relations", (picture(scene, how), DESCRIBE), shapes.caption(scene))


def asked(n: int, seed: int, how: Setting) -> Iterator[tuple[Picture, list[tuple[str, str]]]]:
    """Pictures of one thing and of two, each with all its questions and their answers, shuffled."""
    random = np.random.default_rng((seed, 3))
    both = [shapes.scenes(n, seed + 1, things, how.new_pairs) for things in (1, 2)]
    for _ in range(n):
        scene = next(both[random.integers(2)])
        offered = shapes.questions(scene)
        yield picture(scene, how), [offered[at] for at in random.permutation(len(offered))]


def questions(n: int, seed: int, how: Setting) -> Iterator[Sample]:
    for seen, asked_of_it in asked(n, seed, how):
        turns = []
        for question, answer in asked_of_it[: how.questions]:
            turns += [Turn("user", (question,) if turns else (seen, question)), Turn("assistant", (answer,))]
        yield Sample("questions", tuple(turns))


def spoken_questions(n: int, seed: int, how: Setting) -> Iterator[Sample]:
    random = np.random.default_rng((seed, 4))
    for seen, [(question, answer), *_] in asked(n, seed + 2, how):
        voice = speech.voice(int(random.integers(2**31)), how.new_voices)
        spoken = sound(speech.speak(question.split(), voice, int(random.integers(2**31))), how, said=question)
        yield sample("spoken-questions", (seen, spoken), answer)


def transcripts(n: int, seed: int, how: Setting) -> Iterator[Sample]:
    for words, wave in speech.utterances(n, seed, how.new_voices):
        yield sample("speech", (sound(wave, how), TRANSCRIBE), " ".join(words))


def silences(n: int, seed: int, how: Setting) -> Iterator[Sample]:
    for number in range(n):
        yield sample("silence", (sound(speech.silence(seed * 1_000_003 + number), how), TRANSCRIBE), "")


def picture(scene: shapes.Scene, how: Setting) -> Picture:
    return Picture(shapes.draw(scene, how.side), said=shapes.caption(scene))


def sound(wave: np.ndarray, how: Setting, said: str = "") -> Sound:
    """What was spoken at the rate of the synthesiser, at the one that the model hears."""
    return Sound(at_rate(wave, speech.RATE, how.rate), said)


def sample(source: str, shown: tuple, answer: str) -> Sample:
    return Sample(source, (Turn("user", shown), Turn("assistant", (answer,))))


@dataclass(frozen=True)
class Part:
    """One part: how it is made, how many rows there are to train on, how often they are drawn, what the model must take in, how many
    seconds the longest of its sounds has, and whether it holds something back that is never trained on."""

    make: Callable[[int, int, Setting], Iterator[Sample]]
    rows: int
    share: float
    needs: frozenset[str]
    seconds: float = 0.0
    holds_back: bool = True


PARTS = {
    "captions": Part(captions, 6000, 1.0, frozenset({"image"})),
    "relations": Part(relations, 6000, 0.7, frozenset({"image"})),
    "questions": Part(questions, 8000, 2.7, frozenset({"image"})),
    "speech": Part(transcripts, 18000, 4.9, frozenset({"audio"}), speech.LONGEST),  # in ten minutes hardly one comes twice, to be learned by heart
    "spoken-questions": Part(spoken_questions, 6000, 4, frozenset({"image", "audio"}), speech.LONGEST),
    "silence": Part(silences, 300, 0.2, frozenset({"audio"}), 1.5, holds_back=False),
}
STORIES, STORIES_SHARE = "stories", 1.5
QUESTIONS = 4  # asked of a picture in training: taking in a picture costs more than one more answer about it
VALIDATE = 100  # rows of each part, and as many held-out ones
HELD_OUT = ", held out"  # behind the name of a part
ERRAND = 100  # rows that a process makes at once


def rows(names: Iterable[str], side: int, rate: int) -> Iterator[tuple[str, Sample]]:
    """The rows of some parts with their split, made by all cores, in the same order always."""
    errands = [
        errand
        for name in names
        for errand in (
            *((name, "train", start, Setting(side, questions=QUESTIONS, rate=rate)) for start in range(0, PARTS[name].rows, ERRAND)),
            (name, "val", 10**6, Setting(side, rate=rate)),
            *([(name, "val", 10**6, Setting(side, True, True, rate=rate))] if PARTS[name].holds_back else []),
        )
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as processes:
        for made in processes.map(do, errands):
            yield from made


def do(errand: tuple[str, str, int, Setting]) -> list[tuple[str, Sample]]:
    """Some rows of a part; the number of the first is their seed."""
    name, split, seed, how = errand
    n = min(ERRAND, PARTS[name].rows - seed) if split == "train" else VALIDATE
    made = PARTS[name].make(n, seed, how)
    return [(split, replace(row, source=name + HELD_OUT) if how.held_out else row) for row in made]


def fingerprint() -> str:
    """Changes when what these parts are made by does."""
    files = [Path(module.__file__) for module in (shapes, speech, speech_sounds)] + [Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
