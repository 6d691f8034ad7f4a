"""Choosing the next token, and going on until there is a reason to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from config import GenerateConfig
from model import GPT, KVCache
from tokenizer import StreamDecoder, Tokenizer


def choose(logits: Tensor, seen: Tensor, config: GenerateConfig, randoms: list[torch.Generator]) -> Tensor:
    """A token id for each row: logits (B, V), the ids so far (B, n), a generator a row, to (B,).

    Each row draws one number from its own generator, so that its text does not depend on its neighbours.
    """
    logits = penalise(logits.float(), seen, config.repetition_penalty)
    if config.temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / max(config.temperature, 1e-6)  # no temperature overflows
    probabilities = restrict(logits, config).softmax(-1).double()
    drawn = torch.stack([torch.rand((), generator=random, dtype=torch.float64) for random in randoms]).to(logits.device)
    ladder = probabilities.cumsum(-1)  # (B, V): the rung that the drawn number falls on
    return torch.searchsorted(ladder, (drawn * ladder[:, -1])[:, None], right=True)[:, 0].clamp(max=logits.size(-1) - 1)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Makes tokens that occurred less likely (Keskar et al. 2019, arXiv:1909.05858, section 4.1)."""
    if penalty == 1:
        return logits
    values = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(values > 0, values / penalty, values * penalty))


def restrict(logits: Tensor, config: GenerateConfig) -> Tensor:
    """Leaves -inf on the tokens that top-k, top-p and min-p rule out: (B, V) to (B, V). The likeliest always stays."""
    if config.top_k:
        kth = logits.topk(min(config.top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of the likelier ones
        drop = before >= config.top_p
        drop[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)
    if config.min_p:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < config.min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
    return logits


@torch.inference_mode()
def tokens(model: GPT, prompt: list[int], config: GenerateConfig, seeds: Sequence[int]) -> Iterator[Tensor]:
    """Ids that go on from a prompt of at least one id, a row for each seed: max_new_tokens times (B,).

    When the context is full, the older half is forgotten and the rest read again.
    """
    weight = next(model.parameters())
    randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
    block = model.config.block_size

    def empty() -> KVCache:
        return KVCache(model.config, len(seeds), device=weight.device, dtype=weight.dtype)

    ids = torch.tensor([prompt] * len(seeds), device=weight.device)  # (B, n)
    cache, fresh = empty(), ids[:, -block:]
    for _ in range(config.max_new_tokens):
        if cache.length + fresh.size(1) > block:
            cache, fresh = empty(), ids[:, -max(1, block // 2) :]
        logits = model.logits(model.hidden(fresh, cache)[:, -1])  # (B, V)
        chosen = choose(logits, ids, config, randoms)
        yield chosen
        fresh = chosen[:, None]
        ids = torch.cat((ids, fresh), dim=1)


def many(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], config: GenerateConfig, seeds: Sequence[int]
) -> list[str]:
    """Whole texts at once, one a seed: each is what its seed alone would give, up to the arithmetic of a batch."""
    rows: list[list[int]] = [[] for _ in seeds]
    open_rows = set(range(len(seeds)))
    for chosen in tokens(model, prompt, config, seeds):
        for row in list(open_rows):
            token = int(chosen[row])
            rows[row].append(token) if token != tokenizer.eot else open_rows.discard(row)
        if not open_rows:
            break
    texts = [tokenizer.decode(row) for row in rows]
    return [text if (end := first_stop(text, config.stop)) < 0 else text[:end] for text in texts]


def stream(model: GPT, tokenizer: Tokenizer, prompt: list[int], config: GenerateConfig, seed: int) -> Iterator[str]:
    """Pieces of text that go on from a prompt as they become certain: whole characters, and nothing of a stop string."""
    decoder, held = StreamDecoder(tokenizer), ""
    keep = max((len(stop) for stop in config.stop), default=1) - 1
    for chosen in tokens(model, prompt, config, [seed]):
        if int(chosen) == tokenizer.eot:
            break
        held += decoder.push(int(chosen))
        if (end := first_stop(held, config.stop)) >= 0:
            yield held[:end]
            return
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    held += decoder.flush()
    end = first_stop(held, config.stop)
    yield held if end < 0 else held[:end]


def first_stop(text: str, stops: tuple[str, ...]) -> int:
    """Where the first stop string begins, or -1. An empty one stops nothing."""
    return min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=-1)


def start_ids(tokenizer: Tokenizer, prompt: str, documents: bool) -> list[int]:
    """The ids of a prompt. Where the corpus had documents one begins with eot; where it was a single text, with a line's end."""
    ids = tokenizer.encode(prompt).tolist()
    if documents:
        return [tokenizer.eot, *ids]
    return ids or tokenizer.encode("\n").tolist()
