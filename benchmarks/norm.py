"""The RMS norm and its gradient on a CPU, and a model's forward and backward pass with it: ours beside torch's, taking turns.

    python -m benchmarks.norm [--runs 15]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import model as models
from benchmarks.common import finish, median, table
from config import ModelConfig

STEPS = {  # a model, and the rows of its batch
    "quick": (ModelConfig(architecture="modern", vocab_size=2048, n_layer=2, n_head=2, n_embd=128, block_size=256), 8),
    "3 × 192": (ModelConfig(architecture="modern", vocab_size=1600, n_layer=3, n_head=3, n_embd=192, block_size=256), 16),
}
OURS = models.rms_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    figures = {}
    for name, (config, rows) in STEPS.items():
        figures[f"{name}, norm alone"] = turns(alone(config, rows), args.runs)
        for dtype in (torch.float32, torch.bfloat16):
            figures[f"{name}, the model, {str(dtype)[6:]}"] = turns(both_ways(config, rows, dtype), args.runs)
    lines = [[name, f"{1e3 * theirs:.2f} ms", f"{1e3 * ours:.2f} ms", f"{ours / theirs:.2f}×"] for name, (theirs, ours) in figures.items()]
    table(["forward and backward", "torch's", "ours", "ratio"], lines)
    finish("norm", seconds=figures)


def turns(work: Callable[[], None], runs: int) -> tuple[float, float]:
    """Median seconds with torch's norm and with ours."""
    sides: dict[Callable, list[float]] = {plain: [], OURS: []}
    for _ in range(runs + 1):
        for norm, seconds in sides.items():
            models.rms_norm = norm
            t0 = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - t0)
    theirs, ours = (median(seconds[1:]) for seconds in sides.values())
    return theirs, ours


def plain(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return F.rms_norm(x, x.shape[-1:], eps=eps) * weight.to(x.dtype)


def alone(config: ModelConfig, rows: int) -> Callable[[], None]:
    x = torch.randn(rows, config.block_size, config.n_embd, requires_grad=True)
    weight, grad = torch.ones(config.n_embd, requires_grad=True), torch.randn(x.shape)
    return lambda: torch.autograd.backward(models.rms_norm(x, weight, config.norm_eps), grad, inputs=(x, weight))


def both_ways(config: ModelConfig, rows: int, dtype: torch.dtype) -> Callable[[], None]:
    model = models.GPT(config).train()
    idx = torch.randint(config.vocab_size, (rows, config.block_size))

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(idx, idx)
        loss.backward()

    return work


if __name__ == "__main__":
    main()
