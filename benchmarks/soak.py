"""What a server must survive: clients that leave in mid-stream, thousands of sessions, new checkpoints, and time.

    python -m benchmarks.soak [--aborts 1000] [--sessions 10000] [--minutes 0]      (make soak: 30 minutes)

A small model with random weights writes. During the mixed load a new checkpoint takes over each minute, and each text must come whole,
with all its tokens. Memory and descriptors of the server's process are read while it is idle. They count from where all is warm: as
many models were loaded as are kept, and each kind of request was made. The exit code is 1 when a request or a session was lost, or
something grew. The first half of the mixed load may still move memory about (allocators keep what is between the models that came and
went); a leak would go on in the second half, which is why that one is judged.
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
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.client import Lost, post, server, stream, write_checkpoint
from benchmarks.common import finish, table
from inference.host import EARLIER

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 128, "vocab_size": 2048}
SWAP = 60.0  # seconds between two checkpoints
WARM = 20.0  # seconds of mixed load before anything counts
ALLOWED = {  # the most of each figure
    "lost_sessions": 0,
    "failed": 0,
    "descriptors_grown": 8,  # a few connections to the session file stay open
    "bytes_grown_by_aborts": 32 * 2**20,  # caches fill up
    "bytes_grown_by_sessions": 32 * 2**20,
    "bytes_grown_in_the_second_half": 16 * 2**20,  # the engines of 15 swaps would take four times that
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aborts", type=int, default=1000, help="clients that leave in mid-stream")
    parser.add_argument("--sessions", type=int, default=10000, help="sessions of two requests each")
    parser.add_argument("--minutes", type=float, default=0, help="mixed load after that")
    args = parser.parse_args()
    read: dict[str, Usage] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        write_checkpoint(path, **SMALL)
        with server(path, LLM_SESSION_DB=f"{folder}/sessions.db", LLM_FOLLOW="yes") as (port, process):
            model = Growing(port, path)

            def look(after: str) -> None:
                wait_for_idle(port)
                read[after] = usage(process.pid)

            for _ in range(EARLIER + 1):  # as many as are kept, and the one that answers
                model.swap()
            asyncio.run(aborts(port, 50))
            failed = asyncio.run(mixed(model, WARM, WARM / 2))
            look("start")
            asyncio.run(aborts(port, args.aborts))
            look(f"{args.aborts:,} aborts")
            lost = asyncio.run(sessions(port, args.sessions))
            look(f"{args.sessions:,} sessions")
            before = model.step
            for half in ("the first half", "the second half"):
                failed += asyncio.run(mixed(model, 30 * args.minutes, SWAP))
                look(f"{half} of {args.minutes:g} minutes")
    table(["after", "memory", "descriptors"], [[name, f"{each.bytes / 2**20:.0f} MiB", str(each.opened)] for name, each in read.items()])
    figures = {"lost_sessions": lost, "failed": failed, **growth(*read.values())}
    told = " · ".join(broken(figures)) or "nothing was lost, nothing grew"
    print(f"\ncheckpoints that took over under load: {model.step - before} · {told}")
    finish("soak", minutes=args.minutes, swaps=model.step - before, **figures)
    sys.exit(bool(broken(figures)))


@dataclass(frozen=True)
class Usage:
    """Resident bytes and open descriptors of a process."""

    bytes: int
    opened: int


def usage(pid: int) -> Usage:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return Usage(resident * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def growth(start: Usage, aborts: Usage, sessions: Usage, middle: Usage, end: Usage) -> dict[str, int]:
    """What each part of the load left behind."""
    return {
        "descriptors_grown": end.opened - start.opened,
        "bytes_grown_by_aborts": aborts.bytes - start.bytes,
        "bytes_grown_by_sessions": sessions.bytes - aborts.bytes,
        "bytes_grown_in_the_second_half": end.bytes - middle.bytes,
    }


def broken(figures: dict[str, int]) -> list[str]:
    """The figures that are larger than `ALLOWED`, in words."""
    return [f"{name} is {figures[name]:,}: more than {most:,}" for name, most in ALLOWED.items() if figures[name] > most]


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


@dataclass
class Growing:
    """The model that a server follows, as if it were being trained."""

    port: int
    path: Path
    step: int = 0

    @property
    def earlier(self) -> str:
        """The name of one that was replaced, or is about to be."""
        return f"random@{self.step - 1}"

    def swap(self) -> None:
        """Writes the next checkpoint, and waits until it is the one that answers."""
        self.step += 1
        write_checkpoint(self.path, self.step, **SMALL)
        t0 = time.monotonic()
        while time.monotonic() - t0 < 30:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz") as answer:
                if json.load(answer)["model"]["step"] == self.step:
                    return
            time.sleep(0.1)
        raise SystemExit(f"the checkpoint of step {self.step} did not take over within 30 seconds")


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
            try:
                for turn in range(2):
                    async for _ in stream(port, f"turn {turn}", 2, session_id=name):
                        pass
                reader, writer = await get(port, f"/v1/sessions/{name}")
                lost += b"turn 0" not in (body := await reader.read()) or b"turn 1" not in body
                writer.close()
            except (OSError, Lost) as error:
                lost += 1
                print(error, file=sys.stderr)
            bar.update()

    await asyncio.gather(*(one(number) for number in range(count)))
    bar.close()
    return lost


async def get(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return reader, writer


async def mixed(model: Growing, seconds: float, every: float) -> int:
    """Long and short texts, of this model and the one before, sessions, aborts and nonsense, for so long, and every so many seconds a
    new checkpoint; how many requests failed that should not have."""
    over, failed = time.monotonic() + seconds, 0
    bar = tqdm(total=int(seconds), unit="s", desc="mixed load", leave=False, disable=None)

    async def client(number: int) -> None:
        nonlocal failed
        chance = random.Random(number)
        while time.monotonic() < over:
            kind = chance.choice(["whole", "earlier", "abort", "nonsense", "session"])
            try:
                if kind == "nonsense":
                    reader, writer = await post(model.port, "/v1/generate", {"prompt": 5, "temperature": "hot"})
                    failed += b" 422 " not in await reader.readline()
                    writer.close()
                    continue
                more = {"session": {"session_id": f"mixed-{chance.randrange(50)}"}, "earlier": {"model": model.earlier}}
                events = stream(model.port, "x" * chance.randrange(60), chance.randrange(1, 200), **more.get(kind, {}))
                async for _ in events:
                    if kind == "abort" and chance.random() < 0.2:
                        break
                await events.aclose()
            except (OSError, Lost) as error:
                failed += 1
                print(error, file=sys.stderr)

    async def tick() -> None:
        while time.monotonic() < over:
            await asyncio.sleep(1)
            bar.update()

    async def grow() -> None:
        while time.monotonic() < over:
            await asyncio.to_thread(model.swap)
            await asyncio.sleep(min(every, max(0.0, over - time.monotonic())))

    await asyncio.gather(*(client(number) for number in range(12)), tick(), grow())
    bar.close()
    return failed


if __name__ == "__main__":
    main()
