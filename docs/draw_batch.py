"""Makes docs/multimodal-batch.png: some rows as a batch holds them, place by place.

    python docs/draw_batch.py

The rows are embedded ones, their ids and what is learned of them come from the code that training uses.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import learn_tokenizer  # noqa: E402
from multimodal.embedded import PARTS, Setting  # noqa: E402
from multimodal.encoders import AUDIO, DOWNSAMPLING, GRID, IMAGE, IMAGE_TOKENS  # noqa: E402
from multimodal.samples import Picture, Sample  # noqa: E402
from multimodal.shards import encode, outline, texts  # noqa: E402
from multimodal.spectrogram import log_mel  # noqa: E402

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Patch, Rectangle  # noqa: E402

FILE = ROOT / "docs" / "multimodal-batch.png"
SIDE, RATE = 32, 8000
STORY = "Once upon a time there was a fox named Sam. He had a small red ball. One day the ball fell into the river."
SHOWN = {"captions": 2, "speech": 15, "spoken-questions": 4}  # the part, and which of its rows
HIGH, GAP = 5, 1.6  # of a row and between rows, in places
ASKED, LEARNED, EMPTY = "#eceff1", "#a5d6a7", "#ffffff"


def rows() -> list[Sample]:
    """One of each part, the shortest first, as in a micro-batch."""
    made = [next(itertools.islice(PARTS[name].make(n + 1, 0, Setting(SIDE)), n, None)) for name, n in SHOWN.items()]
    return [*made, Sample("stories", text=STORY)]


def main() -> None:
    samples = rows()
    outlines = [outline(sample) for sample in samples]
    more = [outline(sample) for part in PARTS.values() for sample in part.make(40, 1, Setting(SIDE))]
    tokenizer = learn_tokenizer("bpe", 1000, texts([*more, *outlines, *[{"text": STORY, "turns": []}] * 20]))
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    encoded = [encode(told, tokenizer) for told in outlines]
    longest = max(draw_row(axes, n, samples[n], *encoded[n], tokenizer) for n in range(len(samples)))
    for n in range(len(samples)):
        axes.add_patch(Rectangle((0, top(n)), longest, HIGH, fill=False, edgecolor="#78909c", hatch="....", linewidth=0, alpha=0.25, zorder=0))
    axes.set(xlim=(-1, longest + 1), ylim=(top(len(samples) - 1) - 0.2, top(0) + HIGH + 1.2), aspect="equal")
    meaning = {"a word that is read": ASKED, "a word that is learned": LEARNED}
    handles = [Patch(facecolor=colour, edgecolor="#78909c", label=name) for name, colour in meaning.items()]
    handles.append(Patch(facecolor=EMPTY, edgecolor="#b0bec5", hatch="....", label="padding"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(FILE, dpi=100)
    print(f"wrote {FILE.relative_to(ROOT)}, {FILE.stat().st_size / 1024:.0f} KiB")


def top(n: int) -> float:
    """The lower edge of a row."""
    return -n * (HIGH + GAP)


def draw_row(axes, n: int, sample: Sample, ids: list[int], learned: list[bool], tokenizer) -> int:
    """A cell for each place; how many there are."""
    media = iter([part for turn in sample.turns for part in turn.parts if not isinstance(part, str)])
    at, low = 0, top(n)
    axes.text(0, low + HIGH + 0.3, sample.source, fontsize=10, fontweight="bold")
    for token, is_learned in zip(ids, learned, strict=True):
        if token == IMAGE:
            at = draw_picture(axes, at, low, next(media))
        elif token == AUDIO:
            at = draw_sound(axes, at, low, next(media))
        else:
            draw_word(axes, at, low, "<eot>" if token == tokenizer.eot else tokenizer.decode([token]), LEARNED if is_learned else ASKED)
            at += 1
    return at


def cell(axes, at: int, low: float, colour: str) -> None:
    axes.add_patch(Rectangle((at, low), 1, HIGH, facecolor=colour, edgecolor="#78909c", linewidth=0.6))


def draw_word(axes, at: int, low: float, word: str, colour: str) -> None:
    cell(axes, at, low, colour)
    shown = word.replace("\n", "↵").replace(" ", "·")
    axes.text(at + 0.5, low + HIGH / 2, shown, rotation=90, ha="center", va="center", fontsize=9, family="DejaVu Sans Mono")


def draw_picture(axes, at: int, low: float, picture: Picture) -> int:
    """The whole, and below it the places that its vectors stand for, row by row."""
    side, patch = GRID // 2, 2 * SIDE // GRID
    left = at + (IMAGE_TOKENS - 3) / 2
    axes.imshow(picture.pixels, extent=(left, left + 3, low + 1.6, low + 4.6), zorder=2)
    for n in range(IMAGE_TOKENS):
        y, x = divmod(n, side)
        cell(axes, at + n, low, EMPTY)
        part = picture.pixels[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        axes.imshow(part, extent=(at + n + 0.1, at + n + 0.9, low + 0.4, low + 1.2), zorder=2)
    return at + IMAGE_TOKENS


def draw_sound(axes, at: int, low: float, sound) -> int:
    """Its spectrogram, DOWNSAMPLING frames to a place."""
    mel = log_mel(torch.from_numpy(sound.wave), RATE).numpy()
    places = -(-len(mel) // DOWNSAMPLING)
    padded = np.pad(mel, ((0, places * DOWNSAMPLING - len(mel)), (0, 0)), constant_values=mel.min())
    axes.imshow(padded.T, origin="lower", aspect="auto", cmap="magma", extent=(at, at + places, low, low + HIGH), zorder=2)
    for n in range(places):
        axes.add_patch(Rectangle((at + n, low), 1, HIGH, fill=False, edgecolor="#78909c", linewidth=0.6, zorder=3))
    return at + places


if __name__ == "__main__":
    main()
