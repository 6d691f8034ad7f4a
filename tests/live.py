"""A real server on a free port of this process, for the tests that speak HTTP."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

import checkpoint
from config import ServeConfig
from inference.host import Host
from model import GPT
from serve import create_app
from tokenizer import ByteTokenizer

KEY = "prod-key-1"


def save(path: Path, model: GPT, **provenance) -> Path:
    """A checkpoint of a model that was never trained."""
    told = {"run": "tiny", "step": 7, "val_loss": 2.5, "documents": True, **provenance}
    checkpoint.write(path, checkpoint.content_of(model, ByteTokenizer(), told))
    return path


def load(path: Path, **limits) -> Host:
    """A host whose model is loaded, in float32."""
    host = Host(str(path), "cpu", "float32", **{"slots": 4, **limits})
    host.load()
    return host


@contextlib.contextmanager
def serving(host: Host, folder: Path, **settings) -> Iterator[str]:
    """The app over a host, listening; gives its address."""
    values = {"session_db": str(folder / "sessions.db"), "rate_limit_rpm": 0, "api_keys": (KEY,)}
    app = create_app(ServeConfig(**{**values, **settings}), host)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def wait_until(condition, seconds: float = 10) -> None:
    """Waits for something to hold, or fails."""
    t0 = time.monotonic()
    while not condition():
        assert time.monotonic() - t0 < seconds, "waited too long"
        time.sleep(0.005)
