"""What the page at /training asks for: the runs, and one run's story, straight from the logs of training.

Polled every second or two, so an answer holds only what is new: `next` of one answer is `from` of the next question.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from config import ROOT
from server.auth import reader
from server.errors import ApiError, clip
from training.compare import COLUMNS, best_first, cells, facts
from training.history import Curve, Run, folders

READING = 0.3  # seconds of reading for one answer; what is left of a long log comes with the next ones
router = APIRouter(prefix="/training", dependencies=[Depends(reader)])


class Runs:
    """The runs of a folder of logs, each as far as it was read. Threads may share it.

    Args:
        log_dir: the folder; empty is the one beside the toolkit.
    """

    def __init__(self, log_dir: str):
        self.log_dir = Path(log_dir) if log_dir else ROOT / "logs"
        self.known: dict[str, Run] = {}
        self.lock = threading.Lock()

    def all(self) -> dict[str, Any]:
        """Every run as a row of `train_cli.py compare`, the best first."""
        with self.lock:
            self.look()
            t0, told = time.monotonic(), []
            for run in sorted(self.known.values(), key=lambda run: -run.last_time):
                try:
                    run.refresh(max(0.0, READING - (time.monotonic() - t0)))
                except OSError:  # it was removed a moment ago, or is not ours to read
                    continue
                told.append(run)
            return {"columns": list(COLUMNS), "runs": [row(run) for run in best_first(told)]}

    def one(self, name: str, cursor: str) -> dict[str, Any]:
        """One run's story from a cursor on.

        Raises:
            ApiError: 404.
        """
        with self.lock:
            self.look()
            run = self.known.get(name)  # only names that stand in the folder: no path can be made of others
            try:
                if run:
                    run.refresh(READING)
            except OSError:
                run = None
            if not run:
                raise ApiError(404, f"there is no run {clip(name)!r}: GET /training/runs lists them.", "not_found_error")
            return story(run, cursor)

    def look(self) -> None:
        """Which runs there are now."""
        there = {folder.name: folder for folder in folders(self.log_dir)}
        self.known = {name: self.known.get(name) or Run(folder) for name, folder in there.items()}


def row(run: Run) -> dict[str, Any]:
    """A run in the list."""
    bpb, _ = run.best()
    state = run.state(time.time())
    told = {"name": run.name, "cells": cells(run), "bpb": bpb, "started": run.first_time}
    return {**told, "state": state, "read": run.read}


def story(run: Run, cursor: str) -> dict[str, Any]:
    """All there is to know of a run, and of its curves and samples what came after the cursor."""
    seen = (cursor.split("-") + [""] * 4)[:4]
    fresh = seen[0] != run.id
    steps, evaluations = (
        0 if fresh else begin(curve, part) for curve, part in ((run.steps, seen[1]), (run.evaluations, seen[2]))
    )
    sampled = number(seen[3]) if not fresh else 0
    place = (run.id, cursor_of(run.steps), cursor_of(run.evaluations), str(run.sampled))
    return {
        **row(run),
        "done": run.done,
        "progress": run.progress,
        "seconds": run.seconds,
        "left": run.left(),
        "quiet": max(0.0, time.time() - run.last_time),
        "end": {name: run.end.get(name) for name in ("stop_reason", "perplexity", "skipped_steps", "rewinds")},
        "facts": facts(run),
        "warnings": run.plan.get("warnings", []),
        "entropy": run.start.get("entropy"),
        "tokens_per_step": run.plan.get("tokens_per_step"),
        "learning_rate": run.start.get("train", {}).get("learning_rate"),
        "checkpoints": sorted(run.checkpoints.values(), key=lambda saved: saved["file"]),
        "notes": list(run.notes),
        "samples": {"after": sampled, "new": [each for each in run.samples if each["number"] > sampled]},
        "steps": run.steps.thinned(steps),
        "evaluations": run.evaluations.thinned(evaluations),
        "next": "-".join(place),
    }


def cursor_of(curve: Curve) -> str:
    """How far a curve goes: its identity, the size of its buckets, and how many of them are full."""
    return f"{curve.id}.{curve.bucket}.{len(curve.steps) // curve.bucket}"


def begin(curve: Curve, seen: str) -> int:
    """The first point that a reader with this part of a cursor lacks; 0 where its points are no longer those of the curve."""
    same, _, full = seen.rpartition(".")
    return number(full) if same == f"{curve.id}.{curve.bucket}" else 0


def number(digits: str) -> int:
    """A part of a cursor that a client sent; 0 for what is none. Python itself refuses numbers of some thousand digits."""
    return int(digits) if digits.isdecimal() and len(digits) < 16 else 0


@router.get("/runs")
def list_runs(request: Request) -> JSONResponse:
    """The runs, the best first, with the columns of `train_cli.py compare`.

    Of each: `name`, `cells` (the texts under `columns`), `bpb` (bits per byte), `started` (seconds since 1970), `state`
    (`running`, `ended`, or `silent`: no line for so long that it may have been killed), and `read` (below 1 while a long log
    is still being read). `playground` says whether this server has a model to play with.
    """
    app = request.app
    return JSONResponse({**app.state.runs.all(), "playground": hasattr(app.state, "host")})


@router.get("/runs/{name}")
def read_run(request: Request, name: str, since: Annotated[str, Query(alias="from")] = "") -> JSONResponse:
    """A run: its row in the list, plan, progress, checkpoints and notes; its curves and samples from a cursor on.

    `from` is the `next` of the answer before. `steps` and `evaluations` hold points from number `from` on, which replace those
    that a reader has from there: `step`, `time` (seconds into the run), and of each column `low`, `high` and `mean`
    over the `bucket` rows of a point. `samples.new` come after number `samples.after`.
    """
    return JSONResponse(request.app.state.runs.one(name, since))
