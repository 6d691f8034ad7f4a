"""Containers, for `deploy/verify.py`: an image from a folder of its own, servers that run in it, and what they print."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from config import ROOT

IMAGE = "my-llm-verify"
KEY = "verify-key"
# As little as an image can be run with: nothing to write on, no capabilities, a user whom it does not know.
LOCKED = "--read-only --cap-drop ALL --security-opt no-new-privileges --user 12345:12345".split()
ENV_KEY = "key-of-the-env-file"
LEFT_OUT = (".git", "venv", ".venv", "data", "checkpoints", "logs", "build", "wheels", "__pycache__", ".*_cache")
ASK = """import json, sys, urllib.error, urllib.request
for path in sys.argv[1:]:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8000" + path) as answer:
            print(json.dumps([answer.status, answer.read().decode()]))
    except urllib.error.HTTPError as error:
        print(json.dumps([error.code, error.read().decode()]))
"""


class Failed(Exception):
    """A check did not hold. The text says what was found."""


class Skipped(Exception):
    """A check that cannot be made here. The text says why, and what would help."""


def expect(holds: object, found: object) -> None:
    """Fails the check unless something holds.

    Raises:
        Failed: with what was found.
    """
    if not holds:
        raise Failed(str(found))


def run(*command: object, folder: Path = ROOT, text: str = "", seconds: float = 1200, **environ: str) -> str:
    """What a command prints.

    Raises:
        Failed: when it fails, with its last words.
    """
    words = list(map(str, command))
    call = {"cwd": folder, "env": {**os.environ, **environ}, "input": text, "capture_output": True, "text": True}
    done = subprocess.run(words, **call, timeout=seconds)
    if done.returncode:
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-6:]
        raise Failed(f"{' '.join(words[:4])} ended with {done.returncode}: {' | '.join(last)}")
    return done.stdout


def wait(condition: Callable[[], object], seconds: float = 60, what: str = "it") -> None:
    """Waits until something holds; what is refused meanwhile does not yet.

    Raises:
        Failed: when it does not in time.
    """
    t0 = time.monotonic()
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        expect(time.monotonic() - t0 < seconds, f"waited {seconds:g} seconds for {what}")
        time.sleep(0.3)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def outside_address() -> str:
    """This machine as others see it. Nothing is sent: the system only looks up which way it would go."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.254", 9))  # an address for documentation, RFC 5737
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


def copy_checkout(folder: Path) -> Path:
    """The checkout without its checkpoints, so that whoever builds from it decides which there are. In its .env there is a key."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    (folder / ".env").write_text(f"LLM_API_KEYS={ENV_KEY}\n")
    return folder


@dataclass
class Server:
    """A container with a server in it.

    Attributes:
        url: where it answers, as this machine sees it; empty without a network.
        target: host and port, as Prometheus on this machine should ask it.
    """

    name: str
    url: str
    target: str

    def printed(self) -> str:
        """Its standard output: what people read."""
        return run("docker", "logs", self.name)

    def logged(self) -> str:
        """Its standard error: the log."""
        return subprocess.run(["docker", "logs", self.name], capture_output=True, text=True).stderr

    def state(self) -> dict:
        return json.loads(run("docker", "inspect", "--format", "{{json .State}}", self.name))

    def ask_inside(self, *paths: str) -> list[tuple[int, str]]:
        """Status and body of some GETs, by a client within the container."""
        lines = run("docker", "exec", self.name, "python", "-c", ASK, *paths).splitlines()
        return [tuple(json.loads(line)) for line in lines]

    def client(self, key: str = KEY) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"X-API-Key": key}, timeout=120)

    def ready(self) -> Server:
        wait(lambda: httpx.get(f"{self.url}/readyz").status_code == 200, 90, "the model")
        return self


@contextlib.contextmanager
def serving(image: str, *flags: str, network: str = "", **environ: str) -> Iterator[Server]:
    """A server in a container that is locked up, for as long as the context lasts.

    Args:
        network: empty publishes a port; host shares this machine's network; none has nobody but itself.
    """
    port, name = free_port(), f"{IMAGE}-{os.urandom(3).hex()}"
    how: dict[str, tuple[list[str], list[str]]] = {
        "": (["--publish", f"127.0.0.1:{port}:8000"], []),
        "host": (["--network", "host", "--no-healthcheck"], ["--host", "0.0.0.0", "--port", str(port)]),
        "none": (["--network", "none", "--health-interval", "2s"], []),
    }
    before, behind = how[network]
    settings = [word for item in environ.items() for word in ("--env", "=".join(item))]
    outside = f"{outside_address() if network == 'host' else '127.0.0.1'}:{port}"
    server = Server(name, "" if network == "none" else f"http://127.0.0.1:{port}", outside)
    try:  # from here on, since docker keeps a container that it could make but not start
        run("docker", "run", "--detach", "--name", name, *LOCKED, *before, *flags, *settings, image, *behind)
        if server.url:
            wait(lambda: httpx.get(f"{server.url}/healthz").status_code == 200, 60, "the server")
        yield server
    except Failed as error:
        raise Failed(f"{error}; its log ends: {server.logged()[-300:]!r}") from error
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True)
