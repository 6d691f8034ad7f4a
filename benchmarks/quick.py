"""The `quick` preset from the command to the finished report, and how good its model is.

    python -m benchmarks.quick [--stories 200] [--runs 1]

Time is that of the whole process, the making of the corpus included. Quality is bits per byte, over all the stories that are held out,
beside their true entropy, and the share of stories the model writes, at temperature 1, that are grammatical and consistent.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import bits_per_byte, child, finish, median, table, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=200, help="stories to judge")
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    results = []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            results.append(one(Path(scratch), args.stories))
    names = list(results[0])
    table(["the quick preset", "median"], [[name, f"{median([run[name] for run in results]):.4g}"] for name in names])
    finish("quick", runs=results)


def one(folder: Path, stories: int) -> dict[str, float]:
    data = {"LLM_DATA_DIR": str(folder / "data")}  # nothing tokenised or measured before
    run = trained(folder, "quick", ["--preset", "quick"], **data)
    reached, entropy = bits_per_byte(folder, "quick", **data), run["summary"]["entropy"]
    code = "import json, sys; import checkpoint; from training.judge import judge_stories\n"
    code += "model, tokenizer, _ = checkpoint.load_model(sys.argv[1]); found = judge_stories(model, tokenizer, int(sys.argv[2]))\n"
    code += "print(json.dumps({'grammatical': found.grammatical / found.written, 'consistent': found.consistent / found.written}))"
    judged = child(["-c", code, str(folder / "c/quick"), str(stories)])["json"]
    return {
        "seconds": run["seconds"],
        "bits per byte": reached,
        "true entropy": entropy,
        "ratio": reached / entropy,
        "grammatical": judged["grammatical"],
        "consistent": judged["consistent"],
    }


if __name__ == "__main__":
    main()
