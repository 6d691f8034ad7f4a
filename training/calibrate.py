"""What this machine can do, measured once and remembered in `data/machine.json`: matrix rates, memory, a compiler, the best dtype.

Measured because machines differ: bf16 is four times faster than fp32 on one CPU and half as fast on the next.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import json
import math
import os
import platform
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from config import DATA, ModelConfig
from model import GPT, flops_per_token, slow_in_bfloat16
from training.build import compile_trunk

MEMORY = DATA / "machine.json"
CGROUP = Path("/sys/fs/cgroup")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}  # fmt: skip
VERSION = 2  # of what is measured: counted up when a model's step or its measuring changes, for what was measured before then says nothing
COMPILE_SECONDS = {"cpu": 20.0, "cuda": 60.0}  # that torch.compile costs the first time, about
COMPILE_GAIN = {("cpu", "modern"): 1.35, ("cuda", "classic"): 1.4, ("cuda", "modern"): 1.6}  # at least; elsewhere none


def remembered(name: str, measure: Callable[[], dict | float | str]) -> dict | float | str:
    """A measurement of this machine, made the first time it is asked for."""
    key, known = key_of(name), memories()
    if key not in known:
        known[key] = measure()
        try:
            MEMORY.parent.mkdir(parents=True, exist_ok=True)
            fresh = MEMORY.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(known, indent=1))
            os.replace(fresh, MEMORY)
        except OSError:
            pass  # a read-only checkout measures each time
    return known[key]


def is_known(name: str) -> bool:
    """Whether `remembered` has this measurement already."""
    return key_of(name) in memories()


def key_of(name: str) -> str:
    return f"{machine_name()} | {name} | {VERSION}"


def memories() -> dict[str, dict | float | str]:
    try:
        return json.loads(MEMORY.read_text())
    except (OSError, ValueError):
        return {}


def machine_name() -> str:
    """Processor, cores, GPU and torch: what a measurement depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}, torch {torch.__version__}"


def cpu_name() -> str:
    """The processor, and its instruction set where the system tells: virtual machines share a model name."""
    try:
        with open("/proc/cpuinfo") as info:
            lines = dict(line.split(":", 1) for line in info.read().split("\n\n")[0].splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines.items()}
        flags = hashlib.sha256(fields.get("flags", "").encode()).hexdigest()[:6]
        return f"{fields.get('model name', platform.machine())} [{flags}]"
    except OSError:
        return platform.processor() or platform.machine()


def matrix_rate(device: torch.device, dtype: str) -> float:
    """Floating point operations a second of a large matrix product: the machine's limit, which MFU is a share of."""
    return float(remembered(f"matrix rate {device.type} {dtype}", lambda: measure_matrix_rate(device, DTYPES[dtype])))


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 2048
    own = torch.Generator(device)  # a run's random numbers do not depend on what was measured before it
    a = torch.randn(size, size, device=device, dtype=dtype, generator=own)
    best = min(timed(lambda: a @ a, device) for _ in range(4))
    return 2 * size**3 / best


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    synchronise(device)
    t0 = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - t0


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_dtype(config: ModelConfig, device: torch.device) -> str:
    """The dtype in which this model's forward and backward is fastest here: float32 or bfloat16.

    float16 is never chosen (its range needs a scaler): where bfloat16 is missing, as on MPS and old GPUs, float32 is.
    """
    if device.type == "mps" or (device.type == "cuda" and not torch.cuda.is_bf16_supported()):
        return "float32"
    speeds = {dtype: seconds_per_token(config, device, dtype) for dtype in ("float32", "bfloat16")}
    return min(speeds, key=speeds.get)


def seconds_per_token(config: ModelConfig, device: torch.device, dtype: str) -> float:
    """Seconds of forward and backward for each token of a small batch of this model."""
    what = f"seconds per token {device.type} {dtype} {shape_name(config)}"
    return float(remembered(what, lambda: measure_seconds_per_token(config, device, dtype)))


def shape_name(config: ModelConfig) -> str:
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]


def measure_seconds_per_token(config: ModelConfig, device: torch.device, dtype: str) -> float:
    """By a small batch, a smaller one where memory has no room for it; where it has none for a single row, it is estimated, and the
    run itself will say so."""
    rows = small_batch(config, device)
    while rows:
        try:
            work, tokens = forward_and_backward(config, device, dtype, rows)
            work()
            return min(timed(work, device) for _ in range(2)) / tokens
        except torch.OutOfMemoryError:
            rows //= 2
        finally:
            work = None
            give_back(device)
    return estimated_seconds_per_token(config, device, dtype)


def estimated_seconds_per_token(config: ModelConfig, device: torch.device, dtype: str) -> float:
    """Of a model that is too large to try out: half of what the machine multiplies."""
    return flops_per_token(config) / (0.5 * matrix_rate(device, dtype))


def small_batch(config: ModelConfig, device: torch.device) -> int:
    """Rows that are enough to measure by."""
    return max(1, (1024 if device.type == "cpu" else 16384) // config.block_size)


def give_back(device: torch.device) -> None:
    """Frees the measured models, which reference cycles keep alive: the run's own memory is planned next."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forward_and_backward(
    config: ModelConfig, device: torch.device, dtype: str, rows: int, compiled: bool = False
) -> tuple[Callable[[], None], int]:
    """One pass of a fresh model of this shape over so many rows, and how many tokens they have."""
    with random_numbers_as_before(device):
        model = GPT(config).to(device)
        idx = torch.randint(config.vocab_size, (rows, config.block_size), device=device)
    if compiled:
        compile_trunk(model, fsdp=False)

    def work() -> None:
        with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32"):
            loss = model(idx, idx)
        loss.backward()

    return work, idx.numel()


def random_numbers_as_before(device: torch.device) -> AbstractContextManager:
    """A context after which torch's random numbers go on as if none had been drawn: no run depends on what was measured before it."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@dataclass(frozen=True)
class Compiling:
    """What `torch.compile` is worth to a model: the seconds that it takes once, and how many times as fast a step is then."""

    seconds: float
    gain: float
    measured: bool = False

    @property
    def break_even(self) -> float:
        """Seconds of a run without it from which it pays: then it saves twice what it costs."""
        return 2 * self.seconds / (1 - 1 / self.gain) if self.gain > 1 else math.inf


def compiling(config: ModelConfig, device: torch.device, dtype: str, measure: bool = False) -> Compiling:
    """What compiling is worth to this model: as this machine measured it, else a cautious guess. With `measure` a shape that was not
    measured yet is compiled now, which takes as long as compiling does."""
    what = f"compiling {device.type} {dtype} {shape_name(config)}"
    if measure or is_known(what):
        return Compiling(**remembered(what, lambda: measure_compiling(config, device, dtype)), measured=True)
    return Compiling(COMPILE_SECONDS.get(device.type, 60.0), COMPILE_GAIN.get((device.type, config.architecture), 1.0))


def measure_compiling(config: ModelConfig, device: torch.device, dtype: str) -> dict[str, float]:
    rows = small_batch(config, device)
    eager, _ = forward_and_backward(config, device, dtype, rows)
    compiled, _ = forward_and_backward(config, device, dtype, rows, compiled=True)
    eager()
    first = timed(compiled, device)
    turns = [(timed(eager, device), timed(compiled, device)) for _ in range(5)]  # in turn: other load meets both
    slow, fast = (min(each) for each in zip(*turns, strict=True))
    return {"seconds": first - fast, "gain": slow / fast}


def attention_speeds(config: ModelConfig, device: torch.device, dtype: str, row_tokens: int = 0) -> dict[str, float]:
    """Calls a second of this model's attention, forward and backward, by each of torch's implementations that takes it here, over rows of
    so many tokens (to the next multiple of 16), or of a whole block."""
    T = -(-row_tokens // 16) * 16 or config.block_size
    shape = f"{config.n_head} {config.n_kv_head} {T} {config.head_dim} {config.dropout}"
    what = f"attention {device.type} {dtype} {shape}"
    return remembered(what, lambda: measure_attention(config, device, dtype, T))


def measure_attention(config: ModelConfig, device: torch.device, dtype: str, T: int) -> dict[str, float]:
    tokens, longest = (1024, 2048) if device.type == "cpu" else (16384, 8192)  # plain products of a longer block would fill the memory
    T = min(T, longest)
    rows, own = max(1, tokens // T), torch.Generator(device)

    def heads(n: int) -> torch.Tensor:
        x = torch.randn(rows, T, n, config.head_dim, device=device, dtype=DTYPES[dtype], generator=own)
        return (x.float() if slow_in_bfloat16(x) else x).transpose(1, 2).requires_grad_()  # as a model lays them out

    q, k, v = heads(config.n_head), heads(config.n_kv_head), heads(config.n_kv_head)
    how = {"is_causal": True, "enable_gqa": config.n_kv_head != config.n_head, "dropout_p": config.dropout}

    def work() -> None:
        F.scaled_dot_product_attention(q, k, v, **how).backward(q.detach())

    best = dict.fromkeys(ATTENTION if device.type in ("cpu", "cuda") else ["math"], math.inf)
    with random_numbers_as_before(device), warnings.catch_warnings(action="ignore"):
        for _ in range(5):
            for name in list(best):  # in turn: other load meets all
                try:
                    with sdpa_kernel(ATTENTION[name]):
                        best[name] = min(best[name], timed(work, device))
                except RuntimeError:  # not for this machine, this dtype or this shape, or no memory for it
                    del best[name]
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of what the slowest of them took
    return {name: 1 / seconds for name, seconds in best.items()}


def attending(name: str) -> AbstractContextManager:
    """A context in which attention is computed by this implementation, and what it does not take (a mask, say) by another one."""
    order = [ATTENTION[name]]
    if name != "math":  # which takes everything
        order += [backend for backend in ATTENTION.values() if backend not in order]
    return sdpa_kernel(order, set_priority=True)


def speed_by_threads(config: ModelConfig, device: torch.device, dtype: str) -> dict[int, float]:
    """Tokens a second of this model's forward and backward with as many threads as now, and with half of them, down to one: two
    threads of one core may be slower than one."""
    most = torch.get_num_threads()
    counts = [most >> halved for halved in range(most.bit_length())]

    def measure() -> dict[str, float]:
        best = dict.fromkeys(map(str, counts), 0.0)
        try:
            for threads in counts * 2:  # in turn: other load meets all alike
                torch.set_num_threads(threads)
                best[str(threads)] = max(best[str(threads)], 1 / measure_seconds_per_token(config, device, dtype))
        finally:
            torch.set_num_threads(most)
        return best

    found = remembered(f"speed by threads {device.type} {dtype} {shape_name(config)}", measure)
    return {int(threads): speed for threads, speed in found.items()}


def has_compiler(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs: a compiler and Python's headers, and Triton for a GPU."""
    if sys.platform == "win32":
        return device.type == "cpu" and shutil.which("cl") is not None
    if device.type not in ("cpu", "cuda") or not Path(sysconfig.get_path("include"), "Python.h").exists():
        return False
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("gcc", "clang", os.environ.get("CC", "cc"))))
    names = [os.environ.get("CXX", "g++"), "g++", *(["clang++"] if sys.platform == "darwin" else [])]  # those that torch looks for
    return any(map(shutil.which, names))


def free_memory(device: torch.device) -> int:
    """Bytes that a run may take: the GPU's free memory, or what the system says is available, within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as info:
            available = next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = (
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 4 * 2**30
        )
    return min(available, container_room())


def container_room() -> int:
    """Bytes left under a cgroup's memory limit; very large where there is none."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(told["inactive_file"])  # files that were read count as used, and make room when it is needed
    except (OSError, ValueError, KeyError):
        return 2**62


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: of the GPU, or of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:  # Linux
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    try:
        import resource  # on Linux its figure would count the parent that started this process
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
