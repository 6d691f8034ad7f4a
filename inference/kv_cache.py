"""Keys and values of many texts at once, each in a slot of its own and of its own length.

A step of the engine looks at the slots through one of two windows, which the model uses as it would a `KVCache`: `OneRow` reads
any number of tokens into one slot, `ManyRows` one token into each of some. A text that must have the same bits alone as in company
is never one row: it is written through `ManyRows`, beside a twin of itself.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from config import ModelConfig
from inference.weights import race
from model import NONE, KVCache

ROUND = 64  # many rows look at a multiple of this many places: fewer shapes, aligned reads


@functools.cache
@torch.inference_mode()
def cache_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """What keys and values are kept in: the dtype of the weights, or on a CPU float32 where torch attends faster in it, by trying: three
    times as fast on an AMD with instructions for bfloat16."""
    if device != "cpu" or dtype == torch.float32:
        return dtype
    shape = (16, 6, 512, 64)  # texts, heads, tokens of each, numbers of a head
    memory = {each: torch.zeros(shape, dtype=each) for each in (torch.float32, dtype)}
    seconds = race(lambda each: F.scaled_dot_product_attention(memory[each][:, :, :1], memory[each], memory[each]), list(memory))
    return torch.float32 if seconds[torch.float32] < 0.7 * seconds[dtype] else dtype  # twice the memory must be worth it


class Slots:
    """Room for `count` texts: `k` and `v` are (n_layer, count, n_kv_head, block_size, D), `ids` (count, block_size)."""

    def __init__(self, config: ModelConfig, count: int, device: torch.device | str, dtype: torch.dtype):
        memory = KVCache(config, count, device=device, dtype=dtype)
        self.k, self.v, self.ids = memory.k, memory.v, memory.ids
        self.bytes, self.bytes_per_place = 2 * self.k.nbytes, 2 * self.k[:, 0, :, 0].nbytes

    def swap(self, a: int, b: int, places: int) -> None:
        """Exchanges the first places of two slots."""
        for memory in (self.k.transpose(2, 3), self.v.transpose(2, 3), self.ids[None]):
            one, other = memory[:, a, :places], memory[:, b, :places]  # (n_layer, places, Hk, D), and (1, places)
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)


class OneRow(KVCache):
    """One slot, and the next T tokens of its text: a cache of one row, whose memory is the slot's."""

    def __init__(self, slots: Slots, slot: int, length: int):
        self.k, self.v = slots.k[:, slot : slot + 1], slots.v[:, slot : slot + 1]  # (n_layer, 1, Hk, block_size, D)
        self.ids = slots.ids[slot : slot + 1]  # (1, block_size)
        self.length = length


class ManyRows:
    """Some slots, or one and its twin, and the next token of each. Rows shorter than the longest do not look at what lies behind
    their end."""

    def __init__(self, slots: Slots, rows: list[int], lengths: list[int]):
        self.k, self.v, self.ids = slots.k, slots.v, slots.ids
        self.length = max(lengths)
        self.span = min(-(-(self.length + 1) // ROUND) * ROUND, slots.k.size(3))
        device = slots.k.device
        self.rows = torch.tensor(rows, device=device)  # (B,)
        self.ends = torch.tensor(lengths, device=device)  # (B,)
        slots_seen = list(dict.fromkeys(rows))  # twins share theirs
        together = slots_seen == list(range(rows[0], rows[0] + len(slots_seen)))
        self.seen = slice(rows[0], rows[0] + len(slots_seen)) if together else self.rows  # neighbours are read without a copy

    def places(self, T: int) -> Tensor:
        return self.ends[:, None]  # (B, 1)

    def mask(self, T: int) -> Tensor:
        within = torch.arange(self.span, device=self.ends.device) <= self.ends[:, None]  # (B, S)
        return within[:, None, None]  # (B, 1, 1, S)

    def follow(self, idx: Tensor, before: int) -> Tensor:
        self.ids[self.rows, self.ends] = idx[:, 0]
        at = self.ends[:, None] + torch.arange(-before, 1, device=self.ends.device)  # (B, before + 1)
        return self.ids[self.rows[:, None], at.clamp(min=0)].masked_fill(at < 0, NONE)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.k[layer], self.v[layer]
        keys[self.rows, :, self.ends] = k[:, :, 0]  # (B, Hk, D)
        values[self.rows, :, self.ends] = v[:, :, 0]
        seen = (self.seen, slice(None), slice(self.span))
        B = len(self.rows)
        return keys[seen].expand(B, -1, -1, -1), values[seen].expand(B, -1, -1, -1)  # (B, Hk, S, D)

    def advance(self, T: int) -> None:
        """Nothing to count: a window is used for one step."""
