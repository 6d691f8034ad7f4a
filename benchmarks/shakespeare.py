"""Tiny Shakespeare by character, from the command to the result: how long until nanoGPT's final validation loss?

    python -m benchmarks.shakespeare --nanogpt PATH --text input.txt [--runs 3] [--iterations 285]

nanoGPT runs its published CPU recipe (4 layers, 128 wide, block 64, batch 12, 2,000 iterations, no dropout); its result is the
validation loss it prints at the end. Ours runs the `shakespeare` preset for fewer iterations and must end at or below that
loss, scored on every character of the validation tenth. Whole processes are timed, start-up included, in turns.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

from benchmarks.common import child, finish, median, need_path, table

RECIPE = """--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4
--n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0""".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--text", default="", help="tiny Shakespeare, input.txt")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=285, help="of ours")
    args = parser.parse_args()
    checkout = need_path(args.nanogpt, "--nanogpt", "a checkout of nanoGPT")
    text = need_path(args.text, "--text", "tiny Shakespeare")
    results: dict[str, list[dict]] = {"nanoGPT": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        shutil.copy(text, copy / "data/shakespeare_char/input.txt")
        child(["data/shakespeare_char/prepare.py"], cwd=copy)
        for number in range(args.runs):
            results["nanoGPT"].append(nanogpt(copy))
            results["ours"].append(ours(text, Path(scratch) / f"run{number}", args.iterations))
    base = median([run["seconds"] for run in results["nanoGPT"]])
    rows = []
    for side, runs in results.items():
        seconds = median([run["seconds"] for run in runs])
        rows.append(
            [side, f"{seconds:.1f} s", f"{seconds / base:.2f}×", f"{median([run['val_loss'] for run in runs]):.4f}"]
        )
    table(["tiny Shakespeare, whole process", "time", "ratio", "val loss, nats/char"], rows)
    finish("shakespeare", iterations=args.iterations, runs=results)


def nanogpt(copy: Path) -> dict:
    run = child(["train.py", "config/train_shakespeare_char.py", *RECIPE], cwd=copy)
    losses = re.findall(r"step 2000: .*val loss ([\d.]+)", run["text"])
    return {"seconds": run["seconds"], "val_loss": float(losses[-1])}


def ours(text: Path, folder: Path, iterations: int) -> dict:
    flags = [
        "--preset",
        "shakespeare",
        "--data",
        str(text),
        "--max_iters",
        str(iterations),
        "--eval_interval",
        str(iterations),
    ]
    run = child(
        [
            "train_cli.py",
            *flags,
            "--run",
            "bench",
            "--out_dir",
            str(folder / "c"),
            "--log_dir",
            str(folder / "l"),
            "--no-progress",
        ]
    )
    summary = json.loads((folder / "l/bench/summary.json").read_text())
    return {"seconds": run["seconds"], "val_loss": summary["val_loss"]}


if __name__ == "__main__":
    main()
