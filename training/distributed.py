"""One process or many: what a rank is, and the few things ranks say to each other. Start several with `torchrun`."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from config import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks to the person."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Adds numbers up over the ranks."""
        if self.world == 1:
            return list(values)
        together = torch.tensor(
            values, dtype=torch.float64, device=self.device if self.device.type == "cuda" else "cpu"
        )
        dist.all_reduce(together)
        return together.tolist()

    def gather(self, value: object) -> list:
        """One object of each rank, in order of rank."""
        if self.world == 1:
            return [value]
        everything: list = [None] * self.world
        dist.all_gather_object(everything, value)
        return everything

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device that a flag means; auto is CUDA, else MPS, else the CPU.

    Raises:
        UserError: for a device this machine or this build of torch does not have.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {wanted!r} cannot be used here ({str(error).splitlines()[0]}): pass --device auto or --device cpu."
        ) from error
    return torch.device("cuda", local_rank) if wanted == "cuda" else device


def start(wanted: str) -> Ranks:
    """Joins the other ranks when `torchrun` started this process, over NCCL on GPUs and gloo elsewhere."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = pick_device(wanted, local)
    if world == 1:
        return Ranks(0, 1, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
