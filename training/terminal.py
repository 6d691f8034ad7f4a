"""What the page of training shows of some runs, as text: their curves side by side, their plans, and how far each has come."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.compare import ending, facts
from training.history import Curve, Run
from training.units import duration

WIDTH = 48  # characters of a curve
BLOCKS = "▁▂▃▄▅▆▇█"
LINE = 110  # characters of a line of prose
SAMPLE = 600  # characters of a sample


@dataclass(frozen=True)
class Chart:
    """A column of the log as a curve.

    Attributes:
        of: the curve of a run that holds the column.
        scale: what a value is multiplied with, given the run.
        shown: a value as a person reads it.
    """

    title: str
    of: Callable[[Run], Curve]
    column: str
    shown: str
    scale: Callable[[Run], float] = lambda run: 1.0

    def values(self, run: Run) -> list[float]:
        factor = self.scale(run)
        return [value * factor for value in self.of(run).columns[self.column]]


CHARTS = [
    Chart("loss", lambda run: run.steps, "loss", "{:.4f}"),
    Chart("validation loss", lambda run: run.evaluations, "loss", "{:.4f}"),
    Chart("bits per byte", lambda run: run.evaluations, "bpb", "{:.4f}"),
    Chart("learning rate", lambda run: run.steps, "rate", "{:.3g}", lambda run: run.start.get("train", {}).get("learning_rate", 1.0)),
    Chart("tokens/s", lambda run: run.steps, "tokens_per_second", "{:,.0f}"),
    Chart("MFU", lambda run: run.steps, "mfu", "{:.1f} %", lambda run: 100.0),
]


def page(runs: list[Run]) -> str:
    """Curves, plans, and a paragraph for each run."""
    parts = [drawn for chart in CHARTS if (drawn := side_by_side(chart, runs))]
    return "\n\n".join([*parts, *filter(None, [plans(runs)]), *map(card, runs)])


# ---- curves


def side_by_side(chart: Chart, runs: list[Run]) -> str:
    """A line for each run that has the column, all in the same scale: steps from left to right, values upwards."""
    told = {run: chart.values(run) for run in runs}
    told = {run: values for run, values in told.items() if any(map(math.isfinite, values))}
    if not told:
        return ""
    last = max(run.done for run in runs)
    curves = {run: columns(chart.of(run), values, last) for run, values in told.items()}
    drawn = [value for curve in curves.values() for value in curve if math.isfinite(value)]
    wide = max(len(run.name) for run in runs)
    lines = []
    for run, curve in curves.items():
        seen = [chart.shown.format(value) for value in told[run] if math.isfinite(value)]
        bars = "".join(block(value, min(drawn), max(drawn)) for value in curve)
        lines.append(f"  {run.name:<{wide}}  {bars:<{WIDTH}}  {seen[0]} → {seen[-1]}")
    return "\n".join([chart.title, *lines])


def columns(curve: Curve, values: list[float], last: int) -> list[float]:
    """The mean of the values over each of the `WIDTH` parts of the steps up to `last`; a part without one goes on at the height before."""
    parts: list[list[float]] = [[] for _ in range(WIDTH)]
    for step, value in zip(curve.steps, values, strict=True):
        if math.isfinite(value):
            parts[min(WIDTH - 1, step * WIDTH // max(1, last))].append(value)
    drawn, height = [], math.nan
    for part in parts[: max(k for k, part in enumerate(parts) if part) + 1]:
        height = sum(part) / len(part) if part else height
        drawn.append(height)
    return drawn


def block(value: float, low: float, high: float) -> str:
    """A value as one of eight heights."""
    if math.isnan(value):
        return " "
    return BLOCKS[round((len(BLOCKS) - 1) * (value - low) / (high - low))] if high > low else BLOCKS[len(BLOCKS) // 2]


# ---- plans, and how far they have come


def plans(runs: list[Run]) -> str:
    """What each run was asked to do, a column each; `≠` where they differ."""
    told = {run: each for run in runs if (each := facts(run))}
    labels = list(dict.fromkeys(label for each in told.values() for label in each))
    if not labels:
        return ""
    rows = [["plan", *(run.name for run in told)]]
    for label in labels:
        cells = [each.get(label, "–") for each in told.values()]
        rows.append([f"{label} ≠" if len(set(cells)) > 1 else label, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def card(run: Run) -> str:
    """How far a run has come, its checkpoints, what a person should know, and its newest sample."""
    told = [f"{run.name}: {progress(run)}"]
    for saved in sorted(run.checkpoints.values(), key=lambda each: each["file"]):
        loss = "" if saved.get("val_loss") is None else f", validation loss {saved['val_loss']:.4f}"
        told.append(f"  {saved['file']}: step {saved['step']:,}{loss}, {clock(saved['time'])}")
    told += [f"  {note_of(note)}" for note in run.notes]
    told += [f"  {warning}" for warning in run.plan.get("warnings", [])]
    if run.samples:
        newest = run.samples[-1]
        text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in newest["text"].strip()[:SAMPLE])
        rows = [row for line in text.split("\n") for row in textwrap.wrap(line, LINE) or [""]]
        told += [f"  newest sample, step {newest['step']:,}:", *(f"  │ {row}".rstrip() for row in rows)]
    return "\n".join(told)


def progress(run: Run) -> str:
    """How it ended or how far it is, and when it will be done."""
    told, left = [f"{run.done:,} steps in {duration(run.seconds)}"], run.left()
    if run.end.get("stop_reason") != "done":
        told.insert(0, f"{math.floor(100 * run.progress)} %")
    if ending(run) == "running" and left is not None:
        told.append(f"about {duration(left)} left")
    return " · ".join([ending(run), *told])


def note_of(note: dict[str, Any]) -> str:
    """An event that a person should know of, in words."""
    at = f"{clock(note['time'])}, step {note['step']:,}"
    match note["event"]:
        case "resume":
            return f"{at}: resumed"
        case "rewind":
            return f"{at}: gone back here from step {note['from_step']:,}, with {note['rate']:g} of the rate"
        case _:
            return f"{at}: memory ran out; micro-batches of {note['micro_batch']} from here on"


def clock(instant: float) -> str:
    return time.strftime("%H:%M", time.localtime(instant))
