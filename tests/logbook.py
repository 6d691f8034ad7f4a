"""Logs of runs that never were: the lines that `RunLog` would have written, with the values that a test wants."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from config import ModelConfig, TrainConfig
from training.plan import Plan


class Logbook:
    """The log of a run in `log_dir/name`, begun `ago` seconds ago, with a step each second."""

    def __init__(self, log_dir: Path, name: str, ago: float = 3600, **train):
        self.path, self.now, self.name = log_dir / name / "events.jsonl", time.time() - ago, name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.config = TrainConfig(**{"max_iters": 100, "batch_size": 8, "learning_rate": 1e-3, **train})

    def write(self, kind: str, **values) -> None:
        """One line."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"event": kind, "time": self.now, **values}) + "\n")

    def start(self) -> Logbook:
        plan = Plan(
            parameters=1_234_567, dtype="float32", optimizer=self.config.optimizer, compile=False, attention="flash", micro_batch_size=8,
            micro_steps=1, memory_bytes=2**29, free_bytes=2**33, flops_per_token=1e6, tokens_per_step=1024,
            tokens_per_second=1000.0, steps=self.config.max_iters, seconds=100.0, epochs=0.5, warnings=["a word of warning"],
        )  # fmt: skip
        model = ModelConfig(block_size=128, vocab_size=2048)
        told = {"model": asdict(model), "train": asdict(self.config), "plan": asdict(plan), "entropy": 0.5}
        self.write("start", run=self.name, **told)
        return self

    def step(self, step: int, loss: float | None = None, **values) -> None:
        self.now += 1
        loss = loss_at(step) if loss is None else loss
        told = {"progress": step / self.config.max_iters, "rate": 1 - step / self.config.max_iters, "norm": 1.0, "dt": 1.0}
        told |= {"tokens_per_second": 1024.0, "mfu": 0.25, "micro_batch": 8, "skipped": False, **values}
        self.write("step", step=step, loss=loss, **told)

    def steps(self, first: int, end: int) -> Logbook:
        for step in range(first, end):
            self.step(step)
        return self

    def evaluation(self, step: int, bpb: float) -> Logbook:
        told = {"loss_se": 0.01, "perplexity": 2.0, "bpb_se": 0.01, "tokens": 1000, "bytes": 3000}
        self.write("evaluation", step=step, loss=2 * bpb, bpb=bpb, **told)
        return self

    def sample(self, step: int, text: str) -> Logbook:
        self.write("sample", step=step, text=text)
        return self

    def checkpoint(self, step: int, file: str) -> Logbook:
        self.write("checkpoint", step=step, file=file, val_loss=None)
        return self

    def end(self, reason: str = "done", bpb: float | None = None) -> Logbook:
        told = {"val_bpb": bpb, "val_loss": bpb and 2 * bpb, "perplexity": 2.0, "tokens_per_second": 900.0}
        self.write("end", stop_reason=reason, skipped_steps=0, rewinds=0, peak_memory_bytes=2**30, **told)
        return self


def loss_at(step: int) -> float:
    """What `Logbook.step` writes: a curve that falls."""
    return 2 + 8 / (step + 1)
