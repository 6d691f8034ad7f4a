"""The weights as an engine reads them: in the dtype, the layout and the precision that this machine multiplies fastest.

On a CPU a step of a small batch is a matter of reading the weights, so fewer bytes are faster: bfloat16 halves them where the
processor has instructions for it, int8 quarters them. A layout made once (oneDNN's blocks) saves reordering them at every step.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 16  # the batch that packed weights are laid out for
TWICE = 2**28  # float32 numbers of the largest model that also keeps transposes for one row: 1 GiB more at most
STEP = 8  # more rows than that are padded to a multiple of this
STRIDE = 16  # torch's int8 kernel reads 16 numbers at a time; at other lengths it reads past the row, and may crash
FEW = 2  # rows that are multiplied with int8 weights; more are faster with the bfloat16 copy


class Packed(nn.Module):
    """A matrix in oneDNN's own layout, for reading only. With `twice` it is kept as its transpose as well, which one row is faster
    with on some processors, if not to the same bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None, twice: bool = False):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.turned = weight.T.contiguous() if twice else None  # (in, out)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.size(-1)
        if rows == 1 and self.turned is not None:
            row = x.view(1, -1)
            y = row @ self.turned if self.bias is None else torch.addmm(self.bias, row, self.turned)
            return y.view(*x.shape[:-1], -1)
        more = -rows % STEP if rows > ROWS else 0  # oneDNN makes and keeps a program for each number of rows it meets
        if not more:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        y = torch.ops.mkldnn._linear_pointwise(F.pad(x.flatten(0, -2), (0, 0, 0, more)), self.weight, self.bias, "none", [], "")
        return y[:rows].view(*x.shape[:-1], -1)


class Int8(nn.Module):
    """A matrix of 8-bit numbers, each row with a scale of its own (symmetric, round to nearest), for one or two rows of input.

    More rows than that share one reading of the weights, and take a bfloat16 copy.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.scale, self.bias = (weight.float().abs().amax(-1) / 127).clamp(min=1e-12).bfloat16(), bias  # (out,)
        steps = weight.float() / self.scale.float()[:, None]
        self.rounded = steps.round().clamp(-127, 127).to(torch.int8)  # (out, in)
        self.many = pack((self.rounded * self.scale.float()[:, None]).to(weight.dtype), bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        if len(rows) > FEW:
            return self.many(x)
        y = torch.ops.aten._weight_int8pack_mm(rows, self.rounded, self.scale)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


class Plain(nn.Module):
    """A matrix as it is, where there is no better layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def pack(weight: Tensor, bias: Tensor | None, twice: bool = False) -> nn.Module:
    """A matrix in the best layout for its device, or in two, of which one row takes its own."""
    weight = weight.detach()
    bias = None if bias is None else bias.detach()
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        with contextlib.suppress(RuntimeError):  # a processor without instructions for 16-bit numbers
            return Packed(weight, bias, twice)
    return Plain(weight, bias)


@torch.no_grad()
def prepare(model: nn.Module, dtype: torch.dtype = torch.float32, int8: bool = False) -> int:
    """Lays a model's matrices out for reading, in place: it can answer from now on, but not be trained or saved.

    Args:
        dtype: of weights, activations and cache. With int8 it is bfloat16, the only one that torch multiplies int8 with quickly.

    Returns:
        the bytes of weights that writing one token reads.
    """
    model.to(dtype).eval().requires_grad_(False)
    weights = list(model.parameters())
    small = dtype == torch.float32 and weights[0].device.type == "cpu" and sum(weight.numel() for weight in weights) <= TWICE
    twice = small and transposes_are_faster()
    read = 0

    def lay_out(matrix: Tensor, bias: Tensor | None = None) -> nn.Module:
        nonlocal read
        small = int8 and matrix.size(1) % STRIDE == 0
        read += matrix.numel() * (1 if small else matrix.element_size())
        return Int8(matrix, bias) if small else pack(matrix, bias, twice)

    for block in model.blocks:
        for part in (block.attn, block.mlp):
            for name, matrix in list(part.named_children()):
                if isinstance(matrix, nn.Linear):
                    setattr(part, name, lay_out(matrix.weight, matrix.bias))
    model.logits = lay_out(model.head.weight[: model.config.vocab_size]).forward
    return read


@functools.cache
@torch.no_grad()
def transposes_are_faster() -> bool:
    """Whether one row in float32 is faster with transposes, by trying, in turns, on more matrices of a small model than a cache holds:
    1.4 times as fast on an Intel, 0.7 times on an AMD."""
    if not torch.backends.mkldnn.is_available():
        return False
    shapes = 14 * [(384, 1536), (1536, 384)]  # 66 MB
    try:
        matrices = {twice: [Packed(torch.ones(shape), None, twice) for shape in shapes] for twice in (False, True)}
    except RuntimeError:  # a processor for which there is no such layout; `pack` takes it as it is
        return False

    def multiply(twice: bool) -> None:
        for matrix, (_, columns) in zip(matrices[twice], shapes, strict=True):
            matrix(torch.ones(1, columns))

    seconds = race(multiply, (False, True))
    return seconds[True] < 0.9 * seconds[False]  # a tie costs no memory


def race(work: Callable[[Any], Any], ways: Sequence[Any]) -> dict[Any, float]:
    """Seconds of some work in each of several ways: the best of five, in turns, so that a busy moment strikes all alike."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(5):
        for way in ways:
            t0 = time.perf_counter()
            work(way)
            best[way] = min(best[way], time.perf_counter() - t0)
    return best


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where this machine multiplies it faster than float32, by trying; small and large batches count alike."""
    if device.type != "cpu":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    seconds = {dtype: trial(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.9 * seconds[torch.float32] else torch.float32


def memory_rate(device: torch.device) -> float:
    """Bytes a second that this machine reads, by summing up 256 MiB: the best of four tries."""
    numbers = torch.ones(2**26, device=device)
    best = float("inf")
    for _ in range(4):
        t0 = time.perf_counter()
        float(numbers.sum())
        best = min(best, time.perf_counter() - t0)
    return numbers.nbytes / best


@torch.no_grad()
def trial(dtype: torch.dtype) -> float:
    """Seconds for one and for sixteen rows times a matrix of 16 M numbers: more than a cache holds, so that reading counts."""
    matrix = pack(torch.ones(8192, 2048, dtype=dtype), None)
    total = 0.0
    for rows in (1, ROWS):
        x = torch.ones(rows, 2048, dtype=dtype)
        matrix(x)
        t0 = time.perf_counter()
        for _ in range(3):
            matrix(x)
        total += time.perf_counter() - t0
    return total
