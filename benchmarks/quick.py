"""The `quick` preset from the command to the finished report, and how good its model is.

    python -m benchmarks.quick [--stories 200] [--runs 1]

Time is that of the whole process, the making of the corpus included (its cache is left out with --cold). Quality is bits per
byte beside the true entropy of the stories, and the share of stories the model writes, at temperature 1, that are
grammatical and consistent.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.common import child, finish, median, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=200, help="stories to judge")
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    results = []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["LLM_DATA_DIR"] = f"{scratch}/data"  # nothing tokenised or measured before
            results.append(one(Path(scratch), args.stories))
    names = list(results[0])
    table(["the quick preset", "median"], [[name, f"{median([run[name] for run in results]):.4g}"] for name in names])
    finish("quick", runs=results)


def one(folder: Path, stories: int) -> dict[str, float]:
    out = ["--out_dir", str(folder / "c"), "--log_dir", str(folder / "l"), "--run", "quick"]
    run = child(["train_cli.py", "--preset", "quick", *out])
    summary = json.loads((folder / "l/quick/summary.json").read_text())
    code = "import json, sys; import checkpoint; from training.judge import judge_stories\n"
    code += "model, tokenizer, _ = checkpoint.load_model(sys.argv[1]); found = judge_stories(model, tokenizer, int(sys.argv[2]))\n"
    code += "print(json.dumps({'grammatical': found.grammatical / found.written, 'consistent': found.consistent / found.written}))"
    judged = child(["-c", code, str(folder / "c/quick"), str(stories)])["json"]
    return {
        "seconds": run["seconds"],
        "bits per byte": summary["val_bpb"],
        "true entropy": summary["entropy"],
        "ratio": summary["val_bpb"] / summary["entropy"],
        "grammatical": judged["grammatical"],
        "consistent": judged["consistent"],
    }


if __name__ == "__main__":
    main()
