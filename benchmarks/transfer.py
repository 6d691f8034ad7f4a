"""Whether the rates that `--depth` sets for one size are right for another: each depth trained with its own rates, and with multiples.

    python -m benchmarks.transfer [--text FILE] [--depths 1,2,3] [--runs 1]

Each run is as long as the dial says, so the batch grows with the depth as well. The rule holds where the best multiple is near 1 at every
depth, and where little is lost by not searching for it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import finish, median, table, trained

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
RATES = ("learning_rate", "muon_learning_rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="stories", help="what to train on; the embedded stories where none is named")
    parser.add_argument("--depths", default="1,2,3")
    parser.add_argument("--runs", type=int, default=1, help="seeds; the median counts")
    args = parser.parse_args()
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for depth in map(int, args.depths.split(",")):
            found = measure(Path(scratch) / str(depth), args.text, depth, args.runs)
            losses = {multiple: median(values) for multiple, values in found["losses"].items()}
            best = min(losses, key=losses.get)
            searching = f"{best:g}×, {100 * (losses[1.0] / losses[best] - 1):.1f} %"
            rows.append([str(depth), *(f"{found['rates'][name]:.2g}" for name in RATES), *(f"{loss:.3f}" for loss in losses.values()), searching])
            figures[depth] = found | {"best": best, "lost": losses[1.0] / losses[best] - 1}
            table(["depth", "AdamW's rate", "Muon's", *(f"{multiple:g}×" for multiple in MULTIPLES), "best, and what the rule loses"], rows)
            print(flush=True)
    finish("transfer", text=args.text, depths=figures)


def measure(folder: Path, text: str, depth: int, runs: int) -> dict:
    """The rule's rates, and the bits per byte of every seed with each multiple of them."""
    losses: dict[float, list[float]] = {multiple: [] for multiple in MULTIPLES}
    rates: dict[str, float] = {}
    for seed in range(runs):
        for multiple in sorted(MULTIPLES, key=lambda multiple: multiple != 1):  # first as the rule has it
            flags = ["--data", text, "--depth", str(depth), "--seed", str(seed), "--sample_tokens", "0", "--eval_interval", "1000000"]
            if rates:
                flags += [word for name in RATES for word in (f"--{name}", str(multiple * rates[name]))]
            ran = trained(folder, f"{seed}-{multiple:g}", flags)
            if not rates:
                start = next(event for event in ran["events"] if event["event"] == "start")
                rates = {name: start["train"][name] for name in RATES}
            losses[multiple].append(ran["summary"]["val_bpb"])
    return {"rates": rates, "losses": losses}


if __name__ == "__main__":
    main()
