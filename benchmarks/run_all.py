"""Every benchmark, one after the other: `make bench ARGS="--nanogpt PATH --text input.txt"`.

What needs something that was not given is named and left out, with what it needs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from config import ROOT

NANOGPT, TEXT = "--nanogpt PATH (a checkout)", "--text FILE (tiny Shakespeare, input.txt)"
GPT2, REAL = "TIKTOKEN_CACHE_DIR (GPT-2's vocabulary)", "LLM_TEST_DATA (recordings and photographs)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT, for `step`, `shakespeare` and `own_text`")
    parser.add_argument("--text", default="", help="tiny Shakespeare, for the last two, `ablations` and `tokenizer_speed`")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    runs, peer, text = ["--runs", str(args.runs)], ["--nanogpt", args.nanogpt], ["--text", args.text]
    given = {
        NANOGPT: args.nanogpt, TEXT: args.text, GPT2: os.environ.get("TIKTOKEN_CACHE_DIR"), REAL: os.environ.get("LLM_TEST_DATA"),
    }  # fmt: skip
    benchmarks: dict[str, tuple[list[str], list[str]]] = {  # flags, and what must be given
        "safety": ([], []),
        "head": (runs, []),
        "norm": ([], []),
        "tokenizer_speed": (text + runs, [TEXT, GPT2]),
        "step": (peer + runs, [NANOGPT]),
        "shakespeare": (peer + text + runs, [NANOGPT, TEXT]),
        "own_text": (peer + text, [NANOGPT, TEXT, GPT2]),
        "sampling": ([], []),
        "decode": (runs, []),
        "serving": (runs, []),
        "soak": ([], []),
        "quick": ([], []),
        "planner": ([], []),
        "transfer": ([], []),
        "startup": (runs, []),
        "growth": (runs, []),
        "ablations": (text + runs, [TEXT]),
        "corpus": ([], [GPT2]),
        "multimodal": ([], []),
        "digits": ([], [REAL]),
    }
    failed = False
    for name, (flags, needs) in benchmarks.items():
        print(f"\n== {name}", flush=True)
        if missing := [need for need in needs if not given[need]]:
            print(f"left out: it needs {' and '.join(missing)}")
            continue
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *flags], env=environment).returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
