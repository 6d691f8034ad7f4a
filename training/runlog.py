"""What a run writes down: one JSON object a line, TensorBoard, a picture, a summary, and the bar on the screen."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import UserError

FLUSH_SECONDS = 1.0  # after which a step's line is handed on at the latest: somebody may be watching


class RunLog:
    """The log of a run in `logs/<run>/`. On ranks other than the first it writes nothing."""

    def __init__(self, folder: Path, active: bool = True, progress: bool = True):
        self.folder, self.active, self.show = folder, active, active and progress
        self.bar: tqdm | None = None
        self.board = None
        self.synced = time.monotonic()
        if not active:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            cut_half_line(folder / "events.jsonl")
            self.events = open(folder / "events.jsonl", "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --log_dir.") from error

    def event(self, kind: str, **values: Any) -> None:
        """Appends one line. Numbers that JSON cannot hold become null."""
        if not self.active:
            return
        line = {"event": kind, "time": round(time.time(), 3), **{name: finite(value) for name, value in values.items()}}
        self.events.write(json.dumps(line) + "\n")
        if kind != "step" or time.monotonic() - self.synced > FLUSH_SECONDS:
            self.flush()
        if kind in ("step", "evaluation"):
            self.scalars(kind, values)

    def scalars(self, kind: str, values: dict[str, Any]) -> None:
        if self.board is None:
            self.board = open_board(self.folder)
        prefix = "train" if kind == "step" else "val"
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float) and self.board:
                self.board.add_scalar(f"{prefix}/{name}", value, values["step"])

    def flush(self) -> None:
        """Hands what was written to the operating system, so that a killed run loses no line of a saved step."""
        if self.active:
            self.events.flush()
            self.synced = time.monotonic()

    def say(self, text: str = "") -> None:
        """A line for the person, above the bar."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start_bar(self, done: int, total: int | None, timed: bool) -> None:
        if self.show:
            unit = "%" if timed else "step"
            shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self.bar = tqdm(
                total=100 if timed else total,
                initial=done,
                unit=unit,
                bar_format=shape,
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.3,
            )

    def advance(self, done: float, **values: str) -> None:
        if self.bar is not None:
            self.bar.n = min(done, self.bar.total)
            self.bar.set_postfix(values, refresh=False)
            self.bar.update(0)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if self.board:
            self.board.close()
        if self.active:
            self.events.close()


def cut_half_line(path: Path) -> None:
    """Removes the end of a line that a killed run began: the next line would be lost with it."""
    if path.exists():
        with open(path, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_board(folder: Path):
    """A TensorBoard writer, or False where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(folder, max_queue=1000, flush_secs=30)


def read_events(folder: Path) -> list[dict]:
    """The lines of a run, from its last start on: what stands before is of one whose checkpoints were deleted, and that had the same
    name. A last line that a kill cut in half is left out."""
    lines = []
    try:
        with open(folder / "events.jsonl", encoding="utf-8") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if event["event"] == "start":
                    lines.clear()
                lines.append(event)
    except FileNotFoundError:
        pass
    return lines


def latest_by_step(events: list[dict], kind: str) -> dict[int, dict]:
    """The events of one kind by step; where a run was resumed and a step done again, the later one."""
    return {event["step"]: event for event in events if event["event"] == kind}


def write_summary(folder: Path, summary: dict) -> None:
    fresh = folder / f"summary.{os.getpid()}.tmp"
    fresh.write_text(json.dumps({name: finite(value) for name, value in summary.items()}, indent=1) + "\n")
    os.replace(fresh, folder / "summary.json")


def draw(folder: Path, title: str, entropy: float | None = None) -> Path:
    """Writes loss.png: training loss, validation bits per byte with its standard error, the true entropy where it is known, the rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    events = read_events(folder)
    steps = sorted(latest_by_step(events, "step").items())
    scores = sorted(latest_by_step(events, "evaluation").items())
    known = [event for _, event in scores if event["loss"] is not None and event["bpb"] is not None]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), height_ratios=(3, 1), sharex=True, layout="constrained")
    xs, losses = [k for k, _ in steps], [event["loss"] for _, event in steps]
    smoothed = smooth(losses)
    if any(loss is not None for loss in losses):
        top.plot(xs, [number(loss) for loss in losses], color="0.8", linewidth=0.6, label="training batch")
        top.plot(xs, smoothed, color="tab:blue", linewidth=1.2, label="training, smoothed")
    if scores:
        top.errorbar(
            [k for k, _ in scores],
            [number(event["loss"]) for _, event in scores],
            yerr=[event["loss_se"] or 0 for _, event in scores],
            color="tab:orange",
            marker=".",
            label="validation",
        )
    if known:
        loss, bpb = known[-1]["loss"], known[-1]["bpb"]
        if entropy is not None and bpb:
            top.axhline(
                entropy * loss / bpb, color="tab:green", linestyle=":", label=f"true entropy, {entropy:.3f} bits per byte"
            )
        top.set_title(f"{title}: {loss:.3f} nats per token, {bpb:.3f} bits per byte")
    drawn = [loss for loss in losses if loss is not None] + [event["loss"] for event in known]
    if drawn:
        settled = [value for value in smoothed[min(5, len(losses) - 1) :] if math.isfinite(value)]
        top.set_ylim(0.9 * min(drawn), 1.02 * max(settled, default=max(drawn)))
    top.set_ylabel("loss, nats per token")
    top.legend()
    bottom.plot(xs, [event["rate"] for _, event in steps], color="tab:red", linewidth=1)
    bottom.set_ylabel("rate, of its peak")
    bottom.set_xlabel("step")
    path = folder / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def number(value: float | None) -> float:
    """A value of the log as it can be drawn: what was not finite stands there as null."""
    return math.nan if value is None else value


def smooth(values: list[float | None], memory: float = 0.95) -> list[float]:
    """An exponential moving average without the bias of its start."""
    total = weight = 0.0
    out = []
    for value in values:
        if value is not None:
            total, weight = memory * total + (1 - memory) * value, memory * weight + 1 - memory
        out.append(total / weight if weight else math.nan)
    return out
