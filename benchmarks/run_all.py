"""Every benchmark, one after the other: `make bench ARGS="--nanogpt PATH --text input.txt"`.

What needs something that was not given is named and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from config import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT, for `step`, `shakespeare` and `own_text`")
    parser.add_argument("--text", default="", help="tiny Shakespeare, for those, `ablations` and `tokenizer_speed`")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    runs = ["--runs", str(args.runs)]
    peer, text = ["--nanogpt", args.nanogpt], ["--text", args.text]
    benchmarks = {
        "safety": [],
        "head": runs,
        "norm": [],
        "tokenizer_speed": text + runs if args.text else None,
        "step": peer + runs if args.nanogpt else None,
        "shakespeare": peer + text + runs if args.nanogpt and args.text else None,
        "own_text": peer + text if args.nanogpt and args.text and os.environ.get("TIKTOKEN_CACHE_DIR") else None,
        "sampling": [],
        "decode": runs,
        "serving": runs,
        "soak": [],
        "quick": [],
        "planner": [],
        "transfer": [],
        "startup": runs,
        "growth": runs,
        "ablations": text + runs if args.text else None,
        "corpus": [] if os.environ.get("TIKTOKEN_CACHE_DIR") else None,
        "multimodal": [],
        "digits": [] if os.environ.get("LLM_TEST_DATA") else None,
    }
    failed = False
    for name, flags in benchmarks.items():
        print(f"\n== {name}", flush=True)
        if flags is None:
            print("left out: it needs --nanogpt PATH (a checkout), --text FILE (tiny Shakespeare, input.txt), LLM_TEST_DATA or TIKTOKEN_CACHE_DIR")
            continue
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *flags], env=environment).returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
