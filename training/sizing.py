"""The size of a model where nobody names one: from one dial, `--depth`, or from what the text and `--time` allow.

The rule, in the order in which it is applied:

    shape   depth blocks of width 64 depth, heads of 64 (depth 6 is as wide as `small`, 12 as `medium`, 24 is half as wide again as `large`)
    depth   the largest whose tokens, those of the time or of the text, are `PER_WEIGHT` for each weight of its blocks: beyond that a
            larger model is trained too little, before it a smaller one learns too little (Hoffmann et al. 2022, arXiv:2203.15556);
            `WITH_RUNS` times as many where runs of tokens have embeddings of their own
    tokens  seen again, tokens teach less: of a text as many count as `fresh` says (Muennighoff et al. 2023, arXiv:2305.16264)
    batch   grows with the root of the run's tokens (Zhang et al. 2024, arXiv:2410.21676)
    rates   grow with the root of the batch, and a short run of small batches keeps those of the reference: it has few steps; AdamW's falls
            with the root of the width, Muon's does not depend on it
    forget  a text that comes again and again is learned by heart: the weights decay the more, the more often it comes, and dropout helps,
            of activations and of words (decay thirty times the usual is best where data run out: Kim et al. 2025, arXiv:2509.14786)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from config import DEEPEST, ModelConfig, TrainConfig, UserError, seconds
from data import holds_shards, open_corpus
from sources import find_source
from tokenizer import automatic_vocab_size
from training import plan
from training.distributed import Ranks

PER_WEIGHT = 1.5  # tokens for each weight of the blocks: far fewer than large runs get, since small ones wait for calls, not for sums
WITH_RUNS = 2.0  # times as many where runs of tokens have embeddings, which take over what the blocks would learn
RUNS = ("ngrams", "ngram_rows")
AGAIN = 15.0  # epochs after which a text has taught most of what it will (Muennighoff et al. 2023, table 2: 15.4)
# The run that set the rule, one minute of WikiText-2 on two cores, and the rates that were best for it:
BATCH, TOKENS, WIDTH = 2048, 1e6, 128  # tokens of a step, tokens in all, width
RATE, MUON_RATE = 1e-2, 0.02
# Texts that come again, by seven to fifteen readings of one megabyte of WikiText-2:
DECAY, LEAST_DECAY, MOST_DECAY = 0.02, 0.01, 0.3  # weight decay for each reading, and its bounds
OFTEN = 5.0  # readings beyond which dropout pays, for each by so much more, to a bound: it costs a quarter of the steps
DROPOUT, MOST_DROPOUT = 0.01, 0.1
RECIPE = {  # what goes with a size that is chosen here
    "architecture": "modern", "tokenizer": "bpe", "vocab_size": 0, "optimizer": "muon", "schedule": "linear", "final_rate": 0.0,
}  # fmt: skip
SHAPE = ("n_layer", "n_head", "n_embd", "n_inner", "head_dim", "n_kv_head")


def wanted(given: dict[str, Any]) -> bool:
    """Whether the size is ours to choose: the dial is turned, or there is a budget and no word of a preset or a shape.

    Raises:
        UserError: when the dial is turned and the size is given as well.
    """
    spoken = {name for name, value in given.items() if value}
    if spoken & {"resume", "verify_resume"}:
        return False  # it was chosen when the run began
    others = sorted(spoken & {"preset", "init_from", "modalities", *SHAPE})
    if "depth" in spoken and others:
        raise UserError(f"--depth {given['depth']} chooses the size, and --{others[0]} {given[others[0]]} does as well: leave one of them out.")
    return "depth" in spoken or ("time" in spoken and not others and "architecture" not in spoken)


def recipe(given: dict[str, Any]) -> dict[str, Any]:
    """The settings that go with a size of ours, before the text is known; none where the size is the person's."""
    return RECIPE if wanted(given) else {}


def settle(given: dict[str, Any], config: TrainConfig, tokens: float, vocab_size: int, ranks: Ranks) -> dict[str, Any]:
    """The settings of a run on a text of so many tokens, by its budget or its depth; what was typed goes before them."""
    budget = seconds(config.time) if config.time else 0.0
    found = choose(config.depth, tokens, vocab_size, budget, ranks.device, ranks.world, given)
    return found | {name: value for name, value in given.items() if name not in ("vocab_size", "depth")}


def line(values: dict[str, Any], config: TrainConfig) -> str:
    """What was chosen, for the person."""
    why = f"--depth {config.depth}" if config.depth else f"--time {config.time}"
    shown = {
        "blocks": "n_layer", "wide": "n_embd", "context": "block_size", "batch": "batch_size", "dropout": "dropout",
        "weight decay": "weight_decay",
    }  # fmt: skip
    return f"size     by {why}: " + ", ".join(f"{name} {values[key]:g}" for name, key in shown.items())


def text_size(config: TrainConfig, vocab_size: int) -> tuple[float, int]:
    """About how many tokens a text has that is not tokenised yet, and of how large a vocabulary."""
    if holds_shards(config.data):
        corpus = open_corpus(Path(config.data))
        return len(corpus.train), corpus.tokenizer.vocab_size
    n_bytes = find_source(config).n_bytes or 10**9  # of an unknown size: enough
    fixed = {"char": (1.0, 128), "byte": (1.0, 257), "gpt2": (4.0, 50257)}
    bytes_a_token, known = fixed.get(config.tokenizer, (3.5, vocab_size or automatic_vocab_size(n_bytes)))
    return n_bytes / bytes_a_token, known


def shape(depth: int) -> dict[str, int]:
    """Blocks, heads and width of a depth."""
    return {"n_layer": depth, "n_head": depth, "n_embd": 64 * depth}


def choose(
    depth: int, tokens: float, vocab_size: int, budget: float, device: torch.device, world: int, given: dict[str, Any]
) -> dict[str, Any]:
    """Everything that follows from the text, the machine and the budget.

    Args:
        depth: the dial, 0 where the budget decides.
        tokens: of the text.
        budget: seconds; 0 where there is none, which needs a depth. Then as many tokens are planned as the depth asks for.
        world: ranks that share the work.
        given: what was typed, of which the context, the rows of a batch and the runs of tokens are not chosen, and weigh in.
    """
    block = given.get("block_size") or (256 if tokens < 1e8 else 1024)
    how = {"architecture": "modern", "vocab_size": vocab_size, "block_size": block, **{name: given[name] for name in RUNS if name in given}}
    per_weight = PER_WEIGHT * (WITH_RUNS if given.get("ngrams") else 1)
    speed = {}

    def planned(at: int) -> float:
        """The tokens of a run of this depth."""
        if not budget:
            return per_weight * block_weights(at)
        if at not in speed:
            speed[at] = world / seconds_per_token(ModelConfig(**how, **shape(at)), device)
        return 0.8 * budget * speed[at]  # the rest is start and evaluation

    if not depth:
        depth = 1
        while depth < DEEPEST and fresh(planned(depth + 1), tokens) >= per_weight * block_weights(depth + 1):
            depth += 1
    total = planned(depth)
    epochs = total / tokens
    best_rows = 2 ** round(math.log2(max(1, BATCH * math.sqrt(total / TOKENS) / block)))  # what the rule asks for
    rows = -(-(given.get("batch_size") or best_rows) // world) * world  # which the ranks can share
    larger = max(1.0, math.sqrt(best_rows * block / BATCH)) * math.sqrt(rows / best_rows)  # rates go with the root of the batch
    dropped = round(min(MOST_DROPOUT, max(0.0, DROPOUT * (epochs - OFTEN))), 2)
    found = {
        **shape(depth), "block_size": block, "batch_size": rows,
        "learning_rate": RATE * larger * math.sqrt(WIDTH / (64 * depth)), "muon_learning_rate": MUON_RATE * larger,
        "dropout": dropped, "word_dropout": dropped, "weight_decay": round(min(MOST_DECAY, max(LEAST_DECAY, DECAY * epochs)), 3),
    }  # fmt: skip
    return found if budget else found | {"max_iters": max(1, round(total / (rows * block)))}


def block_weights(depth: int) -> int:
    """Weights of the blocks of a depth."""
    config = ModelConfig(architecture="modern", **shape(depth))
    return depth * config.n_embd * (4 * config.n_embd + 3 * config.n_inner)


def fresh(seen: float, tokens: float) -> float:
    """How many fresh tokens teach as much as `seen` ones of a text of `tokens`."""
    again = max(0.0, seen / tokens - 1)
    return min(seen, tokens) + tokens * AGAIN * (1 - math.exp(-again / AGAIN))


def seconds_per_token(config: ModelConfig, device: torch.device) -> float:
    """Seconds of a token of this model, in its better dtype; measured once, and estimated for one too large to try out."""
    probed = plan.count_parameters(config) < plan.PROBED_BELOW
    return plan.seconds_per_token(config, probed, device, plan.choose_dtype(config, probed, device))
