"""The embedded pictures, sounds and stories: how well one model learns all of it in minutes, and what that costs its language.

    python -m benchmarks.multimodal [--time 10m] [--without_text]

The first run is `--preset multimodal` as `make train-multimodal` calls it, judged by generation on rows it never met. The second reads
the stories alone, as many of them as the first did, with the same GPT, vocabulary and optimizer: bits per byte of the one beside the
other's say what seeing and hearing cost.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.common import finish, table, trained
from config import PRESETS
from multimodal.embedded import PARTS, STORIES_SHARE

BATCH = PRESETS["multimodal"]["batch_size"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default=PRESETS["multimodal"]["time"], help="of the first run")
    parser.add_argument("--without_text", action="store_true", help="leave the second run out")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LLM_DATA_DIR"] = f"{scratch}/data"  # nothing made or measured before
        joint = found["joint"] = run(Path(scratch), "joint", ["--time", args.time])
        columns = ("exact", "wer", "cer", "blank", "shuffled", "floor")
        rows = [[name, *(f"{100 * answer[key]:.1f} %" for key in columns)] for name, answer in joint["answers"].items()]
        table(["by generation", *columns], rows)
        print(f"{joint['seconds']:.0f} s of training, {joint['all_seconds'] - joint['seconds']:.0f} s of judging behind it\n")
        if not args.without_text:
            rows = BATCH * STORIES_SHARE / (STORIES_SHARE + sum(part.share for part in PARTS.values()))
            batch = max(1, round(rows))
            alone = ["--time", "", "--max_iters", str(round(joint["steps"] * rows / batch)), "--batch_size", str(batch)]
            text = found["text"] = run(Path(scratch), "text", [*alone, "--mix", ",".join(f"{name}=0" for name in PARTS)])
            sides = {"text alone": text, "joint": joint}
            lines = [[name, f"{side['val_bpb']:.4f}", f"{side['val_bpb'] / text['val_bpb']:.3f}"] for name, side in sides.items()]
            table(["the stories", "bits per byte", "ratio"], lines)
    finish("multimodal", **found)


def run(folder: Path, name: str, flags: list[str]) -> dict:
    """The summary of a run, and the seconds of its whole process."""
    ran = trained(folder, name, ["--preset", "multimodal", *flags])
    return ran["summary"] | {"all_seconds": ran["seconds"]}


if __name__ == "__main__":
    main()
