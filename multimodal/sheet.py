"""Sheets of examples: what was shown and asked, what the model answered, and what is true, as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from multimodal.judge import Example
from multimodal.samples import Picture
from multimodal.spectrogram import log_mel

COLUMNS = 4
CELL = 2.9, 2.6  # inches
WIDTH = 34  # characters of a line


def draw(path: Path, examples: Sequence[Example], rate: int) -> None:
    """Writes a PNG with a cell for each example; `rate` is that of its sounds. Right answers are green, wrong ones red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows = -(-len(examples) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * CELL[0], rows * CELL[1]), layout="constrained")
    cells = figure.subfigures(rows, COLUMNS, squeeze=False).flat
    for cell, example in zip(cells, examples, strict=False):
        draw_one(cell, example, rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def draw_one(cell, example: Example, rate: int) -> None:
    """An example: its pictures and spectrograms side by side, the words around them."""
    shown = example.sample.media
    for place, each in zip(np.atleast_1d(cell.subplots(1, max(1, len(shown)))), shown or [None], strict=True):
        place.set_axis_off()
        if isinstance(each, Picture):
            place.imshow(each.pixels)
        elif each is not None:
            place.imshow(log_mel(torch.from_numpy(each.wave), rate).T.numpy(), origin="lower", aspect="auto", cmap="magma")
    cell.suptitle(f"{example.part}\n{lines(example.asked)}", fontsize=7, parse_math=False)
    told = lines(example.answer or "(nothing)") + ("" if example.right else f"\ntruth: {lines(example.truth or '(nothing)')}")
    cell.supxlabel(told, fontsize=8, color="tab:green" if example.right else "tab:red", parse_math=False)


def lines(text: str) -> str:
    """A text in three short lines at most."""
    return "\n".join(textwrap.wrap(text, WIDTH, max_lines=3, placeholder=" …"))
