"""The loss head alone, forward and backward, at the default model's size: ours in chunks, torch's two ways, and the arithmetic's limit.

    python -m benchmarks.head [--tokens 8192] [--runs 3]

Each side runs in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.common import child, finish, median, table

WIDTH, VOCABULARY = 384, 50257
SIDES = ("ours", "cross_entropy(linear)", "linear_cross_entropy", "three matrix products")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.tokens)))
        return
    import torch

    able = [side for side in SIDES if side != "linear_cross_entropy" or hasattr(torch.nn.functional, side)]
    results: dict[str, list[dict]] = {side: [] for side in able}
    for _ in range(args.runs):
        for side in able:
            run = child(["-m", "benchmarks.head", "--tokens", str(args.tokens), "--side", side])
            results[side].append({"seconds": run["json"]["seconds"], "memory": run["peak_memory_bytes"]})
    ours = median([r["seconds"] for r in results["ours"]])
    rows = []
    for side, runs in results.items():
        seconds, memory = median([r["seconds"] for r in runs]), median([r["memory"] for r in runs])
        rows.append([side, f"{seconds:.2f} s", f"{seconds / ours:.2f}×", f"{memory / 1e9:.2f} GB"])
    table([f"{args.tokens} × {WIDTH} × {VOCABULARY}, float32", "time", "of ours", "process peak"], rows)
    finish("head", runs=results)


def measure(side: str, tokens: int) -> dict:
    import torch
    import torch.nn.functional as F

    from model import HeadLoss

    torch.manual_seed(0)
    x = torch.randn(tokens, WIDTH, requires_grad=True)
    head = (0.02 * torch.randn(VOCABULARY, WIDTH)).requires_grad_()
    y = torch.randint(VOCABULARY, (tokens,))

    def work() -> None:
        if side == "ours":
            HeadLoss.apply(x, head, y, torch.full(y.shape, 1 / len(y)), VOCABULARY).backward()
        elif side == "linear_cross_entropy":
            F.linear_cross_entropy(x, head, y, options=torch.nn.LinearCrossEntropyOptions()).backward()
        elif side == "cross_entropy(linear)":
            F.cross_entropy(F.linear(x, head), y).backward()
        else:
            with torch.no_grad():
                for part in x.split(167):  # logits of 32 MiB, as ours
                    logits = part @ head.T
                    logits @ head
                    logits.T @ part

    seconds = []
    for _ in range(2):
        t0 = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - t0)
    return {"seconds": min(seconds)}


if __name__ == "__main__":
    main()
