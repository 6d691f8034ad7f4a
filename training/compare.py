"""Runs side by side, from their logs alone."""

from __future__ import annotations

import json
from pathlib import Path

from config import UserError
from training.plan import count, duration
from training.runlog import latest_by_step, read_events


def table(log_dir: Path, names: list[str]) -> str:
    """One line a run, the best first: steps, loss, bits per byte, time, speed.

    Raises:
        UserError: when a named run has no log, or there is none at all.
    """
    folders = [log_dir / name for name in names] or sorted(path.parent for path in log_dir.glob("*/events.jsonl"))
    for folder in folders:
        if not (folder / "events.jsonl").exists():
            raise UserError(f"{folder} has no events.jsonl: see which runs there are with ls {log_dir}.")
    if not folders:
        raise UserError(f"{log_dir}/ has no runs yet: train one with python train_cli.py --preset quick.")
    rows = sorted((row(folder) for folder in folders), key=lambda r: (r[0] is None, r[0]))
    head = f"{'run':<32}{'bits/byte':>10}{'val loss':>10}{'steps':>9}{'tokens':>9}{'time':>9}{'tok/s':>9}{'params':>9}  ended"
    return "\n".join([head, *(line for _, line in rows)])


def row(folder: Path) -> tuple[float | None, str]:
    """A run's best bits per byte, and its line."""
    events = read_events(folder)
    scores = latest_by_step(events, "evaluation").values()
    steps = latest_by_step(events, "step")
    plan = next((event["plan"] for event in events if event["event"] == "start"), {})
    best = min((e for e in scores if e["bpb"] is not None), key=lambda e: e["bpb"], default=None)
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        summary = {}
    done = max(steps, default=-1) + 1
    tokens = done * plan.get("tokens_per_step", 0)
    seconds = events[-1]["time"] - events[0]["time"] if events else 0
    speed = summary.get("tokens_per_second") or (steps[done - 1]["tokens_per_second"] if steps else 0)
    bpb, loss = (f"{best['bpb']:.4f}", f"{best['loss']:.4f}") if best else ("", "")
    return best and best["bpb"], (
        f"{folder.name:<32}{bpb:>10}{loss:>10}{done:>9,}{count(tokens):>9}{duration(seconds):>9}{speed:>9,.0f}"
        f"{count(plan.get('parameters', 0)):>9}  {summary.get('stop_reason', 'running or killed')}"
    )
