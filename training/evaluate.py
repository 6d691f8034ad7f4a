"""How good a model is on text it has not seen: nats per token, perplexity, bits per byte, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from data import Corpus, val_windows, window_batch
from training.distributed import Ranks

TOKENS = 8192  # scored in one forward, about


@dataclass(frozen=True)
class Score:
    """Losses over a fixed set of windows. `_se` is the standard error over windows.

    Attributes:
        loss: nats per token.
        bpb: bits per byte of text, the one figure that compares across tokenizers.
        terms: what each window adds to the loss, (n,).
    """

    loss: float
    loss_se: float
    perplexity: float
    bpb: float
    bpb_se: float
    tokens: int
    bytes: int
    terms: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False, repr=False, kw_only=True)

    def brief(self) -> str:
        """What a progress bar says of it beside the loss."""
        return ""

    def figures(self) -> dict[str, Any]:
        """What a log keeps of it."""
        return {name: value for name, value in vars(self).items() if name != "terms"}

    def clearly_worse_than(self, other: Score) -> bool:
        """Whether the loss is higher by more than the standard error of the difference, window by window: what is hard for one model is
        hard for the other too, so that their difference is surer than either loss. Of a single window nobody knows how sure it is, and
        every difference counts. A loss that is no finite number is worse than one that is."""
        if not (math.isfinite(self.loss) and math.isfinite(other.loss)):
            return math.isfinite(other.loss)
        error = math.sqrt(np.square(self.terms - other.terms).sum()) if len(self.terms) > 1 else 0.0
        return self.loss - other.loss > error


@torch.no_grad()
def evaluate(model: nn.Module, corpus: Corpus, block_size: int, ranks: Ranks, limit: int = 0, autocast=None) -> Score:
    """Scores the validation text, every target once; with `limit`, evenly spaced windows of about so many tokens.

    Deterministic: the same model gives the same score, whatever the number of ranks.
    """
    windows = val_windows(corpus.val, block_size)
    if limit and limit < windows[:, 1].sum():
        count = max(1, round(len(windows) * limit / windows[:, 1].sum()))
        windows = windows[np.linspace(0, len(windows) - 1, count).astype(int)]
    windows = windows[np.argsort(-windows[:, 1], kind="stable")]  # like lengths together: less padding
    bytes_of = corpus.tokenizer.byte_lengths()  # (V,)
    per_batch = max(1, TOKENS // block_size)
    groups = [windows[start : start + per_batch] for start in range(0, len(windows), per_batch)]
    was_training = model.training
    model.eval()
    rows = []  # (nats, tokens, bytes) of each window
    for turn in range(0, len(groups), ranks.world):
        mine = turn + ranks.rank
        group = groups[min(mine, len(groups) - 1)]  # ranks that share one model's weights call it equally often
        idx, targets = window_batch(corpus.val, group)
        with autocast or torch.autocast(ranks.device.type, enabled=False):
            losses = model(idx.to(ranks.device), targets.to(ranks.device), reduction="none")
        if mine >= len(groups):
            break
        nats = losses.cpu().double().sum(1).numpy()  # MPS has no float64
        counted = np.where(targets.numpy() >= 0, bytes_of[targets.clamp(min=0).numpy()], 0).sum(1)
        rows += list(zip(nats, group[:, 1], counted, strict=True))
    model.train(was_training)
    return score([row for part in ranks.gather(rows) for row in part])


def score(rows: list[tuple[float, int, int]]) -> Score:
    """From (nats, tokens, bytes) of each window."""
    nats, tokens, n_bytes = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    loss, loss_se = ratio(nats, tokens)
    bpb, bpb_se = ratio(nats / math.log(2), n_bytes)
    terms = nats / max(tokens.sum(), 1)
    return Score(loss, loss_se, math.exp(min(loss, 700)), bpb, bpb_se, round(tokens.sum()), round(n_bytes.sum()), terms=terms)


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, float]:
    """A ratio of sums and its standard error (Cochran, Sampling Techniques, section 2.11); nan for a single window."""
    total = math.fsum(under)
    value = math.fsum(over) / max(total, 1)
    n = len(over)
    if n < 2:
        return value, math.nan
    return value, math.sqrt(n / (n - 1) * math.fsum((over - value * under) ** 2)) / max(total, 1)
