"""How long a person waits: for `--help`, for a plan, and from the command to the first training step of the `quick` preset.

    python -m benchmarks.startup [--runs 3]

The first step is awaited twice: on a machine that has made and measured nothing yet, and when its corpus and calibration are there.
Beside them stands what no training with torch can go below: the import of torch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.common import child, finish, median, table, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    waits: dict[str, list[float]] = {}
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["LLM_DATA_DIR"] = f"{scratch}/data"
            for name, wait in {
                "python, doing nothing": lambda: child(["-c", "pass"])["seconds"],
                "import torch": lambda: child(["-c", "import torch"])["seconds"],
                "train_cli.py --help": lambda: child(["train_cli.py", "--help"])["seconds"],
                "first step of quick, nothing made before": lambda folder=scratch: first_step(Path(folder), "first"),
                "first step of quick, again": lambda folder=scratch: first_step(Path(folder), "again"),
                "train_cli.py plan": plan,
                "train_cli.py plan, again": plan,
            }.items():
                waits.setdefault(name, []).append(wait())
    table(["from the command", "seconds"], [[name, f"{median(each):.2f}"] for name, each in waits.items()])
    finish("startup", seconds=waits)


def plan() -> float:
    """Seconds of a plan; the first one measures more of the machine than a run does."""
    return child(["train_cli.py", "plan", "--preset", "quick"])["seconds"]


def first_step(folder: Path, run: str) -> float:
    """Seconds from the command until the first step of a run is done, as its log says."""
    started = time.time()
    events = trained(folder, run, ["--preset", "quick", "--time", "", "--max_iters", "1"])["events"]
    return next(event["time"] for event in events if event["event"] == "step") - started


if __name__ == "__main__":
    main()
