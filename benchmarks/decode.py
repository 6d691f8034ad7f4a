"""Tokens a second of the inference engine, beside transformers' `generate` and llama.cpp.

    python -m benchmarks.decode [--runs 3] [--tokens 128]

All write greedily with the 30 M classic model (6 layers, 6 heads, 384 wide, block 512, vocabulary 50,257) and random weights;
the prompt is 16 tokens, or 400 for the reading of a prompt. Each side is a process of its own, and they take turns.
transformers comes with requirements-dev.txt. llama.cpp is left out unless it is installed, which compiles it for a quarter of an
hour: `pip install llama-cpp-python`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path

from benchmarks.common import child, finish, median, table

PROMPT, LONG, BLOCK, VOCABULARY = 16, 400, 512, 50257
SIDES = {  # side: what it can be measured at
    "ours": [
        ("decode", 1, "float32"), ("decode", 16, "float32"), ("decode", 1, "bfloat16"), ("decode", 16, "bfloat16"),
        ("decode", 1, "int8"), ("decode", 16, "int8"), ("prefill", 1, "float32"), ("prefill", 1, "bfloat16"),
    ],
    "transformers": [
        ("decode", 1, "float32"), ("decode", 8, "float32"), ("decode", 16, "float32"), ("decode", 1, "bfloat16"),
        ("decode", 8, "bfloat16"), ("decode", 16, "bfloat16"),
    ],
    "llama.cpp": [("decode", 1, "float32"), ("decode", 1, "int8"), ("prefill", 1, "float32")],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="tokens that each text gets")
    parser.add_argument("--slots", type=int, default=0, help="slots of our engine; 0 is one for each text")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of every side; 0 is one per core")
    parser.add_argument("--measure", nargs=4, metavar=("SIDE", "WHAT", "BATCH", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        side, what, batch, dtype = args.measure
        measure = {"ours": ours, "transformers": transformers, "llama.cpp": llama}[side]
        print(json.dumps({"tokens_per_second": measure(what, int(batch), dtype, args)}))
        return
    jobs = [(side, *job) for side, jobs in SIDES.items() if installed(side) for job in jobs]
    found: dict[tuple, list[float]] = {job: [] for job in jobs}
    for _ in range(args.runs):
        for job in list(found):
            flags = ["--tokens", str(args.tokens), "--threads", str(args.threads), "--measure", *map(str, job)]
            try:
                found[job].append(child(["-m", "benchmarks.decode", *flags])["json"]["tokens_per_second"])
            except SystemExit as error:
                if job[0] == "ours":
                    raise
                print(f"left out: {' '.join(map(str, job))}, since {str(error).splitlines()[0]}")
                del found[job]
    speed = {job: median(values) for job, values in found.items()}
    rows = [
        [f"{what}, {batch} at once, {dtype}", side, f"{value:,.0f}"]
        for (side, what, batch, dtype), value in sorted(speed.items(), key=lambda item: item[0][1:])
    ]
    table(["30 M model", "by", "tokens/s"], rows)
    print()
    ratios = compare(speed)
    table(["ratio", "here"], [[name, f"{value:.2f}×"] for name, value in ratios.items()])
    if not installed("llama.cpp"):
        print("\nllama.cpp was left out: pip install llama-cpp-python")
    finish("decode", tokens_per_second={" ".join(map(str, job)): v for job, v in found.items()}, ratios=ratios)


def installed(side: str) -> bool:
    needed = {"ours": [], "transformers": ["transformers"], "llama.cpp": ["llama_cpp"]}[side]
    return all(importlib.util.find_spec(name) for name in needed)


def compare(speed: dict[tuple, float]) -> dict[str, float]:
    """The ratios that are asked for, of those sides that were measured."""
    pairs = {
        "batch 1, float32, to transformers": (("ours", "decode", 1, "float32"), ("transformers", "decode", 1, "float32")),
        "batch 1, float32, to llama.cpp f32": (("ours", "decode", 1, "float32"), ("llama.cpp", "decode", 1, "float32")),
        "batch 1, int8, to llama.cpp q8_0": (("ours", "decode", 1, "int8"), ("llama.cpp", "decode", 1, "int8")),
        "prompt, float32, to llama.cpp f32": (("ours", "prefill", 1, "float32"), ("llama.cpp", "prefill", 1, "float32")),
        "batch 16 to transformers' batch 8, float32": (
            ("ours", "decode", 16, "float32"), ("transformers", "decode", 8, "float32"),
        ),
        "batch 16 to transformers' batch 8, each in its better dtype": (
            ("ours", "decode", 16, ""), ("transformers", "decode", 8, ""),
        ),
        "batch 16 to transformers' batch 16, the same": (("ours", "decode", 16, ""), ("transformers", "decode", 16, "")),
        "batch 16 to our batch 1, bfloat16": (("ours", "decode", 16, "bfloat16"), ("ours", "decode", 1, "bfloat16")),
    }  # fmt: skip
    best = dict(speed)
    for side, what, batch, dtype in speed:
        if dtype in ("float32", "bfloat16"):
            job = (side, what, batch, "")
            best[job] = max(best.get(job, 0), speed[side, what, batch, dtype])
    return {name: best[a] / best[b] for name, (a, b) in pairs.items() if a in best and b in best}


def ours(what: str, batch: int, dtype: str, args: argparse.Namespace) -> float:
    import torch

    from config import ModelConfig
    from inference import weights
    from inference.engine import Engine
    from inference.request import Request, Settings
    from model import GPT
    from tokenizer import ByteTokenizer
    from training import process

    process.tune_process(torch.device("cpu"), args.threads)
    model = GPT(ModelConfig()).eval()
    int8 = dtype == "int8"
    weights.prepare(model, torch.bfloat16 if int8 else getattr(torch, dtype), int8=int8)
    engine = Engine(model, ByteTokenizer(), slots=max(batch, args.slots))

    def write(prompt: int, tokens: int) -> list[Request]:
        settings = Settings(max_new_tokens=tokens, temperature=0, ignore_eos=True)  # no seed: it may ask to be written alone
        texts = torch.randint(VOCABULARY, (batch, prompt)).tolist()
        requests = [Request(ids, settings, lambda piece: None) for ids in texts]
        engine.run(requests)
        return requests

    write(PROMPT, 8)
    if what == "prefill":
        requests = write(LONG, 1)
        return batch * LONG / (requests[0].finished - requests[0].admitted)
    t0 = time.perf_counter()
    write(PROMPT, args.tokens)
    return batch * args.tokens / (time.perf_counter() - t0)


def transformers(what: str, batch: int, dtype: str, args: argparse.Namespace) -> float:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from training import process

    process.tune_process(torch.device("cpu"), args.threads)
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": BLOCK, "vocab_size": VOCABULARY}
    model = GPT2LMHeadModel(GPT2Config(**shape)).eval().to(getattr(torch, dtype))
    how = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": True}

    def write(tokens: int) -> None:
        ids = torch.randint(VOCABULARY, (batch, PROMPT))
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **how)

    write(8)
    t0 = time.perf_counter()
    write(args.tokens)
    return batch * args.tokens / (time.perf_counter() - t0)


def llama(what: str, batch: int, dtype: str, args: argparse.Namespace) -> float:
    import numpy as np
    import torch
    from llama_cpp import Llama

    from config import ModelConfig
    from model import GPT
    from tokenizer import ByteTokenizer
    from training.gguf_export import write_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_file(path, GPT(ModelConfig()), ByteTokenizer(), "q8_0" if dtype == "int8" else "f32")
        threads = args.threads or torch.get_num_threads()  # as the other sides
        model = Llama(str(path), n_ctx=BLOCK, n_batch=BLOCK, n_threads=threads, n_threads_batch=threads, verbose=False)
    prompt = np.random.default_rng(0).integers(VOCABULARY, size=LONG if what == "prefill" else PROMPT).tolist()
    model.eval(prompt[:8])
    model.reset()
    t0 = time.perf_counter()
    model.eval(prompt)
    if what == "prefill":
        return len(prompt) / (time.perf_counter() - t0)
    for number in range(args.tokens):  # the prompt gives the first
        likeliest = int(np.argmax(np.ctypeslib.as_array(model._ctx.get_logits(), shape=(VOCABULARY,))))
        if number < args.tokens - 1:
            model.eval([likeliest])
    return args.tokens / (time.perf_counter() - t0)


if __name__ == "__main__":
    main()
