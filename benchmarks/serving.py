"""The server under load, over HTTP: throughput, what it adds to the bare engine, and how long a newcomer waits.

    python -m benchmarks.serving [--runs 3] [--streams 16] [--tokens 256]

The 30 M model with random weights, in the dtype that a probe finds fastest. Server and bare engine have as many slots and both write
greedily, as transformers does (requirements-dev.txt; 8 texts at once, in float32 and bfloat16, of which the better counts). They take
turns; the server idles while the others write. Client, server and model share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.client import server, stream, write_checkpoint
from benchmarks.common import child, finish, median, table

PROMPT = " ab cd ef gh ij kl mn op qr st uv wx yz ab cd"  # made-up words of one token each
SPARE = 2  # slots for each stream: newcomers need some
NEWCOMER = " ab" * 399  # 400 tokens with the end-of-text before them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="tokens that each text gets")
    parser.add_argument("--seconds", type=float, default=20, help="how long newcomers come, one each second; at least 5")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="the server's")
    args = parser.parse_args()
    dtype = args.dtype if args.dtype != "auto" else fastest()
    bare = {  # side, batch, dtype
        "engine one": ("ours", 1, dtype), "engine many": ("ours", args.streams, dtype),
        "transformers 8, float32": ("transformers", 8, "float32"), "transformers 8, bfloat16": ("transformers", 8, "bfloat16"),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in ("one", "many", *bare)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        write_checkpoint(path)
        with server(path, LLM_DTYPE=dtype, LLM_SLOTS=str(SPARE * args.streams)) as (port, _):
            asyncio.run(throughput(port, args.streams, 32))  # warm
            for _ in range(args.runs):
                found["one"].append(asyncio.run(throughput(port, 1, args.tokens)))
                found["many"].append(asyncio.run(throughput(port, args.streams, args.tokens)))
                for name, job in bare.items():
                    found[name].append(alone(*job, args))
            waits, pauses = asyncio.run(newcomers(port, args.streams, max(5.0, args.seconds)))
    speed = {name: median(values) for name, values in found.items()}
    speed["transformers 8"] = max(speed["transformers 8, float32"], speed["transformers 8, bfloat16"])
    figures = {
        "to transformers' batch 8": speed["many"] / speed["transformers 8"],
        "to our own batch 1": speed["many"] / speed["one"],
        "overhead per token, 1 stream": speed["engine one"] / speed["one"] - 1,
        f"overhead per token, {args.streams} streams": speed["engine many"] / speed["many"] - 1,
        f"time to first token of {len(waits)} newcomers, p95 (s)": quantile(waits, 0.95),
        "longest pause of a running stream (s)": max(pauses),
    }
    table([f"30 M, {dtype}", "tokens/s"], [[name, f"{value:,.0f}"] for name, value in speed.items()])
    print()
    table(["figure", "here"], [[name, f"{value:.3f}"] for name, value in figures.items()])
    finish("serving", dtype=dtype, tokens_per_second=found, figures=figures, newcomers=len(waits))


def alone(side: str, batch: int, dtype: str, args: argparse.Namespace) -> float:
    """Tokens a second of a side without HTTP, in a process of its own."""
    flags = ["--tokens", str(args.tokens), "--slots", str(SPARE * args.streams), "--measure", side, "decode", str(batch), dtype]
    return child(["-m", "benchmarks.decode", *flags])["json"]["tokens_per_second"]


def fastest() -> str:
    import torch

    from inference.weights import fastest_dtype

    return str(fastest_dtype(torch.device("cpu"))).removeprefix("torch.")


async def throughput(port: int, streams: int, tokens: int) -> float:
    """Tokens a second of so many streams together, from the first request to the last token."""

    async def one() -> int:
        async for _, event in stream(port, PROMPT, tokens, temperature=0):
            last = event
        return last["usage"]["completion_tokens"]

    t0 = time.monotonic()
    written = await asyncio.gather(*(one() for _ in range(streams)))
    return sum(written) / (time.monotonic() - t0)


async def newcomers(port: int, streams: int, seconds: float) -> tuple[list[float], list[float]]:
    """While streams run without end, a prompt of 400 tokens comes each second: their waits, and the pauses of the others."""
    waits: list[float] = []
    pauses: list[float] = []
    over = time.monotonic() + seconds

    async def run(seed: int) -> None:
        while time.monotonic() < over:
            before = None
            async for at, _ in stream(port, PROMPT, 400, seed=seed):
                if before:
                    pauses.append(at - before)
                before = at

    async def come(seed: int) -> None:
        t0, came = time.monotonic(), []
        async for at, _ in stream(port, NEWCOMER, 32, seed=seed):
            came.append(at - t0)  # to the end: who leaves writes nothing more
        waits.append(came[0])

    running = [asyncio.create_task(run(seed)) for seed in range(streams)]
    await asyncio.sleep(1)
    coming = []
    while time.monotonic() < over - 2:
        coming.append(asyncio.create_task(come(len(coming))))
        await asyncio.sleep(1)
    await asyncio.gather(*running, *coming)
    return waits, pauses


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    main()
