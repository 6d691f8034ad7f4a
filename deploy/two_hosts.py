"""Trains on two hosts, and compares every loss with that of one host: `make verify-cluster`.

The hosts are network namespaces of this machine with a cable (a veth pair) between them. Each has its own address, its own
name and its own disk; nothing of what one writes is seen by the other, but for one folder that they share. Needs Linux and root.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = "the a cat dog sat ran on under mat tree and big red small blue".split()
SHAPE = "--architecture modern --n_layer 2 --n_head 2 --n_embd 24 --block_size 16 --tokenizer char --vocab_size 0"
STEPS = "--max_iters 20 --eval_interval 10 --batch_size 8 --micro_batch_size 2 --optimizer muon --learning_rate 0.01"
PLAIN = "--dtype float32 --device cpu --compile off --sample_tokens 0 --no-progress"
TOLERANCE = 1e-5  # nats: the order of sums over the network may differ


@dataclass(frozen=True)
class Host:
    """A network namespace with an address, and a folder that stands for its disk."""

    name: str
    address: str
    disk: Path


def main() -> int:
    """Runs all comparisons; 0 when all held, 1 when one did not, 3 where it cannot be tried."""
    if reason := missing():
        print(f"not tried: {reason}")
        return 3
    with tempfile.TemporaryDirectory() as folder, cabled(Path(folder)) as hosts:
        return compare(Path(folder), hosts)


def missing() -> str:
    """Why two hosts cannot be made here; nothing where they can."""
    if sys.platform != "linux" or os.geteuid():
        return "network namespaces need Linux and root"
    if absent := [name for name in ("ip", "unshare", "mount") if not shutil.which(name)]:
        return f"{', '.join(absent)} is missing: install iproute2 and util-linux"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return tried.stderr.strip()


@contextlib.contextmanager
def cabled(folder: Path) -> Iterator[list[Host]]:
    """Two hosts with a cable between them."""
    hosts = []
    for end, number in (("a", 1), ("b", 2)):
        host = Host(f"llm-{os.getpid()}-{end}", f"10.77.0.{number}", folder / f"disk-{end}")
        host.disk.mkdir()
        hosts.append(host)
    (folder / "disk").mkdir()
    (folder / "shared").mkdir()
    (folder / "hosts").write_text("".join(f"{host.address} {host.name}\n" for host in hosts) + "127.0.0.1 localhost\n")
    try:
        for host in hosts:
            ip("netns", "add", host.name)
        ip("link", "add", "cable", "netns", hosts[0].name, "type", "veth", "peer", "cable", "netns", hosts[1].name)
        for host in hosts:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "cable")
            ip("-n", host.name, "link", "set", "cable", "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            kill_all(host)
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def compare(folder: Path, hosts: list[Host]) -> int:
    """The comparisons, one line each."""
    chance = random.Random(1)
    text = "\n".join(" ".join(chance.choices(WORDS, k=12)) for _ in range(200))
    for place in (folder / "shared", *(host.disk for host in hosts)):
        (place / "text.txt").write_text(text)
    disk, shared = folder / "disk", folder / "shared"

    finished(here(folder, shared, "one"))
    one = losses(shared, "one")
    print(f"     one host, 2 processes: {len(one)} steps, the last with a loss of {one[max(one)]:.6f}", flush=True)
    good = []
    finished(*on(folder, hosts, disk, "two"))
    good.append(told("two hosts, each with its own disk", losses(hosts[0].disk, "two"), one))
    good.append(report("the second host's disk holds no checkpoint", not (hosts[1].disk / "out").exists()))
    finished(*on(folder, hosts, shared, "shards", "--fsdp"))
    good.append(told("two hosts, one model in shards on a shared disk", losses(shared, "shards"), one))
    refused = finished(*on(folder, hosts, disk, "apart", "--fsdp"), code=1)
    good.append(report("shards on disks of their own are refused, naming --out_dir", "pass an --out_dir that all" in refused))
    endless = ("--fsdp", "--max_iters", "1000000")
    begun = on(folder, hosts, shared, "lost", *endless)
    after_a_save(shared / "out" / "lost")
    begun[1].terminate()
    ended(begun)
    stopped, done = steps_saved(shared, "lost"), max(losses(shared, "lost")) + 1
    good.append(report(f"one host is told to leave: both save step {done} and stop", stopped == done))
    begun = on(folder, hosts, shared, "lost", "--resume")
    after_a_save(shared / "out" / "lost", stopped)
    kill_all(hosts[1])
    ended(begun)
    saved = steps_saved(shared, "lost")
    finished(here(folder, shared, "lost", "--resume", "--max_iters", str(saved + 20)))
    whole = sorted(losses(shared, "lost")) == list(range(saved + 20))
    good.append(report(f"one host dies: the other goes on alone from step {saved}", whole))
    return 0 if all(good) else 1


def torchrun(*arguments: str, script: tuple[str, ...]) -> list[str]:
    """A launch of the training. Without the `--` torchrun takes our --run for the beginning of its own --run-path."""
    return [sys.executable, "-m", "torch.distributed.run", *arguments, "--", str(ROOT / "train_cli.py"), *script]


def flags(place: Path, run: str, *more: str) -> tuple[str, ...]:
    folders = ("--data", f"{place}/text.txt", "--out_dir", f"{place}/out", "--log_dir", f"{place}/logs", "--run", run)
    return (*folders, *(() if "--resume" in more else (*SHAPE.split(), *STEPS.split(), *PLAIN.split())), *more)


def here(folder: Path, place: Path, run: str, *more: str) -> subprocess.Popen:
    """Two processes on this machine."""
    launch = torchrun("--standalone", "--nproc_per_node", "2", script=flags(place, run, *more))
    return start(launch, data=folder / "data")


def on(folder: Path, hosts: list[Host], place: Path, run: str, *more: str) -> list[subprocess.Popen]:
    """One process on each host; what stands at `folder`/disk is each one's own."""
    enter = 'hostname "$0" && mount --bind "$1" "$2" && mount --bind "$3" /etc/hosts && shift 3 && exec "$@"'
    begun = []
    for host in hosts:
        meet = ("--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{hosts[0].name}:29400", "--rdzv_id", run)
        launch = torchrun(*meet, script=flags(place, run, *more))
        inside = ["ip", "netns", "exec", host.name, "unshare", "--uts", "--mount", "sh", "-c", enter, host.name]
        command = [*inside, str(host.disk), str(folder / "disk"), str(folder / "hosts"), *launch]
        begun.append(start(command, data=host.disk / "data"))
    return begun


def start(command: list[str], data: Path, **environ: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LLM_DATA_DIR": str(data), **environ}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


def finished(*processes: subprocess.Popen, code: int = 0) -> str:
    """Waits for an end with this exit code, and returns what was said.

    Raises:
        SystemExit: for another end, with what was said.
    """
    said = [process.communicate(timeout=300)[0] for process in processes]
    if any(process.returncode != code for process in processes):
        raise SystemExit("\n".join(said))
    return "\n".join(said)


def after_a_save(run: Path, step: int = 1) -> None:
    """Waits until a run has saved something beyond a step.

    Raises:
        SystemExit: after two minutes.
    """
    t0 = time.monotonic()
    while not any(int(path.name[5:13]) > step for path in run.glob("last_*.dcp")):
        if time.monotonic() - t0 > 120:
            raise SystemExit(f"{run} saved nothing beyond step {step} within two minutes")
        time.sleep(0.1)


def ended(processes: list[subprocess.Popen]) -> None:
    """Waits for processes, however they end."""
    for process in processes:
        process.communicate(timeout=300)


def kill_all(host: Host) -> None:
    """Ends every process of a host, as a power cut would."""
    found = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True)
    for number in map(int, found.stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def losses(place: Path, run: str) -> dict[int, float]:
    """The loss of every step of a finished run."""
    lines = (place / "logs" / run / "events.jsonl").read_text().splitlines()
    return {event["step"]: event["loss"] for event in map(json.loads, lines) if event["event"] == "step"}


def steps_saved(place: Path, run: str) -> int:
    return max(int(path.name[5:13]) for path in (place / "out" / run).glob("last_*.dcp"))


def told(what: str, found: dict[int, float], wanted: dict[int, float]) -> bool:
    """Says how far the losses are from those of one host, and whether that is near enough."""
    apart = max(abs(found[step] - wanted[step]) for step in wanted) if found.keys() == wanted.keys() else math.inf
    return report(f"{what}: {len(found)} steps, largest difference of a loss {apart:.1e}", apart <= TOLERANCE)


def report(what: str, good: bool) -> bool:
    print(f"{'ok ' if good else 'NOT'}  {what}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
