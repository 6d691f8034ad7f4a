"""How fast each tokenizer encodes, beside tiktoken's own GPT-2: all give NumPy arrays. Ours of GPT-2's vocabulary, and of one that was
learned, run tiktoken's code as well, with a pattern that is faster to search for.

    TIKTOKEN_CACHE_DIR=FOLDER python -m benchmarks.tokenizer_speed --text FILE [--runs 5]
"""

from __future__ import annotations

import argparse
import time

import tokenizer as tokenizers
from benchmarks.common import finish, median, need_path, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="", help="a text file of some megabytes")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    text = need_path(args.text, "--text", "a text to encode").read_text(encoding="utf-8")
    import tiktoken

    peer = tiktoken.get_encoding("gpt2")
    sides = {
        "tiktoken gpt2": lambda: peer.encode_to_numpy(text, disallowed_special=()),
        "gpt2": bind(tokenizers.load_gpt2(), text),
        "bpe of 2,048": bind(tokenizers.train_bpe([text], 2048), text),
        "char": bind(tokenizers.CharTokenizer(text), text),
        "byte": bind(tokenizers.ByteTokenizer(), text),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.runs):
        for name, work in sides.items():
            t0 = time.perf_counter()
            work()
            rates[name].append(len(text.encode()) / (time.perf_counter() - t0) / 1e6)
    base = median(rates["tiktoken gpt2"])
    table(
        ["encoding one text, one thread", "MB/s", "ratio"],
        [[n, f"{median(r):.1f}", f"{median(r) / base:.2f}×"] for n, r in rates.items()],
    )
    finish("tokenizer_speed", megabytes_per_second=rates)


def bind(tokenizer: tokenizers.Tokenizer, text: str):
    return lambda: tokenizer.encode(text)


if __name__ == "__main__":
    main()
