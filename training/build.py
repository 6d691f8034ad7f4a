"""The model of a run: fresh or from weights that are there, with parts frozen, in shards, compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from config import MediaModelConfig, ModelConfig, TrainConfig, UserError
from model import GPT, kind_of
from training.distributed import Ranks


class Unfilled(TorchFunctionMode):
    """New weights get no numbers: on the meta device, which has none, torch would load its compiler to draw them, for two seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.uniform_):
            return None
        return function(*args, **kwargs or {})


@contextlib.contextmanager
def hollow() -> Iterator[None]:
    """Models that are made in here have shapes and nothing in them."""
    with torch.device("meta"), Unfilled():
        yield


def start_from(config: TrainConfig, ranks: Ranks) -> dict[str, Any] | None:
    """What `--init_from` names, if anything; its weights on the first rank only, from which the others get them."""
    if not config.init_from:
        return None
    from training.export import load_start

    found: dict[str, Any] = {}

    def load() -> dict[str, Any]:
        found.update(load_start(config.init_from))
        return {name: found[name] for name in ("config", "tokenizer")}

    return ranks.broadcast(load) | found


def model_of_run(
    model_config: ModelConfig, config: TrainConfig, start: dict[str, Any] | None, ranks: Ranks, dtype: str, compiled: bool, fresh: bool
) -> GPT:
    """The model on its device, in shards where they were asked for.

    Args:
        start: what `start_from` found.
        dtype: of the arithmetic.
        fresh: whether it trains from here; else a checkpoint fills it next.
    """
    if config.fsdp:
        model = make_shards(model_config, config, start, ranks, dtype, fresh)
    else:
        model = make_model(model_config, config, start).to(ranks.device)
    if compiled:
        compile_trunk(model, config.fsdp)
    return model


def make_model(model_config: ModelConfig, config: TrainConfig, start: dict[str, Any] | None) -> GPT:
    """A fresh model, with the weights of `start` where it brings some."""
    torch.manual_seed(config.seed)
    model = kind_of(model_config)(model_config)
    if start and "model" in start:
        model.take_over(start["model"])
    if config.freeze:
        freeze(model, config)
    model.checkpoint_activations = config.checkpoint_activations
    return model


def freeze(model: GPT, config: TrainConfig) -> None:
    """Leaves the parts that --freeze names as they are."""
    if not isinstance(model.config, MediaModelConfig):
        raise UserError(f"freeze is {config.freeze!r}, but a model of text has no parts to freeze: pass --modalities as well, or leave it out.")
    model.freeze([part.strip() for part in config.freeze.split(",")])


def make_shards(model_config: ModelConfig, config: TrainConfig, start: dict[str, Any] | None, ranks: Ranks, dtype: str, fresh: bool) -> GPT:
    """The same model in shards. Only the first rank ever holds it whole, on its CPU, and only for a fresh start."""
    from training.sharding import scatter, shard

    with hollow():
        model = make_model(model_config, config, start and {"config": start["config"]})
    whole = make_model(model_config, config, start) if fresh and ranks.first else None
    shard(model, ranks, dtype)
    if fresh:
        scatter(whole, model, ranks)
    return model


def compile_trunk(model: GPT, fsdp: bool) -> None:
    """Compiles the blocks; the head stays as it is, a chunked product that a compiler cannot better. Of a model in shards each
    piece that is gathered at one go is compiled by itself."""
    if not fsdp:
        model.trunk = torch.compile(model.run_blocks)
        return
    from training.sharding import pieces

    def in_training(piece):
        plain, compiled = piece.forward, torch.compile(piece.forward)
        return lambda *inputs: (compiled if piece.training else plain)(*inputs)

    for piece in pieces(model):
        piece.forward = in_training(piece)
