"""Processes that stay: ranks that run one command line, or one function, after another, without loading torch each time."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import ROOT
from tests.runs import environment

PATIENCE = 120  # seconds that an errand may take: a rank that hangs in a collective would hang all the tests
DRIVER = "import sys; sys.path.insert(0, sys.argv[1]); from tests.crew import serve; serve()"


@dataclass
class Told:
    """What came of an errand on one rank: an exit code or a function's value, and what was printed."""

    value: Any
    out: str
    err: str


class Crew:
    """So many ranks, each a process with a working directory of its own."""

    def __init__(self, *folders: Path):
        self.folders = folders
        self.processes = [self.start(folder) for folder in folders]

    def start(self, folder: Path) -> subprocess.Popen:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", DRIVER, str(ROOT)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment(folder), cwd=folder, **pipes)

    def begin(self, errand: dict[str, Any]) -> None:
        """Sends all ranks on an errand."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank, process in enumerate(self.processes):
            job = {**errand, "rank": rank, "world": len(self.processes), "port": port}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()

    def told(self) -> list[Told]:
        """Waits for all ranks, in order, but not for ever: then the crew is killed, and has said nothing."""
        late = threading.Timer(PATIENCE, self.kill)
        late.start()
        try:
            said = [process.stdout.readline() for process in self.processes]
        finally:
            late.cancel()
        assert all(said), f"a rank has ended, or all were killed after {PATIENCE} s"
        return [Told(**json.loads(line)) for line in said]

    def run(self, *arguments: str) -> list[Told]:
        """Runs `train_cli.py` on all ranks to its end."""
        self.begin({"arguments": arguments})
        return self.told()

    def call(self, function: str, *arguments: Any) -> list[Any]:
        """What `module:function` returns on each rank."""
        self.begin({"function": function, "arguments": arguments})
        told = self.told()
        for each in told:
            assert "Traceback" not in each.err, each.err
        return [each.value for each in told]

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait(60)
            process.stdout.close()


# ---- the other end


def serve() -> None:
    """Does errands until the pipe is closed. What an errand prints is part of its answer."""
    answers = sys.stdout
    for line in sys.stdin:
        job = json.loads(line)
        os.environ.update(
            RANK=str(job["rank"]), LOCAL_RANK=str(job["rank"]), WORLD_SIZE=str(job["world"]),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]),
        )  # fmt: skip
        out, err = io.StringIO(), io.StringIO()
        value = None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                value = do(job)
            except Exception:
                traceback.print_exc()
        print(json.dumps({"value": value, "out": out.getvalue(), "err": err.getvalue()}), file=answers, flush=True)


def do(job: dict[str, Any]) -> Any:
    """An errand: a command line, or a function among all ranks."""
    import torch

    from training import calibrate, distributed

    torch.set_num_threads(1)
    calibrate.matrix_rate = lambda *_: 1e11
    calibrate.seconds_per_token = lambda *_: 1e-6
    if "function" in job:
        module, name = job["function"].split(":")
        ranks = distributed.start("cpu")
        try:
            return getattr(importlib.import_module(module), name)(ranks, *job["arguments"])
        finally:
            distributed.stop()
    import train_cli

    train_cli.STARTED = time.monotonic()
    try:
        train_cli.main(list(job["arguments"]))
    except SystemExit as end:
        return end.code
    return None
