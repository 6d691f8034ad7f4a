"""How fast a large text becomes token shards, beside tiktoken's own batch rate, and what share of a training step waits for its batch.

    TIKTOKEN_CACHE_DIR=FOLDER python -m benchmarks.corpus [--megabytes 1000] [--runs 1]

The text is Python's own library, as often as it takes, one file a document; the tokenizer GPT-2's. Ours reads the files, splits them,
encodes and writes the shards; the peer encodes texts that lie in memory with `encode_ordinary_batch`, a thread for each core.
"""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
import tempfile
import time
from pathlib import Path

from benchmarks.common import finish, median, table

FILE = 100 * 2**20  # bytes of a file of the corpus, about
PIECE = 64 * 2**20  # characters that the peer encodes at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    from config import UserError
    from tokenizer import load_gpt2

    try:
        load_gpt2()
    except UserError as error:
        raise SystemExit(str(error)) from None
    texts = library()
    rates: dict[str, list[float]] = {"ours, files to shards": [], "tiktoken, memory to lists": []}
    with tempfile.TemporaryDirectory() as scratch:
        n_bytes = write_files(Path(scratch) / "text", texts, args.megabytes * 10**6)
        for run in range(args.runs):
            rates["tiktoken, memory to lists"].append(peer(texts, n_bytes))
            seconds, corpus = ours(Path(scratch) / "text", Path(scratch) / f"data{run}")
            rates["ours, files to shards"].append(n_bytes / seconds / 1e6)
        waiting = share_of_waiting(corpus)
    base = median(rates["tiktoken, memory to lists"])
    rows = [[name, f"{median(each):.1f}", f"{median(each) / base:.2f}×"] for name, each in rates.items()]
    table([f"{n_bytes / 1e6:,.0f} MB, {os.cpu_count()} cores", "MB/s", "ratio"], rows)
    print()
    table(["share of a step that waits for its batch", "here"], [[name, f"{100 * share:.2f} %"] for name, share in waiting.items()])
    finish("corpus", megabytes=n_bytes / 1e6, megabytes_per_second=rates, waiting=waiting)


def library() -> list[str]:
    """The files of Python's standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files if "site-packages" not in file.parts]


def write_files(folder: Path, texts: list[str], wanted: int) -> int:
    """Some JSONL files with so many bytes of text, one text a row; each time around the texts begin otherwise. The bytes written."""
    folder.mkdir()
    written = around = 0
    while written < wanted:
        with open(folder / f"{around:03d}.jsonl", "w", encoding="utf-8") as file:
            size = 0
            while size < min(FILE, wanted - written):
                for text in texts:
                    line = f"# {around} {size}\n{text}"
                    file.write(json.dumps({"text": line}) + "\n")
                    size += len(line.encode())
                    if size >= min(FILE, wanted - written):
                        break
            written += size
            around += 1
    return written


def peer(texts: list[str], n_bytes: int) -> float:
    """MB/s of tiktoken over as many bytes, or over 200 MB of them: its rate does not depend on how often."""
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    encoding.encode_ordinary("warm")
    done, t0 = 0, time.perf_counter()
    while done < min(n_bytes, 200 * 10**6):
        group, size = [], 0
        for text in texts:
            group.append(text)
            size += len(text)
            if size >= PIECE:
                break
        encoding.encode_ordinary_batch(group, num_threads=os.cpu_count())
        done += sum(len(text.encode()) for text in group)
    return done / (time.perf_counter() - t0) / 1e6


def ours(text: Path, data: Path):
    """Seconds from the files to a corpus that can be trained on, and the corpus."""
    import data as corpora
    from config import TrainConfig
    from sources import find_source

    corpora.DATA = data
    config = TrainConfig(data=str(text), tokenizer="gpt2")
    t0 = time.perf_counter()
    corpus = corpora.prepare(config, find_source(config), 0, progress=False)
    return time.perf_counter() - t0, corpus


def share_of_waiting(corpus) -> dict[str, float]:
    """Seconds that the batch of a step takes to put together, beside those of the whole step."""
    import torch

    from config import PRESETS, ModelConfig, TrainConfig, take
    from data import Batches
    from training import calibrate, process

    device = torch.device("cpu")
    process.tune_process(device)
    shares = {}
    for preset in ("quick", "small"):
        config, train = take(ModelConfig, PRESETS[preset]), take(TrainConfig, PRESETS[preset])
        batches = Batches(corpus.train, config.block_size, train.batch_size, train.seed)
        batches.batch(0)
        t0 = time.perf_counter()
        for step in range(1, 101):
            batches.batch(step)
        waited = (time.perf_counter() - t0) / 100
        dtype = calibrate.best_dtype(config, device)
        worked = calibrate.measure_seconds_per_token(config, device, dtype) * train.batch_size * config.block_size
        shares[f"{preset}, {train.batch_size} × {config.block_size}, {dtype}"] = waited / (waited + worked)
    return shares


if __name__ == "__main__":
    main()
