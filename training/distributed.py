"""One process or many: what a rank is, and the few things ranks say to each other. Start several with `torchrun`."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

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

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Calls `make` on the first rank only and gives its result to every rank: nested dicts and lists of plain values and CPU tensors.

        So only the first rank needs to see a file.

        Raises:
            UserError: on every rank, when `make` raised it on the first.
        """
        if self.world == 1:
            return make()
        value, told = None, [(None, None)]
        if self.first:
            try:
                value = make()
                told = [(None, mapped(value, lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta")))]
            except UserError as error:
                told = [(error, None)]
        dist.broadcast_object_list(told)
        error, outline = told[0]
        if error:
            raise error
        if not self.first:
            value = mapped(outline, lambda t: torch.empty_like(t, device="cpu"))
        mapped(value, lambda t: dist.broadcast(t.contiguous(), 0))
        return value

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Nested dicts and lists with each tensor changed, in order."""
    if isinstance(tree, dict):
        return {key: mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(value, change) for value in tree)
    return change(tree) if isinstance(tree, Tensor) else tree


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, a rank's share of a tensor. Duck-typed: importing that class takes half a second."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the rows of all ranks, which all must ask for."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor, or all of it where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights by name: its state dict, or this rank's shards of its parameters."""
    named = dict(model.named_parameters())
    if not any(map(is_sharded, named.values())):
        return model.state_dict()
    return {name: param.detach() for name, param in named.items()}


@torch.no_grad()
def set_weights(model: nn.Module, held: dict[str, Tensor]) -> None:
    """Gives a model the weights that `weights` took from one like it."""
    named = dict(model.named_parameters())
    if not any(map(is_sharded, named.values())):
        model.load_state_dict(held)
        return
    for name, param in named.items():
        param.copy_(held[name])


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
    dist.init_process_group(backend(device))
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def backend(device: torch.device) -> str:
    """What carries the ranks' tensors, on the CPU and on a GPU."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def stop() -> None:
    """Leaves the other ranks, if there are any."""
    if dist.is_initialized():
        gc.collect()  # shards hold their group in a circle, and its threads must end before the interpreter does
        dist.destroy_process_group()
