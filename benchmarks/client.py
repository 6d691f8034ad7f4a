"""A server to measure, and a client so plain that it costs the measured machine little: sockets, asyncio, no HTTP library."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from config import ROOT


def write_checkpoint(path: Path, step: int = 0, **shape) -> None:
    """A checkpoint with random weights, by default the 30 M model, and a vocabulary of made-up words."""
    import torch

    import checkpoint
    from config import ModelConfig
    from model import GPT
    from tokenizer import BPETokenizer

    torch.manual_seed(0)
    config = ModelConfig(**shape)
    letters = " abcdefghijklmnopqrstuvwxyz0123456789"
    words = ("".join(each).encode() for each in itertools.product(letters, repeat=3))
    ranks = [bytes([i]) for i in range(256)] + list(itertools.islice(words, config.vocab_size - 257))
    provenance = {"run": "random", "step": step, "val_loss": None, "documents": True}
    content = checkpoint.content_of(GPT(config), BPETokenizer(ranks), provenance)
    checkpoint.write(path, content)


@contextlib.contextmanager
def server(checkpoint: Path, **environment: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """A server on a free port, ready to answer; its port and process. It is told to stop in the end, and must exit with 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"LLM_RATE_LIMIT_RPM": "0", "LLM_LOG_LEVEL": "WARNING", "LLM_SESSION_DB": f"{folder}/sessions.db"}
        own = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}  # no keys, no users, no limits
        env = {**own, **quiet, "LLM_CHECKPOINT": str(checkpoint), **environment}
        command = [sys.executable, str(ROOT / "serve.py"), "--port", str(port)]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        try:
            wait_until_ready(port, process)
            yield port, process
            process.terminate()
            assert process.wait(60) == 0, "the server did not stop cleanly"
        finally:
            process.kill()


def wait_until_ready(port: int, process: subprocess.Popen, seconds: float = 120) -> None:
    t0 = time.monotonic()
    while time.monotonic() - t0 < seconds:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode} before it was ready")
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
            return
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


async def post(port: int, path: str, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a request; what comes back is the caller's to read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return reader, writer


class Lost(RuntimeError):
    """A text that did not come, or not as a whole."""


async def stream(port: int, prompt: str, tokens: int, **settings) -> AsyncIterator[tuple[float, dict]]:
    """The events of a streamed text with the instants they came at.

    Raises:
        Lost: when the answer is another status than 200, tells an error, or ends without `[DONE]` or any of its tokens.
    """
    body = {"prompt": prompt, "max_new_tokens": tokens, "stream": True, "ignore_eos": True, **settings}
    reader, writer = await post(port, "/v1/generate", body)
    event: dict = {}
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise Lost(f"{status.decode().strip()}: {(await reader.read()).decode()[-300:]}")
        while (line := await reader.readline()) and line != b"data: [DONE]\n":
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise Lost(f"in mid-stream: {event['error']}")
                yield time.monotonic(), event
        written = event.get("usage", {}).get("completion_tokens")
        if not line or written != tokens:
            raise Lost(f"{written} of {tokens} tokens, {'then [DONE]' if line else 'without [DONE]'}; last: {event}"[:300])
    finally:
        writer.close()
