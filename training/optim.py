"""Optimizers, the schedule of their rate, and the moving average of the weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from config import ModelConfig, TrainConfig
from training.distributed import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MUON_PAYS_BELOW = 0.15  # of the arithmetic of a step, its own included
NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan et al. 2024: coefficients that pull singular values near 1 in five rounds


class Eager(torch.optim.Optimizer):
    """torch's methods without what guards them from being compiled, which nothing here does: a first call of the guards imports
    torch's compiler, and that takes as long as the import of torch itself."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Eager, torch.optim.AdamW):
    """Adam with weight decay beside the gradient (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(Eager):
    """Momentum whose update is made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For the matrices of the blocks only. A matrix that is several side by side (`weight.parts`) is treated part by part, and
    all parts of one shape go through the iteration in one batched product, in the dtype this machine multiplies fastest:
    torch's own Muon takes them one at a time in bfloat16.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            updates = [self.look_ahead(param, group["momentum"]) for param in params]
            parts = [getattr(param, "parts", (len(param),)) for param in params]
            if any(map(is_sharded, params)):
                updates = self.orthogonalise_shards(updates, parts)
            else:
                self.orthogonalise(updates, parts)
            for param, update in zip(params, updates, strict=True):
                param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def look_ahead(self, param: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's update: where the momentum will be after another step like this one."""
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        state["momentum"].lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(state["momentum"], momentum)

    def orthogonalise(self, updates: list[Tensor], parts: list[tuple[int, ...]]) -> None:
        """Replaces whole updates, (rows, columns) each, by orthogonal ones, part by part."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for update, rows in zip(updates, parts, strict=True):
            for part in update.split(rows):
                by_shape.setdefault(part.shape, []).append(part)
        for shape, found in by_shape.items():
            changes = orthogonal(torch.stack(found), self.dtype)  # (matrices, rows, columns)
            for part, change in zip(found, changes, strict=True):
                torch.mul(change, math.sqrt(max(1, shape[0] / shape[1])), out=part)

    def orthogonalise_shards(self, updates: list[DTensor], parts: list[tuple[int, ...]]) -> list[DTensor]:
        """The same for updates whose rows are spread over the ranks: matrices of a shape are dealt out whole, then sent back.

        So each matrix is iterated on once in all, by one rank.
        """
        from torch.distributed.tensor import Shard

        by_shape: dict[tuple, list[int]] = {}
        for place, (update, rows) in enumerate(zip(updates, parts, strict=True)):
            by_shape.setdefault((update.shape, rows), []).append(place)
        done = list(updates)
        for (_, rows), places in by_shape.items():
            dealt = torch.stack([updates[place] for place in places]).redistribute(placements=[Shard(0)])
            mine = dealt.to_local()  # (this rank's matrices, rows, columns)
            self.orthogonalise(list(mine), [rows] * len(mine))
            back = dealt.redistribute(placements=[Shard(1)])
            for place, update in zip(places, back.unbind(), strict=True):
                done[place] = update
        return done


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each, roughly: (n, rows, columns) to the same. bfloat16 is exact enough."""
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.mT
    x = x.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT  # A = X Xᵀ
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a X + (b A + c A²) X
    return (x if wide else x.mT).to(matrices.dtype)


def muon_share(config: ModelConfig, tokens_per_step: int) -> float:
    """Muon's own arithmetic as a share of the step's: it pays below `MUON_PAYS_BELOW`."""
    kv, q, d, hidden = (
        config.n_kv_head * config.head_dim,
        config.n_head * config.head_dim,
        config.n_embd,
        config.n_inner,
    )
    shapes = [
        (q, d),
        (kv, d),
        (kv, d),
        (d, q),
        *[(hidden, d)] * (1 if config.architecture == "classic" else 2),
        (d, hidden),
    ]
    # of a shape with sides m <= M, each of 5 rounds makes A (2 m² M operations), A² (2 m³) and the product with X (2 m² M)
    own = sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in shapes)
    return own / (6 * sum(rows * columns for rows, columns in shapes) * tokens_per_step)  # a step: 6 for each weight and token


def make_optimizers(model: nn.Module, config: TrainConfig, kind: str, dtype: str) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or (kind `muon`) Muon for the blocks' matrices and AdamW for the rest. Only matrices decay.

    `dtype` is the model's arithmetic; Muon iterates in bfloat16 where that is it.

    Each group keeps its peak rate under `peak`; `set_rate` scales it.
    """
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    hidden = [p for name, p in named if kind == "muon" and p.ndim == 2 and "blocks." in name]
    taken = set(map(id, hidden))
    matrices = [p for _, p in named if p.ndim >= 2 and id(p) not in taken]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        AdamW(
            groups, lr=config.learning_rate, betas=(config.beta1, config.beta2),
            fused=named[0][1].device.type in ("cpu", "cuda", "mps"),  # where torch has such a kernel
        )
    ]
    if hidden:
        inner = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(hidden, config.muon_learning_rate, weight_decay=config.weight_decay, dtype=inner))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def rate(progress: float, config: TrainConfig) -> float:
    """The share of the peak rate at a share of the run, both 0 to 1: warm-up, then cosine, linear, or stable and decay."""
    if progress < config.warmup:
        return max(progress / config.warmup, 0.01)
    after = min(1.0, (progress - config.warmup) / max(1e-9, 1 - config.warmup))
    if config.schedule == "wsd":
        left = min(1.0, (1 - progress) / max(1e-9, config.decay))
    else:
        left = 1 - after if config.schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * after)
    return config.final_rate + (1 - config.final_rate) * max(0.0, left)


class Average:
    """An exponential moving average of a model's weights, warmed up so that it does not remember the start."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.steps = model, decay, 0
        self.shadow = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.model.parameters()], 1 - decay)

    def swap(self) -> None:
        """Exchanges the model's weights and the average: call it before and after an evaluation."""
        with torch.no_grad():
            for shadow, param in zip(self.shadow, self.model.parameters(), strict=True):
                held = param.detach().clone()
                param.copy_(shadow)
                shadow.copy_(held)

    def state_dict(self) -> dict:
        return {"steps": self.steps, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for shadow, saved in zip(self.shadow, state["shadow"], strict=True):
            shadow.copy_(saved)
