"""What the benchmarks share: running each side in a process of its own, a table, and one JSON line last."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from config import ROOT


def child(arguments: list[str], cwd: Path = ROOT, **environment: str) -> dict[str, Any]:
    """Runs a Python program; its wall seconds, peak memory in bytes, printed text, and the JSON of its last line, if any."""
    t0 = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - t0
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {process.returncode}:\n{text[-3000:]}")
    lines = text.strip().splitlines()
    try:
        last = json.loads(lines[-1]) if lines else None
    except ValueError:
        last = None
    return {"seconds": seconds, "peak_memory_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), "text": text, "json": last}


def trained(folder: Path, name: str, flags: list[str], launcher: tuple[str, ...] = (), **environment: str) -> dict[str, Any]:
    """Trains a run whose files lie below a folder: what `child` tells of it, its `events` and its `summary`."""
    from training.runlog import read_events

    places = ["--run", name, "--out_dir", str(folder / "c"), "--log_dir", str(folder / "l"), "--no-progress"]
    ran = child([*launcher, "train_cli.py", *flags, *places], **environment)
    log = folder / "l" / name
    return ran | {"events": read_events(log), "summary": json.loads((log / "summary.json").read_text())}


def bits_per_byte(folder: Path, name: str, **environment: str) -> float:
    """Of a run of `trained` on a text, over all of its validation text: a run with `--time` scores a part of it where the rest would take
    longer than a tenth of its time."""
    told = child(["train_cli.py", "evaluate", str(folder / "c" / name)], **environment)["text"]
    return float(re.search(r"^([\d.]+) ± \S+ bits per byte", told, re.MULTILINE)[1])


def table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(name: str, **figures: Any) -> None:
    """The benchmark's last line: everything it measured, and on what."""
    from training.calibrate import machine_name

    print(json.dumps({"benchmark": name, "machine": machine_name(), **figures}))


def median(values: list[float]) -> float:
    return statistics.median(values)


def need_path(path: str, flag: str, what: str) -> Path:
    """A path the caller must give.

    Raises:
        SystemExit: with the flag that gives it.
    """
    found = Path(path).expanduser()
    if not path or not found.exists():
        raise SystemExit(f"this compares with {what}: pass {flag} PATH (got {path!r}).")
    return found.resolve()
