"""What each choice of the small recipe is worth: tiny Shakespeare by character, with one thing taken away or put otherwise at a time.

    python -m benchmarks.ablations --text input.txt [--iterations 400] [--runs 3]

All runs have the same steps and start from the same seeds. Time is that of the steps alone, so that it compares beside start-up.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import finish, median, need_path, table, trained

CHANGES = {
    "the shakespeare preset": [],
    "AdamW in place of Muon, at Muon's companion's rate": ["--optimizer", "adamw"],
    "the same at 3e-3": ["--optimizer", "adamw", "--learning_rate", "3e-3"],
    "the same at 1e-3": ["--optimizer", "adamw", "--learning_rate", "1e-3"],
    "GPT-2's block (classic)": ["--architecture", "classic"],
    "cosine to a tenth in place of linear to zero": ["--schedule", "cosine", "--final_rate", "0.1"],
    "AdamW's rate 3e-4, the default": ["--learning_rate", "3e-4"],
    "float32": ["--dtype", "float32"],
    "bfloat16": ["--dtype", "bfloat16"],
    "one thread": ["--threads", "1"],
    "compiled": ["--compile", "on"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="", help="tiny Shakespeare, input.txt")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    text = need_path(args.text, "--text", "tiny Shakespeare")
    found: dict[str, list[dict]] = {name: [] for name in CHANGES}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(args.runs):
            for name, flags in CHANGES.items():
                common = ["--data", str(text), "--max_iters", str(args.iterations), "--eval_interval", str(args.iterations)]
                folder = Path(scratch) / f"{len(found[name])}-{list(CHANGES).index(name)}"
                found[name].append(run(folder, [*common, "--seed", str(seed), *flags]))
    rows = [
        [name, f"{median([each['ms'] for each in runs]):.1f}", f"{median([each['val_loss'] for each in runs]):.4f}"]
        for name, runs in found.items()
    ]
    table([f"{args.iterations} steps", "ms a step", "val loss, nats/char"], rows)
    finish("ablations", iterations=args.iterations, runs=found)


def run(folder: Path, flags: list[str]) -> dict[str, float]:
    ran = trained(folder, "a", ["--preset", "shakespeare", *flags, "--sample_tokens", "0"])
    steps = [event["dt"] for event in ran["events"] if event["event"] == "step"]
    return {"ms": 1e3 * median(steps), "val_loss": ran["summary"]["val_loss"]}


if __name__ == "__main__":
    main()
