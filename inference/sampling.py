"""Choosing the next token of several texts at once, each by its own settings."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from config import SamplingConfig
from tokenizer import Tokenizer

GROUP = 64  # tokens of the vocabulary that are summed up, or compared, together


def uniform(seed: int, place: int) -> float:
    """The random number in [0, 1) of one place of a text: a function of the two alone, so that a text depends neither on its
    neighbours nor on what was drawn before. A hash of a counter is a random number (Salmon et al. 2011, section 3)."""
    drawn = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, place), digest_size=8).digest()
    return (int.from_bytes(drawn) >> 11) * 2.0**-53  # as many bits as a float holds


class Sampler:
    """The settings of B texts as tensors, and how they choose.

    Args:
        settings: one for each row. A `logit_bias` is used where there is one.
    """

    def __init__(self, settings: Sequence[SamplingConfig], device: torch.device | str = "cpu"):
        def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([getattr(row, name) for row in settings], device=device, dtype=dtype)[:, None]  # (B, 1)

        self.settings = list(settings)
        self.greedy = torch.tensor([row.temperature == 0 for row in settings], device=device)
        self.all_greedy, self.some_greedy = bool(self.greedy.all()), bool(self.greedy.any())
        self.inverse_temperature = 1 / column("temperature").clamp(min=1e-6)  # no temperature overflows
        self.repetition = column("repetition_penalty")
        self.presence, self.frequency = column("presence_penalty"), column("frequency_penalty")
        self.penalised = any(
            row.repetition_penalty != 1 or row.presence_penalty or row.frequency_penalty for row in settings
        )
        self.top_k = column("top_k", torch.int64)
        self.most_k = max(row.top_k for row in settings)
        self.least = column("min_p").log()  # of a probability, relative to the largest; -inf where it is off
        self.has_min_p = any(row.min_p for row in settings)
        self.nucleus_rows = [number for number, row in enumerate(settings) if row.top_p < 1]
        self.top_p = column("top_p")[self.nucleus_rows]
        biases = [
            (number, i, value)
            for number, row in enumerate(settings)
            for i, value in getattr(row, "logit_bias", {}).items()
        ]
        self.bias = [torch.tensor(part, device=device) for part in zip(*biases, strict=True)]  # rows, ids, values

    def choose(self, logits: Tensor, uniforms: list[float], seen: list[list[int]], prompts: list[int]) -> Tensor:
        """A token id for each row.

        Args:
            logits: (B, V).
            uniforms: the random number of each row, in [0, 1).
            seen: the ids so far of each row, of which the first `prompts` are its prompt.

        Returns:
            (B,) int64.
        """
        if self.bias:
            rows, ids, values = self.bias
            logits = logits.float().index_put((rows, ids), values.float(), accumulate=True)
        if self.penalised:
            logits = self.penalise(logits.float(), seen, prompts)
        if self.all_greedy:
            return likeliest(logits)
        drawn = draw(
            self.restrict(logits * self.inverse_temperature).softmax(-1),
            torch.tensor(uniforms, device=logits.device, dtype=torch.float64),
        )
        return torch.where(self.greedy, likeliest(logits), drawn) if self.some_greedy else drawn

    def penalise(self, logits: Tensor, seen: list[list[int]], prompts: list[int]) -> Tensor:
        """Makes tokens that occurred less likely: all of them by the repetition penalty (Keskar et al. 2019, arXiv:1909.05858,
        section 4.1), those that were written by the presence and frequency penalties (as OpenAI defines them)."""
        there = count(seen, logits) > 0  # (B, V)
        written = count([ids[start:] for ids, start in zip(seen, prompts, strict=True)], logits)  # (B, V)
        lowered = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
        logits = torch.where(there, lowered, logits)
        return logits - self.presence * (written > 0) - self.frequency * written

    def restrict(self, logits: Tensor) -> Tensor:
        """Leaves -inf on the tokens that top-k, top-p and min-p rule out: (B, V) to (B, V). The likeliest always stays."""
        if self.most_k:
            best = logits.topk(min(self.most_k, logits.size(-1))).values  # (B, most_k)
            kth = best.gather(-1, (self.top_k - 1).clamp(0, best.size(-1) - 1))
            logits = masked_below(logits, kth.masked_fill(self.top_k == 0, -torch.inf))
        if self.nucleus_rows:
            if len(self.nucleus_rows) == len(logits):
                logits = nucleus(logits, self.top_p)
            else:
                rows = torch.tensor(self.nucleus_rows, device=logits.device)
                logits = logits.index_copy(0, rows, nucleus(logits[rows], self.top_p))
        if self.has_min_p:
            logits = masked_below(logits, logits.amax(-1, keepdim=True) + self.least)
        return logits


def masked_below(logits: Tensor, floor: Tensor) -> Tensor:
    """The logits (B, V), with -inf for those that are less than their row's floor (B, 1)."""
    return torch.where(logits < floor, -torch.inf, logits)


def sorted_descending(logits: Tensor) -> Tensor:
    """Each row of (B, V) from the largest to the smallest."""
    if logits.device.type != "cpu":
        return logits.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(logits.numpy())[:, ::-1].copy())  # on vector units: 25 times as fast as torch


def nucleus(logits: Tensor, top_p: Tensor) -> Tensor:
    """Leaves the likeliest tokens that hold `top_p` (B, 1) of the probability together (Holtzman et al. 2020, arXiv:1904.09751);
    of equal ones at the border, the first."""
    values = sorted_descending(logits)
    held = values.softmax(-1).cumsum(-1)
    count = (torch.searchsorted(held, top_p) + 1).clamp(max=values.size(-1))  # (B, 1): what fewer hold is not enough
    least = values.gather(-1, count - 1)
    left = masked_below(logits, least)
    beyond = values.gather(-1, count.clamp(max=values.size(-1) - 1))
    for row in (least == beyond).nonzero()[:, 0].tolist():  # it has equals that do not stay
        places = (logits[row] == least[row]).nonzero()[:, 0]
        left[row, places[count[row] - (values[row] > least[row]).sum() :]] = -torch.inf
    return left


# Inverse transform sampling (Devroye 1986, chapter III.2) in two steps: find the group of 64 tokens, then the token in it. So only
# V / 64 + 64 numbers go through the slow cumulative sum; the groups are summed on vector units. `likeliest` takes the same two steps.


def group_reduce(x: Tensor, by: Callable[[Tensor, int], Tensor]) -> Tensor:
    """What `by` (a sum, a maximum) makes of each group: (B, V) to (B, ceil(V / 64)), the last of which may be shorter."""
    whole = x.size(-1) - x.size(-1) % GROUP
    made = by(x[:, :whole].unflatten(-1, (-1, GROUP)), -1)
    return made if whole == x.size(-1) else torch.cat((made, by(x[:, whole:], -1)[:, None]), dim=-1)


def group_at(x: Tensor, group: Tensor, beyond: float) -> Tensor:
    """The numbers of x (B, V) in a group (B, 1) of each row: (B, 64), and `beyond` where the last group has ended."""
    places = group * GROUP + torch.arange(GROUP, device=x.device)
    return x.gather(-1, places.clamp(max=x.size(-1) - 1)).masked_fill(places >= x.size(-1), beyond)


def likeliest(logits: Tensor) -> Tensor:
    """The first of the largest in each row: (B, V) to (B,)."""
    group = group_reduce(logits, torch.amax).argmax(-1, keepdim=True)
    return group[:, 0] * GROUP + group_at(logits, group, -torch.inf).argmax(-1)


def count(ids: list[list[int]], like: Tensor) -> Tensor:
    """How often each token occurs in each row: (B, V), on the device of `like`."""
    longest = max(map(len, ids), default=0)
    index = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=like.device, dtype=torch.int64)
    real = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in ids], device=like.device)
    return torch.zeros_like(like).scatter_add_(-1, index.view(len(ids), -1), real.view(len(ids), -1))


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token on which each row's number in [0, 1) falls when the probabilities lie end to end.

    probabilities (B, V) and uniforms (B,) float64, to (B,).
    """
    cdf = group_reduce(probabilities, torch.sum).double().cumsum(-1)  # (B, V / 64)
    target = uniforms[:, None] * cdf[:, -1:]
    group = first_above(cdf, target)  # (B, 1)
    below = torch.where(group > 0, cdf.gather(-1, (group - 1).clamp(min=0)), 0.0)
    inside = group_at(probabilities, group, 0.0)  # (B, 64)
    found = first_above(inside.double().cumsum(-1), target - below)
    return (group * GROUP + found)[:, 0].clamp(max=probabilities.size(-1) - 1)  # NaN falls off the cdf


def first_above(cdf: Tensor, target: Tensor) -> Tensor:
    """Where a rising cdf (B, n) first stands above a target (B, 1). Rounding never leads past its last step."""
    return torch.searchsorted(cdf, torch.minimum(target, cdf[:, -1:] * (1 - 1e-12)), right=True)


def start_ids(tokenizer: Tokenizer, prompt: str, documents: bool) -> list[int]:
    """The ids of a prompt. Where the corpus had documents one begins with eot; where it was a single text, with a line's end."""
    ids = tokenizer.encode(prompt).tolist()
    if documents:
        return [tokenizer.eot, *ids]
    return ids or tokenizer.encode("\n").tolist()
