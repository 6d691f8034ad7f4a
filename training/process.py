"""Settings of the process that make a CPU fast."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import torch


def tune_process(device: torch.device, threads: int = 0) -> None:
    """Threads, no denormals, and freed memory kept for the next step."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    if device.type == "cpu" and sys.platform == "linux":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Asks glibc to reuse large blocks instead of returning them to the kernel, which must zero them page by page again."""
    glibc("mallopt", -3, 2**30)  # M_MMAP_THRESHOLD
    glibc("mallopt", -1, 2**31 - 1)  # M_TRIM_THRESHOLD
    glibc("mallopt", -8, 2)  # M_ARENA_MAX: what a thread frees, another may reuse


def return_freed_memory() -> None:
    """Gives the kernel what is free just now. Models that come and go leave holes between what others hold, and the holes add up."""
    glibc("malloc_trim", 0)


def glibc(name: str, *values: int) -> None:
    """Calls a function of glibc; with another C library, such as musl's, nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL("libc.so.6"), name)(*values)
