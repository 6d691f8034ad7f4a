"""A run's log, read while it may still be written: for `compare`, and for the page that shows training as it goes.

`events.jsonl` is all that is read. No file is written, locked or kept open, so that nothing here can harm a run.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from array import array
from bisect import bisect_left
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

EVENTS = "events.jsonl"
DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # NaN and the infinities, which our logs never hold
PIECE = 2**22  # bytes read at once
TAIL = 64  # bytes that must still stand where we stopped reading, or the file is another one
POINTS = 1000  # of a curve, at most
SAMPLES = NOTES = 50  # the newest that are kept
LONGEST = 10_000  # characters of a sample
QUIET = 60.0  # seconds without a line after which a run may have been killed


class Curve:
    """Columns of numbers, one row a step; a number that the log does not have is NaN.

    Attributes:
        id: another one after rows were dropped, so that points drawn before cannot be added to.
        steps: rising.
        times: seconds into the run, one for each step.
        columns: by name, as long as `steps`.
    """

    def __init__(self, *names: str):
        self.id = secrets.token_hex(4)
        self.steps, self.times = array("q"), array("d")
        self.columns = {name: array("d") for name in names}

    def append(self, step: int, seconds: float, values: dict[str, Any]) -> None:
        """A row, behind the others.

        Raises:
            TypeError: for a value that is no number; nothing is appended then.
        """
        row = [math.nan if values.get(name) is None else values[name] + 0.0 for name in self.columns]
        self.steps.append(step)
        self.times.append(seconds)
        for column, value in zip(self.columns.values(), row, strict=True):
            column.append(value)

    def cut(self, step: int) -> None:
        """Drops the rows from a step on."""
        if self.steps and step <= self.steps[-1]:
            at = bisect_left(self.steps, step)
            for column in (self.steps, self.times, *self.columns.values()):
                del column[at:]
            self.id = secrets.token_hex(4)

    def lowest(self, name: str) -> dict[str, float] | None:
        """The row in which a column is lowest, if it holds any number."""
        column = self.columns[name]
        finite = [k for k, value in enumerate(column) if math.isfinite(value)]
        if not finite:
            return None
        at = min(finite, key=column.__getitem__)
        return {"step": self.steps[at], **{key: values[at] for key, values in self.columns.items()}}

    @property
    def bucket(self) -> int:
        """How many rows become one point, so that there are no more than `POINTS`: a power of two."""
        return 1 << max(0, math.ceil(len(self.steps) / POINTS) - 1).bit_length()

    def thinned(self, first: int = 0) -> dict[str, Any]:
        """The curve from point `first` on, each point a bucket of rows: step and time of its middle row, and low, high and mean of each column.

        Low and high keep every spike where it was, however long the curve, and means are what can be smoothed without
        a lean to either side (picking single rows, as LTTB does, gives the first but not the second). A bucket begins at a
        multiple of its size, so that a growing curve only ever changes its last point and adds others, until the size doubles.
        """
        size, n = self.bucket, len(self.steps)
        starts = np.arange(first * size, n, size)
        told: dict[str, Any] = {"bucket": size, "from": first, "step": [], "time": []}
        if not len(starts):
            return told | {name: {"low": [], "high": [], "mean": []} for name in self.columns}
        middles = (starts + np.minimum(starts + size, n) - 1) // 2
        told["step"] = [self.steps[k] for k in middles]
        told["time"] = [round(self.times[k], 3) for k in middles]
        for name, column in self.columns.items():
            values = np.array(column[starts[0] :])
            values[~np.isfinite(values)] = np.nan
            here, there = starts - starts[0], ~np.isnan(values)
            with np.errstate(invalid="ignore"):  # a bucket without a number has none for its mean
                mean = np.add.reduceat(np.where(there, values, 0), here) / np.add.reduceat(there.astype(int), here)
            low, high = np.fmin.reduceat(values, here), np.fmax.reduceat(values, here)
            told[name] = {"low": numbers(low), "high": numbers(high), "mean": numbers(mean)}
        return told


def numbers(values: np.ndarray) -> list[float | None]:
    """As JSON can hold them, with the seven digits that a curve shows."""
    return [None if math.isnan(value) else float(f"{value:.7g}") for value in values.tolist()]


class Run:
    """A run as its log tells it, up to where it was read.

    Where a run was resumed or went back, what it had done beyond that step is dropped: the curves show the weights' own past.
    A run whose checkpoints were deleted, and that was begun anew under its name, writes behind its old lines: only the new ones count.

    Attributes:
        start: the event of that name, or an empty dict.
        end: the event of that name once the run has ended, else empty.
        steps: loss, rate, tokens_per_second, mfu.
        evaluations: loss, bpb.
        samples: the newest, oldest first: number, step, time, text.
        checkpoints: the event of the file's last save, by its name.
        notes: events that a person should know of: resume, rewind, micro_batch.
        broken: lines that could not be read.
        id: another one once the file was replaced, and everything was read anew, or the run begun anew.
        read: how much of the file was read, 0 to 1.
    """

    def __init__(self, folder: Path):
        self.path, self.name = folder / EVENTS, folder.name
        self.stamp: tuple[int, ...] = ()  # what the file was like when all of it was read
        self.read = 0.0
        self.forget()

    def forget(self) -> None:
        """Back to having read nothing."""
        self.offset, self.tail, self.broken = 0, b"", 0
        self.begin()

    def begin(self) -> None:
        """Back to a run of which nothing is known, wherever in the file it begins."""
        self.id = secrets.token_hex(4)
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.steps = Curve("loss", "rate", "tokens_per_second", "mfu")
        self.evaluations = Curve("loss", "bpb")
        self.samples: deque[dict[str, Any]] = deque(maxlen=SAMPLES)
        self.notes: deque[dict[str, Any]] = deque(maxlen=NOTES)
        self.checkpoints: dict[str, dict[str, Any]] = {}
        self.sampled = 0
        self.first_time = self.last_time = 0.0  # seconds since 1970
        self.away = 0.0  # seconds between sittings
        self.longest_gap = 0.0
        self.sitting: tuple[float, float] | None = None  # time and progress of this sitting's first step
        self.progress = 0.0

    # ---- reading

    def refresh(self, seconds: float = math.inf) -> bool:
        """Reads what is new, for about so long; whether all of it was read.

        Raises:
            FileNotFoundError: when the log is gone.
        """
        t0 = time.monotonic()
        found = os.stat(self.path)
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        if stamp == self.stamp:
            return True
        with open(self.path, "rb") as file:
            if not self.goes_on(file):
                self.forget()
            self.stamp = ()
            while True:
                file.seek(self.offset)
                piece = file.read(PIECE)
                self.take_piece(piece)
                if len(piece) < PIECE:
                    break
                if time.monotonic() - t0 > seconds:
                    self.read = min(1.0, self.offset / found.st_size)
                    return False
        self.stamp, self.read = stamp, 1.0
        return True

    def goes_on(self, file: BinaryIO) -> bool:
        """Whether what was read last still stands there: a file may have been replaced, or cut."""
        file.seek(self.offset - len(self.tail))
        return file.read(len(self.tail)) == self.tail

    def take_piece(self, piece: bytes) -> None:
        """Takes the whole lines of a piece; half a line at its end waits for its other half."""
        whole = piece.rfind(b"\n") + 1
        if not whole:
            if len(piece) < PIECE:
                return
            whole = len(piece)  # no line of ours is that long: pass over it
        for line in piece[: whole - 1].decode(errors="replace").split("\n"):
            try:
                self.take(DECODER.decode(line))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                self.broken += 1
        self.offset += whole
        self.tail = (self.tail + piece[max(0, whole - TAIL) : whole])[-TAIL:]

    def take(self, event: dict[str, Any]) -> None:
        """One event.

        Raises:
            KeyError, TypeError: for one that is not as ours are.
        """
        kind = event["event"]
        if kind == "start":
            self.begin()
        self.take_time(event["time"], pause=kind == "resume")
        match kind:
            case "step":
                self.take_step(event)
            case "start":
                self.start = event
            case "evaluation":
                self.evaluations.cut(event["step"])
                self.evaluations.append(event["step"], self.seconds, event)
            case "sample":
                told = {"step": event["step"], "time": event["time"], "text": event["text"][:LONGEST]}
                self.sampled += 1
                self.samples.append({"number": self.sampled, **told})
            case "checkpoint":
                self.checkpoints[event["file"]] = event
            case "micro_batch":
                self.notes.append(event)
            case "resume" | "rewind":
                self.go_back(event["step"])
                self.end, self.sitting = {}, None
                self.notes.append(event)
            case "end":
                self.end = event

    def take_time(self, at: float, pause: bool) -> None:
        if not self.first_time:
            self.first_time = self.last_time = at
        gap = at - self.last_time
        if pause:
            self.away += max(0.0, gap)
        elif gap > self.longest_gap:
            self.longest_gap = gap
        self.last_time = at

    def take_step(self, event: dict[str, Any]) -> None:
        self.go_back(event["step"])
        self.steps.append(event["step"], self.seconds, event)
        self.progress = event["progress"]
        self.sitting = self.sitting or (event["time"], self.progress)

    def go_back(self, step: int) -> None:
        """To having done so many steps; an evaluation right after the last of them stays."""
        self.steps.cut(step)
        self.evaluations.cut(step + 1)

    # ---- what follows from it

    @property
    def plan(self) -> dict[str, Any]:
        """What was planned when the run was started."""
        return self.start.get("plan", {})

    @property
    def seconds(self) -> float:
        """From the first line to the last, without the time between sittings."""
        return self.last_time - self.first_time - self.away

    @property
    def done(self) -> int:
        """Steps."""
        return self.steps.steps[-1] + 1 if self.steps.steps else 0

    @property
    def speed(self) -> float:
        """Tokens a second: of the last sitting where the run has ended, else of the last steps."""
        last = self.steps.columns["tokens_per_second"][-1:]
        return self.end.get("tokens_per_second") or (last[0] if last and math.isfinite(last[0]) else 0.0)

    def best(self) -> tuple[float | None, float | None]:
        """Bits per byte and loss of the best weights: the final score where there is one, else the best evaluation's."""
        if self.end.get("val_bpb") is not None:
            return self.end["val_bpb"], self.end["val_loss"]
        found = self.evaluations.lowest("bpb")
        return (found["bpb"], found["loss"]) if found else (None, None)

    def state(self, now: float) -> str:
        """`ended`, `running`, or `silent`: no line for so long that it may have been killed, or scores a long text."""
        if self.end:
            return "ended"
        return "running" if now - self.last_time < max(QUIET, 3 * self.longest_gap) else "silent"

    def left(self) -> float | None:
        """Seconds until the run is done, at the pace of this sitting; None where nothing can be said."""
        if self.end or not self.sitting or self.progress <= self.sitting[1]:
            return None
        pace = (self.last_time - self.sitting[0]) / (self.progress - self.sitting[1])
        return max(0.0, (1 - self.progress) * pace)


def folders(log_dir: Path) -> list[Path]:
    """The folders of the runs that have a log."""
    return sorted(path.parent for path in log_dir.glob(f"*/{EVENTS}"))
