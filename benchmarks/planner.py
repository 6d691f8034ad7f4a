"""The size that `--time` chooses, beside the fixed presets in the same time, on texts that the rule was not set by.

    python -m benchmarks.planner [--time 2m] [--neighbours]

Three texts that are on most machines: Python's own library, torch's C++ headers, and the copyright notices of the installed packages
(left out where there are none). Every side gets the whole process for `--time`; what it reached is told in bits per byte, so that vocabularies
compare, over the whole validation text. Vocabulary and tokens are made and the machine is measured beforehand, for all sides alike.
With --neighbours also the next smaller and the next larger depth, to see whether the choice was the best.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import bits_per_byte, finish, table, trained

MOST = 5 * 10**6  # bytes of a text
PRESETS = ("quick", "small-modern", "small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default="2m")
    parser.add_argument("--neighbours", action="store_true", help="one depth less and one more as well")
    args = parser.parse_args()
    found: dict[str, dict[str, dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LLM_DATA_DIR"] = f"{scratch}/data"
        for name, files in {"Python's library": library(), "copyright notices": notices(), "torch's headers": headers()}.items():
            text = "\n".join(take(files))
            if len(text) < MOST / 10:
                print(f"left out: {name}, of which this machine has {len(text.encode()):,} bytes")
                continue
            path = Path(scratch) / f"{len(found)}.txt"
            path.write_text(text, encoding="utf-8")
            found[name] = measure(path, args)
    rows = [
        [text, side, f"{run['parameters'] / 1e6:.1f} M", f"{run['val_bpb']:.4f}", f"{run['val_bpb'] / sides['--time alone']['val_bpb']:.3f}×"]
        for text, sides in found.items() for side, run in sides.items()
    ]  # fmt: skip
    table(["text", "size by", "parameters", "bits per byte", "ratio"], rows)
    finish("planner", time=args.time, runs=found)


def measure(text: Path, args: argparse.Namespace) -> dict[str, dict]:
    """The summaries of the runs on one text."""
    common = ["--data", str(text), "--time", args.time]
    run(text, "before", ["--data", str(text), "--time", "5s"])
    sides = {"--time alone": run(text, "auto", common)}
    for preset in PRESETS:
        tokenizer = [] if preset == "quick" else ["--tokenizer", "bpe", "--vocab_size", "0"]  # GPT-2's would need a download
        sides[preset] = run(text, preset, [*common, "--preset", preset, *tokenizer])
    if args.neighbours:
        chosen = sides["--time alone"]["depth"]
        for depth in (chosen - 1, chosen + 1):
            if depth:
                sides[f"--depth {depth}"] = run(text, f"depth{depth}", [*common, "--depth", str(depth)])
    return sides


def run(text: Path, name: str, flags: list[str]) -> dict:
    """The summary of a run, and its depth."""
    folder = text.with_suffix("")
    ran = trained(folder, name, flags)
    return ran["summary"] | {"depth": ran["events"][0]["model"]["n_layer"], "val_bpb": bits_per_byte(folder, name)}


def take(texts: Iterator[str]) -> Iterator[str]:
    """Texts until there are bytes enough."""
    size = 0
    for text in texts:
        yield text
        size += len(text.encode())
        if size > MOST:
            return


def library() -> Iterator[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    return (file.read_text(encoding="utf-8", errors="ignore") for file in files if "site-packages" not in file.parts)


def notices() -> Iterator[str]:
    files = sorted(Path("/usr/share/doc").glob("*/copyright"))
    return (file.read_text(encoding="utf-8", errors="ignore") for file in files)


def headers() -> Iterator[str]:
    import torch

    files = sorted((Path(torch.__file__).parent / "include").rglob("*.h"))
    return (file.read_text(encoding="utf-8", errors="ignore") for file in files)


if __name__ == "__main__":
    main()
