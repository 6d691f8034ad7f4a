"""Speech of a few words, made on the spot by voices without number: sounds to learn hearing from, with their transcripts.

This is a formant synthesiser. Pulses from the vocal folds and noise from the breath are sent through the resonances of the mouth,
which glide from sound to sound; noise from narrow places goes through a shape of its own. See Klatt, "Software for a
cascade/parallel formant synthesizer" (Journal of the Acoustical Society of America 67, 1980), from which the plan is taken.
Nothing runs from sample to sample: short frames are filtered all at once in the frequency domain, and added up where they overlap.

Some words never follow each other in training (`HELD_OUT`), and some voices never speak there: a model that transcribes such
a pair from such a voice has learned to hear words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from scipy.fft import irfft, rfft
from scipy.signal import lfilter

from corpora.speech_sounds import PHONEMES, PHRASES, SPOKEN, Phoneme

RATE = 8000  # samples a second
LONGEST = 3.0  # seconds of an utterance from `utterances`
WORDS: tuple[str, ...] = tuple(SPOKEN)

FRAME, HOP, SIZE = 128, 64, 512  # samples: a frame, the step to the next, and the room it has to ring
HZ = np.linspace(0, RATE / 2, SIZE // 2 + 1, dtype=np.float32)
WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)
MIDDLE = np.array((500, 1500, 2500, 3500))  # formants of a tract that is a plain tube
TUBE = 17.5  # cm, the tract that the table of sounds was measured on
NOSE = 650  # Hz, a resonance of the nose


def _held_out() -> frozenset[tuple[str, str]]:
    """A seventh of all pairs, every word as often before as behind another; what is asked of pictures is left in."""
    asked = {pair for phrase in PHRASES for pair in pairwise(phrase.split())}
    pairs = {(a, b) for i, a in enumerate(WORDS) for j, b in enumerate(WORDS) if (3 * i + j) % 7 == 1}
    return frozenset(pairs - asked)


HELD_OUT: frozenset[tuple[str, str]] = _held_out()


# -------------------------------------------------------------------- voices


@dataclass(frozen=True)
class Voice:
    """Somebody who speaks, and the place and microphone they speak in.

    Attributes:
        pitch: of the vocal folds, Hz.
        melody: semitones that an accent lifts the pitch.
        fall: semitones that the pitch sinks in a second.
        tract: length of the vocal tract, cm; the longer, the lower all formants.
        mouth: what is particular about each of the first four formants, as factors.
        reach: how far vowels lie from the neutral one; below 1 is mumbled.
        rate: speed; 1 is the table's.
        tilt: Hz above which the vocal folds lose another 6 dB an octave: low for a soft voice.
        breath: level of the breath that is heard with the voice; the voice itself is 1.
        rough: how irregular the pulses are, as a part of a period.
        damp: how wide the formants are; 1 is the table's.
        sharp: how loud hisses and bursts are; 1 is the table's.
        loudness: dB below full scale.
        noise: dB that the room is below the voice.
        bass, slope: the microphone: Hz below which it hears nothing, and dB an octave that it leans towards the heights.
        rhotic: whether every written r is spoken.
    """

    pitch: float
    melody: float
    fall: float
    tract: float
    mouth: tuple[float, float, float, float]
    reach: float
    rate: float
    tilt: float
    breath: float
    rough: float
    damp: float
    sharp: float
    loudness: float
    noise: float
    bass: float
    slope: float
    rhotic: bool


# Men, women, children: range of the pitch in Hz, of the tract in cm.
PEOPLE = (((80, 165), (15.5, 18.5)), ((150, 265), (13.0, 15.5)), ((220, 340), (11.0, 13.5)))
SHARES = (0.42, 0.42, 0.16)


def voice(number: int, held_out: bool = False) -> Voice:
    """The voice of this number, the same one for ever. Held-out voices are as varied as the others, and nobody is both."""
    random = np.random.default_rng((20, held_out, number))
    pitches, tracts = PEOPLE[random.choice(3, p=SHARES)]
    return Voice(
        pitch=float(np.exp(random.uniform(*np.log(pitches)))),
        melody=random.uniform(0.5, 4.0),
        fall=random.uniform(0.5, 4.0),
        tract=random.uniform(*tracts),
        mouth=tuple(np.exp(random.normal(0, (0.05, 0.04, 0.04, 0.04))).tolist()),
        reach=random.uniform(0.8, 1.1),
        rate=random.uniform(0.8, 1.35),
        tilt=float(np.exp(random.uniform(*np.log((1500, 8000))))),
        breath=0.15 * random.random() ** 2,
        rough=random.uniform(0.003, 0.02),
        damp=random.uniform(0.8, 1.6),
        sharp=float(np.exp(random.normal(0, 0.45))),
        loudness=random.uniform(16, 32),
        noise=random.uniform(18, 37),
        bass=random.uniform(40, 220),
        slope=random.uniform(-4, 3.5),
        rhotic=bool(random.random() < 0.6),
    )


# -------------------------------------------------------------------- from words to slices of sound

# A word is a table with a row for each stretch of even sound, and these columns.
MS, START, END, DAMP, ZERO, HISS, VOICE, BREATH, NOISE, RAMP, STEADY = (
    0, slice(1, 5), slice(5, 9), 9, 10, slice(11, 14), 14, 15, 16, 17, 18
)  # fmt: skip
COLUMNS = 19


def _row(ms: float, sound: Phoneme, start, end, levels: tuple[float, float, float], ramp: float, steady: float) -> list[float]:
    hiss = (sound.hiss.centre, sound.hiss.width, sound.hiss.flat) if sound.hiss else (0, 0, 0)
    return [ms, *start, *end, sound.damp, sound.zero or NOSE, *hiss, *levels, ramp, steady]


def _rows(sound: Phoneme, before: Phoneme | None, after: Phoneme | None, vowel: Phoneme) -> Iterator[list[float]]:
    """The stretches of one sound: one, or for a stop the closure, the burst and the breath behind it."""
    leaning = [own + sound.give * (other - own) for own, other in zip(sound.formants, vowel.formants, strict=True)]
    place = [sound.formants[0] if sound.give < 1 else leaning[0], *leaning[1:3], sound.formants[3]]
    levels = (sound.voice, sound.breath, sound.noise)
    if sound.kind != "stop":
        ramp = {"vowel": 18, "glide": 20, "nasal": 25, "fricative": 20}[sound.kind]
        steady = {"vowel": 0.3, "glide": 0.3, "nasal": 0.15, "fricative": 0.15}[sound.kind]
        clipped = sound.kind == "vowel" and after and after.voice == 0 and after.kind in ("stop", "fricative")
        yield _row(sound.ms * (0.8 if clipped else 1), sound, place, sound.end or place, levels, ramp, steady)
        return
    yield _row(sound.ms, sound, place, place, (sound.voice, 0, 0), 12, 0.1)
    yield _row(sound.burst, sound, place, place, (0, 0, sound.noise), 1.5, 0.2)
    if sound.vot and not (before and before.noise and before.kind == "fricative"):  # no breath in a k behind an s
        onward = after.formants if after and after.kind in ("vowel", "glide") else place
        yield _row(sound.vot if after else 25, sound, onward, onward, (0, sound.breath * (1 if after else 0.5), 0), 10, 0.3)


@cache
def _table(word: str, rhotic: bool) -> np.ndarray:
    """The word as rows of (ms, formants at both ends, ..., levels), before anybody's voice and haste."""
    spoken = SPOKEN[word].split(" | ")
    sounds = [PHONEMES[name] for name in spoken[0 if rhotic else -1].split()]
    vowels = [at for at, sound in enumerate(sounds) if sound.kind == "vowel"]
    rows = []
    for at, sound in enumerate(sounds):
        nearest = sounds[min(vowels, key=lambda place, at=at: (abs(place - at), place < at))]
        after = sounds[at + 1] if at + 1 < len(sounds) else None
        rows += _rows(sound, sounds[at - 1] if at else None, after, nearest)
    table = np.array(rows)
    if len(vowels) > 1:
        table[:, MS] *= 0.9
    _lend_hiss(table)
    table.setflags(write=False)
    return table


def _lend_hiss(table: np.ndarray) -> None:
    """Rows without a noise take over the spectrum of the next one's, or else the last one's, so that no frame lies in between."""
    hissing = np.flatnonzero(table[:, 11])
    if not len(hissing):
        table[:, HISS] = (2000, 2000, 1)
        return
    at = np.arange(len(table))
    following = hissing[np.minimum(np.searchsorted(hissing, at), len(hissing) - 1)]
    previous = hissing[np.maximum(np.searchsorted(hissing, at, side="right") - 1, 0)]
    source = np.where(np.abs(following - at) <= np.abs(at - previous), following, previous)
    table[:, HISS] = table[source, HISS]


def _pause(ms: float, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Quiet between two rows, in which the mouth moves from one to the other."""
    row = before.copy()
    row[[MS, VOICE, BREATH, NOISE]] = ms, 0, 0, 0
    row[END], row[RAMP], row[STEADY] = after[START], 45, 0
    return row[None]


def _score(words: Sequence[str], voice: Voice, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All rows of an utterance, (rows, COLUMNS), as this voice says them this time; and where each word begins and ends, in rows."""
    tables = [_table(word, voice.rhotic) for word in words]
    pieces, spans, length = [], [], 0
    gaps = random.uniform(0, 150, len(words)) * (random.random(len(words)) < 0.7)
    gaps[0] = random.uniform(20, 120)
    for table, gap, last in zip(tables, gaps, [tables[0], *tables], strict=False):
        if gap > 15:
            pieces.append(_pause(gap, table[0] if not pieces else last[-1], table[0]))
            length += 1
        pieces.append(table)
        spans.append((length, length + len(table)))
        length += len(table)
    pieces.append(_pause(random.uniform(60, 160), tables[-1][-1], tables[-1][-1]))
    score = np.concatenate(pieces)
    quiet = score[:, [VOICE, BREATH, NOISE]].sum(1) == 0
    lengths = np.exp(random.normal(0, 0.1, len(score))) * np.exp(random.normal(0, 0.06)) / voice.rate
    lengths[slice(*spans[-1])] *= 1.15  # the last word is given more time
    score[:, MS] *= np.where(quiet, 1, lengths)
    score[:, [VOICE, BREATH, NOISE]] *= np.exp(random.normal(0, (0.1, 0.2, 0.2), (len(score), 3)))
    score[:, [BREATH, NOISE]] *= voice.sharp
    own = TUBE / voice.tract * np.array(voice.mouth)
    for side in (START, END):
        score[:, side] = own * MIDDLE * (score[:, side] / MIDDLE) ** voice.reach
    wobble = np.exp(random.normal(0, 0.025, (len(score), 4)))
    score[:, START] *= wobble
    score[:, END] *= wobble
    score[:, [10, 11]] *= (TUBE / voice.tract) ** 0.5
    return score, np.array(spans)


# -------------------------------------------------------------------- from slices to curves over time


def _levels(score: np.ndarray, edges: np.ndarray, n: int) -> np.ndarray:
    """(3, n) levels of voice, breath and noise at each sample: even in a row, with a short ramp into it."""
    ramp = np.minimum(score[:, RAMP] / 1000, 0.9 * np.diff(edges))
    knots = np.stack((edges[:-1], edges[:-1] + ramp), 1).ravel()
    own = score[:, [VOICE, BREATH, NOISE]]
    heights = np.stack((np.vstack((np.zeros(3), own[:-1])), own), 1).reshape(-1, 3)
    at = np.arange(n) / RATE
    return np.stack([np.interp(at, knots, column) for column in heights.T]).astype(np.float32)


def _shapes(score: np.ndarray, edges: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(frames, 9) what the mouth is like at each time: four formants, damping, zero of the nose, and the hiss."""
    dt = np.diff(edges)
    rest = np.minimum(score[:, STEADY] * dt, 0.04)
    knots = np.stack((edges[:-1] + rest, edges[1:] - rest), 1).ravel()
    fixed = score[:, 9:14]
    values = np.stack((np.hstack((score[:, START], fixed)), np.hstack((score[:, END], fixed))), 1).reshape(-1, 9)
    right = np.clip(np.searchsorted(knots, at), 1, len(knots) - 1)
    share = np.clip((at - knots[right - 1]) / np.maximum(knots[right] - knots[right - 1], 1e-6), 0, 1)[:, None]
    return (values[right - 1] + share * (values[right] - values[right - 1])).astype(np.float32)


def _pitch(voice: Voice, spans: np.ndarray, edges: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """(n,) Hz: sinking slowly, lifted by each word as it likes, and falling or rising at the end."""
    at = np.arange(0, n + HOP, HOP) / RATE
    begins, ends = edges[spans[:, 0]], edges[spans[:, 1]]
    lift = voice.melody * random.uniform(-0.3, 1, len(spans))
    centre = begins + (ends - begins) * random.uniform(0.2, 0.6, len(spans))
    bumps = np.exp(-(((at[:, None] - centre) / (0.35 * (ends - begins))) ** 2)) @ lift
    last = np.clip((at - begins[-1]) / (ends[-1] - begins[-1]), 0, 1) ** 2
    semitones = bumps - voice.fall * (at - at[-1] / 2) + random.uniform(-3, 2) * last + random.normal(0, 0.5)
    return np.interp(np.arange(n), np.arange(len(at)) * HOP, voice.pitch * 2 ** (semitones / 12))


# -------------------------------------------------------------------- from curves to sound


def _pulses(pitch: np.ndarray, rough: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(n,) pulses of the vocal folds, of power 1, and (n,) where in its period each sample lies."""
    phase = np.cumsum(pitch) / RATE
    beats = np.arange(1, int(phase[-1]))
    beats = np.clip(beats + random.normal(0, rough, len(beats)), 0.5, phase[-1] - 0.5)
    place = np.interp(beats, phase, np.arange(len(phase)))
    whole = place.astype(int)
    height = np.sqrt(RATE / pitch[whole]) * np.exp(random.normal(0, 2 * rough, len(whole)))
    pulses = np.zeros(len(pitch))
    np.add.at(pulses, whole, height * (1 - (place - whole)))  # between two samples, so that the pitch does not buzz
    np.add.at(pulses, whole + 1, height * (place - whole))
    return pulses, phase


def _resonance(hz: np.ndarray, width: np.ndarray) -> np.ndarray:
    """(frames, frequencies) what a formant divides the spectrum by; one above the band still lifts what is below it."""
    ratio = HZ / hz[:, None]
    divisor = np.empty(ratio.shape, np.complex64)
    divisor.real = 1 - ratio * ratio
    divisor.imag = ratio * (width / hz)[:, None]
    return divisor


def _tract(shapes: np.ndarray, voice: Voice) -> np.ndarray:
    """(frames, frequencies) response of mouth and nose."""
    formants, damp = shapes[:, :4], shapes[:, 4] * voice.damp
    divisor = 1.0
    for hz in formants.T:
        divisor = divisor * _resonance(hz, damp * (40 + 0.05 * hz))
    for hz in np.array((4500, 5500, 6500)) * TUBE / voice.tract:
        divisor = divisor * _resonance(np.float32([hz]), np.float32([0.06 * hz]))
    nose = np.float32([NOSE * (TUBE / voice.tract) ** 0.5])
    zero = shapes[:, 5]
    return _resonance(zero, 0.15 * zero) / (divisor * _resonance(nose, 0.15 * nose))


def _hiss(shapes: np.ndarray) -> np.ndarray:
    """(frames, frequencies) the shape of noise from a narrow place, of power 1."""
    centre, width, flat = (column[:, None] for column in shapes[:, 6:].T)
    shape = flat + 1 / (1 + (2 * (HZ - centre) / width) ** 2)
    return shape / np.sqrt((shape**2).mean(1, keepdims=True))


def _microphone(voice: Voice) -> np.ndarray:
    """(frequencies,) what the microphone makes of it."""
    lean = 10 ** (voice.slope / 20 * np.log2(np.maximum(HZ, 100) / 1000))
    through = 1j * HZ / (voice.bass + 1j * HZ)
    return (lean * through * through).astype(np.complex64)


def _frames(wave: np.ndarray, count: int) -> np.ndarray:
    """(count, frequencies) spectra of overlapping frames."""
    padded = np.zeros((count + 1) * HOP, np.float32)
    padded[HOP : HOP + len(wave)] = wave
    return rfft(np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP] * WINDOW, SIZE)


def _overlap(spectra: np.ndarray, n: int) -> np.ndarray:
    """(n,) the wave of overlapping frames, each of which rings on for SIZE samples."""
    frames = irfft(spectra, SIZE).reshape(len(spectra), -1, HOP)
    wave = np.zeros((len(spectra) + SIZE // HOP, HOP), np.float32)
    for late in range(SIZE // HOP):
        wave[late : late + len(spectra)] += frames[:, late]
    return wave.ravel()[HOP : HOP + n]


def speak(words: Sequence[str], voice: Voice, seed: int) -> np.ndarray:
    """The words as this voice says them; the seed decides the small things that differ from time to time.

    Args:
        words: some of WORDS, at least one.

    Returns:
        (n,) float32 within -1 to 1, RATE samples a second. The same arguments give the same samples.
    """
    random = np.random.default_rng((30, seed))
    score, spans = _score(words, voice, random)
    edges = np.concatenate(((0,), np.cumsum(score[:, MS]))) / 1000
    n = int(edges[-1] * RATE)
    count = n // HOP + 2
    shapes = _shapes(score, edges, np.arange(count) * HOP / RATE)
    folds, breath, narrow = _levels(score, edges, n)
    pulses, phase = _pulses(_pitch(voice, spans, edges, n, random), voice.rough, random)
    corners = np.exp(-2 * np.pi * np.array((180, voice.tilt)) / RATE)
    source = lfilter((1.0,), np.poly(corners), pulses)
    source *= folds / _strength(corners, voice)
    air, hiss = random.standard_normal((2, n), np.float32)
    air *= breath + voice.breath * folds * (1 + np.cos(2 * np.pi * phase))
    tract, shape = _tract(shapes, voice), _hiss(shapes)
    spectra = _frames(source + air, count) * tract + _frames(hiss * narrow, count) * shape
    return _record(_overlap(spectra * _microphone(voice), n), voice, random)


def _strength(corners: np.ndarray, voice: Voice) -> float:
    """How strong this voice's neutral vowel would come out, so that all voices can be made alike."""
    turn = np.exp(-2j * np.pi * HZ / RATE)
    neutral = np.array([[*MIDDLE * TUBE / voice.tract, 1, NOSE * (TUBE / voice.tract) ** 0.5, 0, 0, 0]], np.float32)
    response = _tract(neutral, voice)[0] / ((1 - corners[0] * turn) * (1 - corners[1] * turn))
    return float(np.sqrt((np.abs(response[4:]) ** 2).mean()))


def _record(wave: np.ndarray, voice: Voice, random: np.random.Generator) -> np.ndarray:
    """The wave as loud as this voice is, in a room that is not quite still; never beyond full scale."""
    wave = wave / np.sqrt((wave**2).mean())
    below = np.clip(voice.noise + random.uniform(-5, 5), 15, 40)
    wave += 10 ** (-below / 20) * _room(len(wave), random)
    wave *= 10 ** (-(voice.loudness + random.uniform(-2, 2)) / 20)
    return (wave * min(1.0, 0.95 / np.abs(wave).max())).astype(np.float32)


# -------------------------------------------------------------------- quiet


def _room(n: int, random: np.random.Generator) -> np.ndarray:
    """(n,) the noise of a room, of power 1: duller here and sharper there, sometimes with the hum of the mains."""
    dull = random.uniform(0.3, 0.97)
    noise = lfilter((np.sqrt(1 - dull**2),), (1, -dull), random.standard_normal(n, np.float32))
    mains = random.choice((50, 60)) * np.array((1, 2, 3))
    turns = np.outer(mains / RATE, np.arange(n)) + random.random((3, 1))
    hum = np.sin((2 * np.pi * turns).astype(np.float32)).sum(0)
    noise += hum * 0.8 * random.random() ** 3
    return noise / np.sqrt((noise**2).mean())


def silence(seed: int) -> np.ndarray:
    """A room in which nobody speaks, 0.3 to 1.5 s: noise, hum, now and then a click.

    Returns:
        (n,) float32, much quieter than speech.
    """
    random = np.random.default_rng((40, seed))
    n = int(random.uniform(0.3, 1.5) * RATE)
    room = _room(n, random)
    clicks = np.zeros(n)
    clicks[random.integers(n, size=random.integers(4))] = random.uniform(2, 8)
    room += lfilter((1,), (1, -random.uniform(0, 0.9)), clicks)
    return (room * np.exp(random.uniform(*np.log((3e-4, 8e-3))))).astype(np.float32)


# -------------------------------------------------------------------- utterances


def utterances(n: int, seed: int, held_out: bool = False) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """`n` utterances of random words, with their transcripts.

    Args:
        held_out: False gives one to four words of which no two neighbours are in HELD_OUT, from ordinary voices; True gives two
            to four, with at least one such pair, from held-out voices.

    Yields:
        (words, wave): wave is what `speak` returns, LONGEST seconds at most.
    """
    random = np.random.default_rng((50, held_out, seed))
    for _ in range(n):
        wave = np.empty(0)
        while not 0 < len(wave) <= LONGEST * RATE:
            words = _words(random, held_out)
            wave = speak(words, voice(int(random.integers(2**40)), held_out), int(random.integers(2**40)))
        yield words, wave


def _words(random: np.random.Generator, held_out: bool) -> tuple[str, ...]:
    if not held_out:
        return _allowed(random)
    words = list(random.choice(WORDS, random.integers(2, 5)))
    at = random.integers(len(words) - 1)
    words[at : at + 2] = sorted(HELD_OUT)[random.integers(len(HELD_OUT))]
    return tuple(map(str, words))


def _allowed(random: np.random.Generator) -> tuple[str, ...]:
    while True:
        words = tuple(map(str, random.choice(WORDS, random.integers(1, 5))))
        if HELD_OUT.isdisjoint(pairwise(words)):
            return words
