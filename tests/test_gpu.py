"""What only a GPU can show: training in its dtypes, and an engine that writes what the model says there.

`make test-gpu` runs these, where there is CUDA. Elsewhere they skip.
"""

from __future__ import annotations

import copy
import math
import random
import threading

import pytest
import torch
from torch import nn

from inference import weights
from inference.engine import Engine
from inference.request import Request, Settings
from tests.runs import events, losses, main_here, resume, small_run
from tokenizer import ByteTokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that CUDA reaches"),
]
BYTES = ByteTokenizer()
GPU = "cuda"
KINDS = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.bfloat16, "int8": True},
}
CLOSE = {"float32": 0.05, "bfloat16": 0.3, "int8": 0.6}  # nats by which a token may be less likely than the likeliest


# ---- training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_a_run_learns_stops_and_goes_on(tmp_path, monkeypatch, architecture, dtype):
    """The loss falls; half a run and its other half, resumed, are the whole run, but for what the GPU rounds differently."""
    how = {"device": GPU, "dtype": dtype, "architecture": architecture, "n_embd": 64, "batch_size": 16, "learning_rate": 3e-3}
    how |= {"warmup": 0.0, "final_rate": 1.0}  # a rate that does not ask how long the run is
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "whole", **how, max_iters=60)) == 0
    whole = losses(tmp_path, "whole")
    assert sorted(whole) == list(range(60)) and all(map(math.isfinite, whole.values()))
    first, last = ([whole[step] for step in steps] for steps in (range(5), range(55, 60)))
    assert sum(last) < 0.8 * sum(first)
    for half in (small_run(tmp_path, "parts", **how, max_iters=30), resume(tmp_path, "parts", max_iters=60)):
        assert main_here(tmp_path, monkeypatch, *half) == 0
    parts = losses(tmp_path, "parts")
    assert sorted(parts) == sorted(whole)
    assert [parts[step] for step in (30, 40, 50, 59)] == pytest.approx([whole[step] for step in (30, 40, 50, 59)], rel=0.1)
    assert events(tmp_path, "start", "parts")[-1]["plan"]["dtype"] == dtype


# ---- writing


class Asked(Request):
    """A request that keeps its tokens."""

    def __init__(self, ids: list[int], **values):
        super().__init__(ids, Settings(**{"ignore_eos": True, **values}), self.take)
        self.tokens, self.done = [], threading.Event()

    def take(self, piece) -> None:
        assert not piece.error, piece.error
        self.tokens += piece.tokens
        if piece.finish_reason:
            self.done.set()

    @property
    def new(self) -> list[int]:
        return self.ids[self.prompt_length :]


@pytest.fixture(params=["classic", "modern"])
def model(request, tiny_model) -> nn.Module:
    return tiny_model(architecture=request.param, n_embd=64, block_size=256).to(GPU)


def engine_of(model: nn.Module, kind: str, slots: int = 8) -> Engine:
    """An engine of a copy of the model, laid out."""
    model = copy.deepcopy(model)
    weights.prepare(model, **KINDS[kind])
    return Engine(model, BYTES, slots=slots, quantized=kind == "int8")


def noise(chance: random.Random, length: int) -> list[int]:
    return [chance.randrange(256) for _ in range(length)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_writes_what_the_whole_model_finds_likeliest(model, kind):
    """Alone and in company. The full forward is in float32, so in fewer bits a token may be its second choice, if a near one."""
    chance = random.Random(0)
    asked = [Asked(noise(chance, length), temperature=0, max_new_tokens=60) for length in (1, 20, 90, 150)]
    engine = engine_of(model, kind)
    engine.run(asked[:1])
    engine.run(asked[1:])
    for request in asked:
        with torch.inference_mode():
            logprobs = model(torch.tensor([request.ids], device=GPU))[0].float().log_softmax(-1)  # (T, V)
        written = logprobs[request.prompt_length - 1 : -1]
        taken = written.gather(-1, torch.tensor(request.new, device=GPU)[:, None])[:, 0]
        assert len(request.new) == 60
        assert float((written.amax(-1) - taken).max()) < CLOSE[kind]


def under_load(engine: Engine, request: Asked, chance: random.Random) -> None:
    """Runs a request among 20 others, of which some come while it is written."""
    others = [Asked(noise(chance, chance.randint(1, 60)), max_new_tokens=chance.randint(1, 60)) for _ in range(20)]
    for each in (*others[:6], request, *others[6:12]):
        engine.submit(each)
    for late in others[12:]:
        for _ in range(5):
            engine.step()
        engine.submit(late)
    engine.run([])
    assert all(each.done.is_set() for each in (request, *others))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_text_alone_and_under_load(model, kind):
    chance = random.Random(1)
    for seed in range(4):
        prompt = noise(chance, chance.choice([1, 20, 90]))
        alone, loaded = (Asked(prompt, seed=seed, temperature=0.8, top_p=0.95, max_new_tokens=80) for _ in range(2))
        engine_of(model, kind, slots=1).run([alone])
        under_load(engine_of(model, kind), loaded, chance)
        assert loaded.new == alone.new


@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_without_a_seed_are_written_together(model, kind):
    engine = engine_of(model, kind, slots=16)
    engine.run([Asked([65], max_new_tokens=40) for _ in range(16)])
    assert engine.steps < 16 + 45, "a step for each token of all, and one for each prompt at most"
    assert engine.stats().generation_tokens == 16 * 40
