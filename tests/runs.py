"""Small runs for the tests of training: a corpus of a few words, the real command line, and a model of one layer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from config import ROOT, ModelConfig, TrainConfig
from tokenizer import ByteTokenizer
from train import Trainer
from training.distributed import Ranks
from training.evaluate import Score
from training.plan import Plan
from training.runlog import RunLog
from training.text import TextTask

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "big", "red", "small", "blue"]
SMALL = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4, "tokenizer": "char", "vocab_size": 0,
    "max_iters": 20, "eval_interval": 10, "sample_tokens": 8, "compile": "off", "dtype": "float32", "attention": "math",
    "progress": False,
}  # fmt: skip


# ---- the command line


def write_text(path: Path, lines: int = 200, seed: int = 1) -> Path:
    """A text of random words."""
    chance = random.Random(seed)
    path.write_text("\n".join(" ".join(chance.choices(WORDS, k=12)) for _ in range(lines)))
    return path


def flags(**values) -> list[str]:
    """Settings as they are typed."""
    typed = []
    for name, value in values.items():
        if isinstance(value, bool):
            typed.append(f"--{name}" if value else f"--no-{name}")
        else:
            typed += [f"--{name}", str(value)]
    return typed


def small_run(folder: Path, run: str = "a", **changes) -> list[str]:
    """The flags of a run that takes a second or two, with all of its files in `folder`."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    places = {"data": text, "out_dir": folder / "out", "log_dir": folder / "logs", "run": run}
    return flags(**{**places, **SMALL, **changes})


def resume(folder: Path, run: str = "a", **changes) -> list[str]:
    """The flags that go on with a small run."""
    return flags(out_dir=folder / "out", log_dir=folder / "logs", run=run, resume=True, progress=False, **changes)


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of a subprocess: one thread, and its own data folder."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "LLM_DATA_DIR": str(folder / "data"), **changes}


def start(folder: Path, *arguments: str, before: tuple[str, ...] = (), **environ: str) -> subprocess.Popen:
    """Starts `train_cli.py`; `before` is what comes between the interpreter and the script."""
    command = [sys.executable, *before, str(ROOT / "train_cli.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(folder, **environ), cwd=folder, **pipes)


def finish(process: subprocess.Popen, timeout: float = 120) -> subprocess.CompletedProcess:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def cli(folder: Path, *arguments: str, timeout: float = 120, **environ: str) -> subprocess.CompletedProcess:
    """Runs `train_cli.py` to its end."""
    return finish(start(folder, *arguments, **environ), timeout)


def main_here(folder: Path, monkeypatch, *arguments: str) -> int:
    """Runs the command line in this process, which saves loading torch; its exit code."""
    import train_cli

    here(folder, monkeypatch)
    monkeypatch.setattr("train_cli.STARTED", time.monotonic())
    try:
        train_cli.main(list(arguments))
    except SystemExit as end:
        return end.code
    raise AssertionError("main always exits")


def here(folder: Path, monkeypatch) -> None:
    """Keeps this process's shards and measurements in `folder`."""
    for name in ("data.DATA", "sources.DATA"):
        monkeypatch.setattr(name, folder / "data")
    monkeypatch.setattr("training.calibrate.MEMORY", folder / "data" / "machine.json")
    monkeypatch.setattr("training.calibrate.matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr("training.calibrate.seconds_per_token", lambda *_: 1e-6)


def events(folder: Path, kind: str, run: str = "a") -> list[dict]:
    """A run's events of one kind. Every line must be JSON."""
    lines = (folder / "logs" / run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def losses(folder: Path, run: str = "a") -> dict[int, float]:
    """The loss of every step; where a step was done twice, the later one."""
    return {event["step"]: event["loss"] for event in events(folder, "step", run)}


def wait_for(condition, process: subprocess.Popen | None = None, timeout: float = 60) -> None:
    """Waits until something holds, or fails when the process ends before."""
    t0 = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() - t0 < timeout, "waited too long"
        time.sleep(0.01)


# ---- the loop alone


class Line(nn.Module):
    """y = w x + b, with the squared error as its loss, and dropout to have something random."""

    kind = "line"

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.config = ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=8)
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.blocks[0](self.drop(x)) - y).square().mean()


class LineTask:
    """Rows whose answer is known. `poison` gives the factor on a step's targets: NaN, or large for a spike."""

    tokenizer = ByteTokenizer()

    def __init__(self, batch_size: int = 8, poison=lambda step: 1.0, scores=None):
        self.batch_size, self.poison, self.scores = batch_size, poison, iter(scores or ())
        self.provenance = {"data": "line", "data_hash": "line", "documents": False}
        self.asked: list[int] = []

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(step)
        x = torch.randn(self.batch_size, 8, generator=torch.Generator().manual_seed(step))
        return x, 0.5 * x.flip(1) * self.poison(step)

    cuts = TextTask.cuts

    @torch.no_grad()
    def evaluate(self, model: nn.Module, limit: int, autocast) -> Score:
        loss = next(self.scores, None)
        if isinstance(loss, Score):
            return loss
        was_training = model.training
        model.eval()
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(10**6))
        loss = float(model(x, 0.5 * x.flip(1))) if loss is None else loss
        model.train(was_training)
        return Score(loss, 0.0, 1.0, loss, 0.0, 64, 64)

    def evaluation_tokens(self) -> int:
        return 64

    def sample(self, model: nn.Module, seed: int) -> str:
        return "a line"


def line_trainer(
    folder: Path, task: LineTask | None = None, dropout: float = 0.0, micro: int = 0, cls=Trainer, **changes
):
    """A trainer of a line, with a constant rate unless told otherwise."""
    values = {"max_iters": 30, "eval_interval": 10, "batch_size": 8, "warmup": 0.0, "learning_rate": 0.02}
    config = TrainConfig(**{**values, "progress": False, **changes})
    task = task or LineTask(config.batch_size)
    kind = config.optimizer
    plan = Plan(
        parameters=72, dtype="float32", optimizer=kind, compile=False, attention="flash", micro_batch_size=micro or config.batch_size,
        micro_steps=1, memory_bytes=0, free_bytes=0, flops_per_token=1, tokens_per_step=config.batch_size,
        tokens_per_second=1e6, steps=config.max_iters, seconds=1, epochs=0,
    )  # fmt: skip
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = folder / "out" / "a"
    run.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder / "logs" / "a", True, False)
    return cls(Line(dropout), task, config, plan, ranks, run, log, time.monotonic())


def resumed(folder: Path, *args, **changes):
    """A second trainer that goes on from what the first one saved."""
    import checkpoint

    trainer = line_trainer(folder, *args, **changes)
    trainer.restore(checkpoint.load_newest(trainer.folder)[0])
    return trainer


def equal(a, b) -> bool:
    """Whether two trees of dicts, lists, tensors and values are the same to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def without_clock(content: dict) -> dict:
    """A checkpoint's content less what differs from run to run by nature."""
    training = dict(content["training"])
    training["progress"] = {k: v for k, v in training["progress"].items() if k != "elapsed"}
    return {"model": content["model"], "training": training}
