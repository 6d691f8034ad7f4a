"""A text of one's own and ten minutes: bits per byte, beside nanoGPT's model and loop with GPT-2's vocabulary.

    TIKTOKEN_CACHE_DIR=FOLDER python -m benchmarks.own_text --nanogpt PATH --text FILE [--time 10m] [--trial 2m]

The first 90 % of the text train, the rest is scored, each token once. Ours is `--data FILE --time T` and nothing else. nanoGPT is
tuned by hand, as a careful person would: its size, then its learning rate, its batch and its dropout, each trial with a decay of
its own; the best setting then gets the whole time, compiled if it gets more steps so. Its tuning costs it nothing, nor does the
scoring; its first token, which it cannot score, does not count. Bits per byte compare vocabularies.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import nanogpt
from benchmarks.common import bits_per_byte, child, finish, need_path, table, trained
from config import seconds
from training import calibrate

NAME = "own"
EVALS, EVAL_BATCHES = 3, 5  # looks at the validation text in a run of nanoGPT's, which keeps its best: each takes its time
START = {  # its recipe for small texts (config/train_shakespeare_char.py), with a smaller model and batch
    "n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 128, "batch_size": 8, "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3, "dropout": 0.0, "weight_decay": 0.1, "beta2": 0.99, "device": "cpu", "compile": False, "dtype": "float32",
    "always_save_checkpoint": False, "dataset": NAME, "eval_iters": EVAL_BATCHES,
}  # fmt: skip
STAGES: list[list[dict[str, Any]]] = [  # what is tried beside the best so far, stage by stage
    [{"n_layer": 2, "n_head": 4, "n_embd": 128}, {"n_layer": 6, "n_head": 6, "n_embd": 384}],
    [{"learning_rate": 3e-3}, {"learning_rate": 3e-4}],
    [{"batch_size": 16}],
    [{"dropout": 0.1}],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--text", default="", help="a text of 1 to 5 MB")
    parser.add_argument("--time", default="10m", help="of each side's whole process")
    parser.add_argument("--trial", default="2m", help="of each of nanoGPT's trials")
    parser.add_argument("--score", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        print(json.dumps({"nats": nanogpt.nats(Path(args.nanogpt), Path(args.score), NAME)}))
        return
    checkout = need_path(args.nanogpt, "--nanogpt", "a checkout of nanoGPT")
    text = need_path(args.text, "--text", "a text of your own")
    with tempfile.TemporaryDirectory() as scratch:
        peer = Peer(nanogpt.copied(checkout, Path(scratch)), text)
        best = peer.tuned(seconds(args.trial))
        flags = ["--data", str(text), "--time", args.time]
        ran = trained(Path(scratch), "ours", flags, LLM_DATA_DIR=f"{scratch}/data")
        ours = bits_per_byte(Path(scratch), "ours", LLM_DATA_DIR=f"{scratch}/data")
        theirs = peer.whole(best, seconds(args.time))
    rows = [
        ["nanoGPT, tuned", f"{theirs['seconds']:.0f} s", f"{theirs['bits_per_byte']:.4f}", "1.000×"],
        ["ours", f"{ran['seconds']:.0f} s", f"{ours:.4f}", f"{ours / theirs['bits_per_byte']:.3f}×"],
    ]
    table([text.name, "whole process", "bits per byte", "ratio"], rows)
    finish("own_text", trials=peer.trials, nanogpt=theirs, ours={"bits_per_byte": ours, "seconds": ran["seconds"]} | ran["events"][0]["model"])


class Peer:
    """nanoGPT on one text."""

    def __init__(self, copy: Path, text: Path):
        import tiktoken

        self.copy, self.trials, self.paces = copy, [], {}
        content = text.read_bytes()  # ends of lines as they are: ours reads the same
        letters = content.decode(errors="replace")
        cut = len(content[: int(0.9 * len(content))].decode(errors="ignore"))
        gpt2 = tiktoken.get_encoding("gpt2")
        ids = gpt2.encode_ordinary(letters[cut:])
        nanogpt.write_tokens(copy, NAME, train=gpt2.encode_ordinary(letters[:cut]), val=ids)
        self.bytes = len(letters[cut:].encode()) - len(gpt2.decode_single_token_bytes(ids[0]))

    def tuned(self, budget: float) -> dict[str, Any]:
        """The best flags, one thing after the other."""
        best, reached = START, self.trial(START, budget)
        for stage in STAGES:
            here = best
            for change in stage:
                found = self.trial(here | change, budget)
                if found < reached:
                    best, reached = here | change, found
        return best

    def trial(self, flags: dict[str, Any], budget: float) -> float:
        ran = self.run(flags, budget)
        told = {name: value for name, value in flags.items() if value != START[name]}
        print(f"trial: {told or 'as it starts'}: {ran['iterations']} iterations, {ran['bits_per_byte']:.4f} bits per byte", flush=True)
        self.trials.append(ran | {"changed": told})
        return ran["bits_per_byte"]

    def whole(self, flags: dict[str, Any], budget: float) -> dict[str, Any]:
        """The best flags in the whole time, compiled where that is worth its own time."""
        ways = [flags, flags | {"compile": True}] if calibrate.has_compiler(torch.device("cpu")) else [flags]
        return self.run(max(ways, key=lambda way: self.iterations(way, budget)), budget)

    def run(self, flags: dict[str, Any], budget: float) -> dict[str, Any]:
        between = max(1, self.iterations(flags, budget) // EVALS)
        count = EVALS * between  # so that it looks, and saves, at its very end
        with tempfile.TemporaryDirectory() as folder:
            how = {"out_dir": folder, "max_iters": count, "lr_decay_iters": count, "warmup_iters": max(1, count // 20)}
            how |= {"min_lr": flags["learning_rate"] / 10, "eval_interval": between, "log_interval": count}
            ran = nanogpt.train(self.copy, **flags | how)
            scoring = ["-m", "benchmarks.own_text", "--nanogpt", str(self.copy), "--score", folder]
            total = child(scoring)["json"]["nats"]
        return {
            "bits_per_byte": total / math.log(2) / self.bytes, "seconds": ran["seconds"], "iterations": count, "flags": flags,
        }  # fmt: skip

    def iterations(self, flags: dict[str, Any], budget: float) -> int:
        """How many fit into the time, by a short run; what each costs does not depend on the rates."""
        shape = tuple(flags[name] for name in ("n_layer", "n_embd", "block_size", "batch_size", "compile", "dropout"))
        if shape not in self.paces:
            with tempfile.TemporaryDirectory() as folder:
                ran = nanogpt.train(self.copy, **flags, out_dir=folder, max_iters=24, log_interval=1, eval_interval=10**6)
            each = sorted(nanogpt.milliseconds(ran["text"])[8:])
            pace = each[len(each) // 2] / 1000
            self.paces[shape] = pace, ran["seconds"] - 24 * pace  # starting, compiling and one look at the validation text
        pace, before = self.paces[shape]
        looks = EVALS * 2 * EVAL_BATCHES / 3  # a forward pass is a third of an iteration
        return int((budget - before) / pace - looks)


if __name__ == "__main__":
    main()
