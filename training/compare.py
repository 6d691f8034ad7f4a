"""Runs side by side, from their logs alone: what `train_cli.py compare` prints, and what the page of training shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from config import UserError
from training.history import EVENTS, Run, folders
from training.units import count, duration, size

COLUMNS = {
    "run": 32, "bits/byte": -10, "val loss": -10, "steps": -9, "tokens": -9, "time": -9, "tok/s": -9, "params": -9, "ended": 0,
}  # with their widths; to the right where negative  # fmt: skip


def read_runs(log_dir: Path, names: list[str]) -> list[Run]:
    """The runs of these names as their logs tell them, or all that have one; the best first.

    Raises:
        UserError: when a named run has no log, or there is none at all.
    """
    found = [log_dir / name for name in names] or folders(log_dir)
    for folder in found:
        if not (folder / EVENTS).exists():
            raise UserError(f"{folder} has no {EVENTS}: see which runs there are with ls {log_dir}.")
    if not found:
        raise UserError(f"{log_dir}/ has no runs yet: train one with python train_cli.py --preset quick.")
    runs = [Run(folder) for folder in found]
    for run in runs:
        run.refresh()
    return best_first(runs)


def table(runs: list[Run]) -> str:
    """One line a run: steps, loss, bits per byte, time, speed."""
    return "\n".join(line(each) for each in [list(COLUMNS), *map(cells, runs)])


def line(texts: list[str]) -> str:
    """Texts under their columns."""
    placed = [f"{text:>{-w}}" if w < 0 else f"{text:<{w}}" for text, w in zip(texts[:-1], COLUMNS.values(), strict=False)]
    return "".join([*placed, "  ", texts[-1]])


def best_first(runs: list[Run]) -> list[Run]:
    """By bits per byte; runs without a score come last."""
    return sorted(runs, key=lambda run: (run.best()[0] is None, run.best()[0] or 0.0))


def cells(run: Run) -> list[str]:
    """What stands under each of `COLUMNS`."""
    bpb, loss = run.best()
    return [
        run.name,
        "" if bpb is None else f"{bpb:.4f}",
        "" if loss is None else f"{loss:.4f}",
        f"{run.done:,}",
        count(run.done * run.plan.get("tokens_per_step", 0)),
        duration(run.seconds),
        f"{run.speed:,.0f}",
        count(run.plan.get("parameters", 0)),
        ending(run),
    ]


def ending(run: Run) -> str:
    """How a run ended, or that it has not."""
    state = run.state(time.time())
    return run.end["stop_reason"] if state == "ended" else {"running": "running", "silent": "killed?"}[state]


def facts(run: Run) -> dict[str, str]:
    """What the run was asked to do and what was planned for it, with labels, for a person."""
    model, train, plan = (run.start.get(part, {}) for part in ("model", "train", "plan"))
    if not (model and train and plan):
        return {}
    muon = f"; Muon {train['muon_learning_rate']:g}" if plan["optimizer"] == "muon" else ""
    told = {
        "parameters": count(plan["parameters"]),
        "model": f"{model['architecture']}, {model['n_layer']} × {model['n_embd']}, {model['n_head']} heads",
        "context": f"{model['block_size']:,} tokens",
        "vocabulary": f"{model['vocab_size']:,} ({train['tokenizer']})",
        "data": Path(train["data"]).name,
        "budget": train["time"] or f"{train['max_iters']:,} steps",
        "planned": f"{plan['steps']:,} steps, {count(plan['steps'] * plan['tokens_per_step'])} tokens, {duration(plan['seconds'])}",
        "epochs": f"{plan['epochs']:.1f}" if plan["epochs"] else "",
        "batch": f"{train['batch_size']} × {model['block_size']:,} = {plan['tokens_per_step']:,} tokens",
        "micro-batch": f"{plan['micro_batch_size']} sequences × {plan['micro_steps']}",
        "optimizer": plan["optimizer"],
        "learning rate": f"{train['learning_rate']:g}{muon}",
        "schedule": f"{train['schedule']}, warm-up {100 * train['warmup']:g} %",
        "weight decay": f"{train['weight_decay']:g}",
        "dropout": f"{model['dropout']:g}" if model["dropout"] else "",
        "arithmetic": f"{plan['dtype']}, {'compiled' if plan['compile'] else 'eager'}",
        "seed": str(train["seed"]),
        "memory": f"{size(plan['memory_bytes'])} planned{peak(run)}",
    }
    return {label: text for label, text in told.items() if text}


def peak(run: Run) -> str:
    held: Any = run.end.get("peak_memory_bytes")
    return f", {size(held)} at the peak" if held else ""
