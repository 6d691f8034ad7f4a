"""A model that no rank holds whole: its shards (FSDP2).

Each rank keeps its rows of every matrix, of its gradient and of the optimizer's state. A part of a block is gathered when it is
needed, and let go. What is computed is what `DistributedDataParallel` computes, up to the order of sums.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from config import UserError
from training import calibrate
from training.distributed import Ranks, backend


def mesh_of(ranks: Ranks) -> DeviceMesh:
    """All ranks in a row.

    Raises:
        UserError: on a device that cannot be shared out.
    """
    if ranks.device.type not in ("cuda", "cpu"):
        raise UserError(f"--fsdp works on GPUs with CUDA and on CPUs, not on {ranks.device.type}: leave it out.")
    if not dist.is_initialized():  # one process that nobody launched
        dist.init_process_group(backend(ranks.device), store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(ranks.device.type, (ranks.world,))


def shard(model: nn.Module, ranks: Ranks, dtype: str) -> None:
    """Turns a model that was built on the meta device into shards on this rank's device; their values are not set yet.

    The matrices of attention and MLP are gathered in the dtype of the arithmetic: autocast would make that copy anyway, but keep
    it until the backward, and no memory would be saved. What autocast leaves in float32, norms and embeddings, stays with the root.
    """
    low = MixedPrecisionPolicy()
    if dtype != "float32":
        low = MixedPrecisionPolicy(calibrate.DTYPES[dtype], reduce_dtype=torch.float32, cast_forward_inputs=False)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing is added in place here
    parts = {name: param.parts for name, param in model.named_parameters() if hasattr(param, "parts")}
    mesh = mesh_of(ranks)
    for piece in pieces(model):
        fully_shard(piece, mesh=mesh, mp_policy=low)
    # The root is let go after the forward too, so that between steps every parameter is a shard, whoever called the model last.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    model._apply(lambda tensor: torch.empty_like(tensor, device=ranks.device) if tensor.is_meta else tensor)
    for name, param in model.named_parameters():
        if name in parts:
            param.parts = parts[name]  # for Muon


def pieces(model: nn.Module) -> list[nn.Module]:
    """What is gathered at one go."""
    return [piece for block in model.blocks for piece in (block.attn, block.mlp)]


@torch.no_grad()
def scatter(whole: nn.Module | None, model: nn.Module, ranks: Ranks) -> None:
    """Fills the shards from a whole model, which only the first rank holds, on its CPU."""
    source, mesh = dict(whole.named_parameters()) if whole else {}, mesh_of(ranks)
    for name, param in model.named_parameters():
        like = {"dtype": param.dtype, "device": ranks.device}
        full = source[name].to(**like) if whole else torch.empty(param.shape, **like)
        param.copy_(distribute_tensor(full, mesh, [Shard(0)]))
