"""What a server must survive: clients that leave in mid-stream, thousands of sessions, new checkpoints, and time.

    python -m benchmarks.soak [--aborts 1000] [--sessions 10000] [--minutes 0]      (make soak: 30 minutes)

Memory and descriptors of the server's process are read before and after; a small model with random weights writes. During the mixed
load a new checkpoint takes over each minute. The exit code is 1 when something grew or was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tqdm import tqdm

from benchmarks.client import post, server, stream, write_checkpoint
from benchmarks.common import finish, table
from inference.host import EARLIER

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 128, "vocab_size": 2048}
POOL = 8  # descriptors that the session file may take: a few connections stay open
SWAP = 60  # seconds between two checkpoints
ALLOWED = 32 * 2**20  # bytes that a process may take more after than before: caches fill up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aborts", type=int, default=1000, help="clients that leave in mid-stream")
    parser.add_argument("--sessions", type=int, default=10000, help="sessions of two requests each")
    parser.add_argument("--minutes", type=float, default=0, help="mixed load after that")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        write_checkpoint(path, **SMALL)
        with server(path, LLM_SESSION_DB=f"{folder}/sessions.db", LLM_FOLLOW="yes") as (port, process):
            asyncio.run(aborts(port, 50))  # what is allocated once
            for step in range(1, EARLIER + 2):  # as many models as are kept
                swap(port, path, step)
            before = usage(process.pid)
            rows = [["start", *shown(before)]]
            asyncio.run(aborts(port, args.aborts))
            wait_for_idle(port)
            after_aborts = usage(process.pid)
            rows.append([f"{args.aborts:,} aborts", *shown(after_aborts)])
            lost = asyncio.run(sessions(port, args.sessions))
            after_sessions = usage(process.pid)
            rows.append([f"{args.sessions:,} sessions", *shown(after_sessions)])
            failed, swaps = asyncio.run(mixed(port, path, 60 * args.minutes))
            wait_for_idle(port)
            after = usage(process.pid)
            rows.append([f"{args.minutes:g} minutes", *shown(after)])
    table(["after", "memory", "descriptors"], rows)
    grown = [each[0] - before[0] for each in (after_aborts, after_sessions, after)]
    opened = after[1] - before[1]
    told = f"lost sessions: {lost} · failed requests: {failed} · descriptors more than at the start: {opened}"
    print(f"\n{told} · checkpoints swapped under load: {swaps}")
    figures = {"lost_sessions": lost, "failed": failed, "swaps": swaps, "minutes": args.minutes}
    finish("soak", bytes_grown=grown, descriptors_grown=opened, **figures)
    sys.exit(lost > 0 or failed > 0 or opened > POOL or max(grown) > ALLOWED)


def usage(pid: int) -> tuple[int, int]:
    """Resident bytes and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return resident * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def shown(figures: tuple[int, int]) -> list[str]:
    return [f"{figures[0] / 2**20:.0f} MiB", str(figures[1])]


def gauge(port: int, name: str) -> float:
    """A metric's value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def wait_for_idle(port: int) -> None:
    """Every slot must be free again within a second: nobody listens."""
    t0 = time.monotonic()
    while gauge(port, "llm_num_requests_running") + gauge(port, "llm_num_requests_waiting"):
        if time.monotonic() - t0 > 1:
            raise SystemExit("a second after the last client left, the engine still writes")
        time.sleep(0.05)


def swap(port: int, path: Path, step: int) -> None:
    """Writes a checkpoint, and waits until it is the one that answers."""
    write_checkpoint(path, step, **SMALL)
    t0 = time.monotonic()
    while time.monotonic() - t0 < 30:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            if json.load(answer)["model"]["step"] == step:
                return
        time.sleep(0.1)
    raise SystemExit(f"the checkpoint of step {step} did not take over within 30 seconds")


async def aborts(port: int, count: int) -> None:
    """Clients that read two events and leave, eight at a time."""
    bar = tqdm(total=count, desc="aborts", leave=False, disable=None)
    limit = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        async with limit:
            events = stream(port, f"text {number}", 1000)
            seen = 0
            async for _ in events:
                seen += 1
                if seen == 2:
                    break
            await events.aclose()
            bar.update()

    await asyncio.gather(*(one(number) for number in range(count)))
    bar.close()


async def sessions(port: int, count: int) -> int:
    """Sessions of two requests; how many have not both of them afterwards."""
    bar = tqdm(total=count, desc="sessions", leave=False, disable=None)
    limit = asyncio.Semaphore(16)
    lost = 0

    async def one(number: int) -> None:
        nonlocal lost
        async with limit:
            name = f"soak-{number}"
            for turn in range(2):
                async for _ in stream(port, f"turn {turn}", 2, session_id=name):
                    pass
            reader, writer = await get(port, f"/v1/sessions/{name}")
            lost += b"turn 0" not in (body := await reader.read()) or b"turn 1" not in body
            writer.close()
            bar.update()

    await asyncio.gather(*(one(number) for number in range(count)))
    bar.close()
    return lost


async def get(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return reader, writer


async def mixed(port: int, path: Path, seconds: float) -> tuple[int, int]:
    """Long and short texts, sessions, aborts and nonsense, for so long, and now and then a new checkpoint; how many requests failed
    that should not have, and how many checkpoints took over."""
    over, failed, swaps = time.monotonic() + seconds, 0, 0
    bar = tqdm(total=int(seconds), unit="s", desc="mixed load", leave=False, disable=None)

    async def client(number: int) -> None:
        nonlocal failed
        chance = random.Random(number)
        while time.monotonic() < over:
            kind = chance.choice(["whole", "abort", "nonsense", "session"])
            try:
                if kind == "nonsense":
                    reader, writer = await post(port, "/v1/generate", {"prompt": 5, "temperature": "hot"})
                    failed += b" 422 " not in await reader.readline()
                    writer.close()
                    continue
                extra = {"session_id": f"mixed-{chance.randrange(50)}"} if kind == "session" else {}
                events = stream(port, "x" * chance.randrange(60), chance.randrange(1, 200), **extra)
                async for _ in events:
                    if kind == "abort" and chance.random() < 0.2:
                        break
                await events.aclose()
            except (OSError, RuntimeError) as error:
                failed += 1
                print(error, file=sys.stderr)

    async def tick() -> None:
        while time.monotonic() < over:
            await asyncio.sleep(1)
            bar.update()

    async def grow() -> None:
        nonlocal swaps
        while time.monotonic() + SWAP < over:
            await asyncio.sleep(SWAP)
            swaps += 1
            await asyncio.to_thread(swap, port, path, 1000 + swaps)

    await asyncio.gather(*(client(number) for number in range(12)), tick(), grow())
    bar.close()
    return failed, swaps


if __name__ == "__main__":
    main()
