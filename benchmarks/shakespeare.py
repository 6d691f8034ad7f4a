"""Tiny Shakespeare by character, from the command to the result, beside nanoGPT's CPU recipe: how soon, and how far.

    python -m benchmarks.shakespeare --nanogpt PATH --text input.txt [--runs 3] [--iterations 100]

nanoGPT runs its published CPU recipe (4 layers, 128 wide, block 64, batch 12, 2,000 iterations, no dropout); its result is the
validation loss it prints at the end. Ours runs three times: the `shakespeare` preset with half of its blocks, embeddings for runs of
characters and a higher rate, for so few iterations that it just ends below that loss; and, in the time that nanoGPT took, what `--time`
chooses for this text, by character, with such embeddings, and with a vocabulary of its own, whose bits are told for each character as
well. Ours is scored on every character of the validation tenth, in windows of its own block. Whole processes are timed, start-up
included, in turns.
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from pathlib import Path

from benchmarks import nanogpt
from benchmarks.common import bits_per_byte, child, finish, median, need_path, table, trained

RECIPE = {
    "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 100, "block_size": 64, "batch_size": 12, "n_layer": 4,
    "n_head": 4, "n_embd": 128, "max_iters": 2000, "lr_decay_iters": 2000, "dropout": 0.0,
}  # fmt: skip

WAYS = {  # ours
    "ours, as far": "--preset shakespeare --n_layer 2 --ngrams 5 --learning_rate 0.04 --batch_size 16 "
    "--max_iters {iterations} --eval_interval {iterations}",
    "ours, as long": "--time {seconds}s --tokenizer char --ngrams 5",
    "ours, as long, own vocabulary": "--time {seconds}s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--text", default="", help="tiny Shakespeare, input.txt")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=100, help="of ours, until nanoGPT's loss")
    args = parser.parse_args()
    checkout = need_path(args.nanogpt, "--nanogpt", "a checkout of nanoGPT")
    text = need_path(args.text, "--text", "tiny Shakespeare")
    results: dict[str, list[dict]] = {name: [] for name in ("nanoGPT", *WAYS)}
    with tempfile.TemporaryDirectory() as scratch:
        copy = nanogpt.copied(checkout, Path(scratch))
        (copy / "data/shakespeare_char/input.txt").write_bytes(text.read_bytes())
        child(["data/shakespeare_char/prepare.py"], cwd=copy)
        for number in range(args.runs):
            peer = nanogpt.train(copy, "train_shakespeare_char", **RECIPE)
            losses = re.findall(r"step 2000: .*val loss ([\d.]+)", peer["text"])
            results["nanoGPT"].append({"seconds": peer["seconds"], "val_loss": float(losses[-1])})
            given = {"iterations": args.iterations, "seconds": round(peer["seconds"])}
            for name, flags in WAYS.items():
                results[name].append(ours(text, Path(scratch) / f"{number} {name}", flags.format(**given).split()))
    base = median([run["seconds"] for run in results["nanoGPT"]])
    rows = []
    for side, runs in results.items():
        seconds = median([run["seconds"] for run in runs])
        rows.append(
            [side, f"{seconds:.1f} s", f"{seconds / base:.2f}×", f"{median([run['val_loss'] for run in runs]):.4f}"]
        )
    table(["tiny Shakespeare, whole process", "time", "ratio", "val loss, nats/char"], rows)
    finish("shakespeare", iterations=args.iterations, runs=results)


def ours(text: Path, folder: Path, flags: list[str]) -> dict:
    """A run of ours. The text's tokens are made by the first, as nanoGPT's are before its own."""
    data = {"LLM_DATA_DIR": str(folder.parent / "data")}
    run = trained(folder, "bench", ["--data", str(text), *flags], **data)
    return {"seconds": run["seconds"], "val_loss": bits_per_byte(folder, "bench", **data) * math.log(2)}  # its characters are a byte each


if __name__ == "__main__":
    main()
