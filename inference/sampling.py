"""Choosing the next token of several texts at once, each by its own settings."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from config import SamplingConfig
from tokenizer import Tokenizer

LIKELIEST = 1024  # tokens among which the nucleus is looked for first
RUNG = 256  # tokens of the vocabulary that are summed up before one of them is looked for


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
        self.sharpness = 1 / column("temperature").clamp(min=1e-6)  # no temperature overflows
        self.repetition = column("repetition_penalty")
        self.presence, self.frequency = column("presence_penalty"), column("frequency_penalty")
        self.penalised = any(
            row.repetition_penalty != 1 or row.presence_penalty or row.frequency_penalty for row in settings
        )
        self.top_k = column("top_k", torch.int64)
        self.most_k = max(row.top_k for row in settings)
        self.least = column("min_p").log()  # of a probability, relative to the largest; -inf where it is off
        self.has_min_p = any(row.min_p for row in settings)
        self.nucleus = [number for number, row in enumerate(settings) if row.top_p < 1]
        self.top_p = column("top_p")[self.nucleus]
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
            return logits.argmax(-1)
        drawn = draw(
            self.restrict(logits * self.sharpness).softmax(-1),
            torch.tensor(uniforms, device=logits.device, dtype=torch.float64),
        )
        return torch.where(self.greedy, logits.argmax(-1), drawn) if self.some_greedy else drawn

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
            logits = logits.masked_fill((logits < kth) & (self.top_k > 0), -torch.inf)
        if self.nucleus:
            rows = nucleus(logits[self.nucleus], self.top_p)
            logits = logits.index_copy(0, torch.tensor(self.nucleus, device=logits.device), rows)
        if self.has_min_p:
            logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + self.least, -torch.inf)
        return logits


def nucleus(logits: Tensor, top_p: Tensor, most: int = LIKELIEST) -> Tensor:
    """Leaves the likeliest tokens that hold `top_p` (B, 1) of the probability together (Holtzman et al. 2020, arXiv:1904.09751).

    Sorting a whole vocabulary is slow and seldom needed: the 1,024 likeliest nearly always hold enough. Rows in which they do
    not are sorted, and only those: which of several equal logits stay must not depend on the other rows.
    """
    whole = logits.size(-1) <= most
    order = logits.argsort(descending=True, stable=True) if whole else logits.topk(most).indices
    likeliest = logits.softmax(-1).gather(-1, order)  # (B, most)
    stay = likeliest.cumsum(-1) - likeliest < top_p  # what the likelier ones hold is not enough
    stay[:, 0] = True
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, stay)
    left = logits.masked_fill(~kept, -torch.inf)
    flat = likeliest.sum(-1) < top_p[:, 0]  # (B,)
    if not whole and bool(flat.any()):
        left[flat] = nucleus(logits[flat], top_p[flat], logits.size(-1))
    return left


def count(ids: list[list[int]], like: Tensor) -> Tensor:
    """How often each token occurs in each row: (B, V), on the device of `like`."""
    longest = max(map(len, ids), default=0)
    index = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=like.device, dtype=torch.int64)
    real = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in ids], device=like.device)
    return torch.zeros_like(like).scatter_add_(-1, index.view(len(ids), -1), real.view(len(ids), -1))


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token on which each row's number in [0, 1) falls when the probabilities lie end to end.

    probabilities (B, V) and uniforms (B,) float64, to (B,). A long ladder is climbed in two strides: to the rung of 256
    tokens, then within it.
    """
    V = probabilities.size(-1)
    whole = V - V % RUNG
    rungs = torch.cat(
        (probabilities[:, :whole].unflatten(-1, (-1, RUNG)).sum(-1), probabilities[:, whole:].sum(-1, keepdim=True)), dim=-1
    )
    rungs = rungs.double().cumsum(-1)  # (B, V / RUNG)
    height = uniforms[:, None] * rungs[:, -1:]
    rung = first_above(rungs, height)  # (B, 1)
    below = torch.where(rung > 0, rungs.gather(-1, (rung - 1).clamp(min=0)), 0.0)
    places = rung * RUNG + torch.arange(min(RUNG, V), device=probabilities.device)  # (B, RUNG)
    inside = probabilities.gather(-1, places.clamp(max=V - 1)).double().masked_fill(places >= V, 0).cumsum(-1)
    return (rung * RUNG + first_above(inside, height - below))[:, 0].clamp(max=V - 1)  # NaN falls off the ladder


def first_above(ladder: Tensor, height: Tensor) -> Tensor:
    """Where a rising ladder (B, n) first stands above a height (B, 1). Rounding never leads past its last step."""
    return torch.searchsorted(ladder, torch.minimum(height, ladder[:, -1:] * (1 - 1e-12)), right=True)


def start_ids(tokenizer: Tokenizer, prompt: str, documents: bool) -> list[int]:
    """The ids of a prompt. Where the corpus had documents one begins with eot; where it was a single text, with a line's end."""
    ids = tokenizer.encode(prompt).tolist()
    if documents:
        return [tokenizer.eot, *ids]
    return ids or tokenizer.encode("\n").tolist()
