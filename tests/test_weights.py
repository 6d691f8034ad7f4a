"""Weights laid out for reading: the same model, in fewer bytes."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from config import ROOT
from inference import weights
from inference.engine import Engine
from inference.request import Request, Settings
from model import KVCache
from tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
SHAPES = {
    "classic": {"architecture": "classic"},
    "modern": {"architecture": "modern"},
    "grouped heads": {"architecture": "modern", "n_kv_head": 2},
}
KINDS = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "int8": {"dtype": torch.bfloat16, "int8": True},
}
CLOSE = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02, "int8": 0.25}  # root mean square error, of logits near 1


def prepared(model: nn.Module, kind: str) -> nn.Module:
    """A copy of a model, laid out."""
    model = copy.deepcopy(model)
    weights.prepare(model, **KINDS[kind])
    return model


def written(model: nn.Module, rows: int, length: int = 32) -> torch.Tensor:
    """Texts of the model's own, which it predicts better than any other: (rows, length) ids."""
    ids = torch.randint(model.config.vocab_size, (rows, 1), generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        while ids.size(1) < length:
            chances = (1.5 * model(ids)[:, -1]).softmax(-1)
            ids = torch.cat((ids, chances.multinomial(1, generator=random)), dim=1)
    return ids


def loss(model: nn.Module, ids: torch.Tensor) -> float:
    """Nats per token, one token after the other: one or two rows at a time are multiplied in another way than many."""
    cache = KVCache(model.config, len(ids), dtype=model.wte.weight.dtype)
    with torch.inference_mode():
        logits = torch.stack([model(ids[:, at : at + 1], cache=cache)[:, 0].float() for at in range(ids.size(1) - 1)])
    return float(nn.functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_prepared_model_is_the_same_model(tiny_model, shape, kind):
    """For whole texts, and for one new token of each row."""
    plain = tiny_model(**shape)
    model = prepared(plain, kind)
    with torch.inference_mode():
        for rows in (1, 2, 3, 17):
            for length in (1, 16):
                ids = torch.randint(257, (rows, length), generator=torch.Generator().manual_seed(rows))
                expected, found = plain(ids), model(ids)
                assert found.shape == expected.shape == (rows, length, 257)
                difference = (found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
                assert difference < CLOSE[kind]
                if kind == "float32":
                    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_fewer_bits_predict_a_text_nearly_as_well(tiny_model, architecture, rows, kind):
    plain = tiny_model(architecture=architecture)
    texts = written(plain, 17)[-rows:]
    assert loss(plain, texts) < math.log(257), "the model knows something that could be lost"
    assert loss(prepared(plain, kind), texts) == pytest.approx(loss(plain, texts), rel=0.02)


@pytest.mark.parametrize("architecture", ["classic", "modern"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_that_a_token_reads_are_told(tiny_model, architecture, kind):
    model = tiny_model(architecture=architecture)
    linear = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    size = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[kind]
    assert weights.prepare(model, **KINDS[kind]) == size * (linear + 257 * model.config.n_embd)


def test_one_row_has_a_layout_of_its_own_where_that_is_faster_and_memory_is_not_at_stake(tiny_model, monkeypatch):
    monkeypatch.setattr(weights, "transposes_are_faster", lambda: False)
    assert prepared(tiny_model(), "float32").blocks[0].mlp.down.turned is None
    monkeypatch.setattr(weights, "transposes_are_faster", lambda: True)
    model = tiny_model()
    matrix = prepared(model, "float32").blocks[0].mlp.down
    assert torch.equal(matrix.turned, model.blocks[0].mlp.down.weight.T) and matrix.turned.is_contiguous()
    assert prepared(tiny_model(), "bfloat16").blocks[0].mlp.down.turned is None, "it would be slower"
    monkeypatch.setattr(weights, "TWICE", 10_000)
    assert prepared(tiny_model(), "float32").blocks[0].mlp.down.turned is None


def test_which_layout_is_faster_is_found_by_trying(monkeypatch):
    """The clock stands still but for what a layout is said to cost."""
    clock = [0.0]
    monkeypatch.setattr(weights.time, "perf_counter", lambda: clock[0])

    def run(self, x, cost):
        clock[0] += cost[self.turned is not None]

    for cost, faster in (([1.0, 0.5], True), ([1.0, 0.95], False), ([0.5, 1.0], False)):
        weights.transposes_are_faster.cache_clear()
        monkeypatch.setattr(weights.Packed, "forward", lambda self, x, cost=cost: run(self, x, cost))
        assert weights.transposes_are_faster() is faster
    weights.transposes_are_faster.cache_clear()


def test_a_prepared_model_is_for_reading_only(tiny_model):
    model = prepared(tiny_model().train(), "float32")
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("sizes", [{"n_embd": 20, "n_head": 2}, {"n_embd": 48, "head_dim": 6, "n_inner": 37}])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_int8_takes_rows_of_any_length(tiny_model, sizes, rows):
    """torch's kernel reads 16 numbers at a time and crashes at the end of rows that are no multiple of that."""
    plain = tiny_model(**sizes)
    texts = written(plain, rows)
    assert loss(prepared(plain, "int8"), texts) == pytest.approx(loss(plain, texts), rel=0.02)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 17])
def test_int8_rounds_each_row_by_its_own_scale(rows, bias):
    """A row of large numbers takes nothing from the others, and one of zeros stays so."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=random) * torch.logspace(-6, 3, 40)[:, None]
    weight[7] = 0
    offset = torch.randn(40, generator=random) if bias else None
    x = torch.randn(rows, 64, generator=random).bfloat16()
    matrix = weights.Int8(weight.bfloat16(), offset.bfloat16() if bias else None)
    exact = x.float() @ weight.T + (offset if bias else 0)
    found = matrix(x).float()
    sizes = weight.norm(dim=-1) + (offset.abs() if bias else 0) + 1e-12
    assert ((found - exact).abs() / sizes).max() < 0.15
    assert found.shape == matrix(x[:, None])[:, 0].shape
    if not bias:
        assert not found[:, 7].any()
    steps = (weight.bfloat16().float() / matrix.scale.float()[:, None]).clamp(-127, 127)
    assert (matrix.rounded - steps).abs().max() < 0.501, "to the nearest"


# ---- in the engine


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_prepared_model_writes_in_the_engine(tiny_model, shape, kind):
    """What it reports of its own text, written among others, is what the plain model would."""
    plain = tiny_model(**shape)
    found = [[] for _ in range(6)]
    config = {"max_new_tokens": 16, "logprobs": 1, "ignore_eos": True, "temperature": 1.0}
    asked = [
        Request([65 + n] * (1 + 3 * n), Settings(seed=n, **config, prompt_logprobs=n % 2 == 0), pieces.append)
        for n, pieces in enumerate(found)
    ]
    Engine(prepared(plain, kind), BYTES, slots=4).run(asked)
    differences = []
    for request, pieces in zip(asked, found, strict=True):
        assert request.finish_reason == "length"
        tokens = [token for piece in pieces for token in piece.prompt + piece.tokens]
        logits = plain(torch.tensor([request.ids]))[0].detach()[:-1]
        ids = torch.tensor(request.ids[1:])
        exact = logits.log_softmax(-1)[torch.arange(len(ids)), ids][-len(tokens) :]
        assert [token.id for token in tokens] == request.ids[-len(tokens) :]
        differences.append(torch.tensor([token.logprob for token in tokens]) - exact)
    deviation = torch.cat(differences).square().mean().sqrt()
    assert deviation < (1e-4 if kind == "float32" else 1.5 * CLOSE[kind])


def test_a_deterministic_request_gets_the_same_bits_from_a_prepared_model(tiny_model):
    for kind in ("float32", "bfloat16", "int8"):
        model, texts = prepared(tiny_model(block_size=51), kind), []
        for company in (0, 7):
            pieces = []
            config = {"max_new_tokens": 30, "ignore_eos": True, "logprobs": 2}
            others = [Request([n] * n, Settings(**config), lambda _: None) for n in range(1, company + 1)]
            request = Request([65] * 9, Settings(seed=1, deterministic=True, **config), pieces.append)
            Engine(model, BYTES, slots=5).run([*others[:3], request, *others[3:]])
            texts.append([piece.tokens for piece in pieces])
        assert texts[0] == texts[1]


# ---- on other machines


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_where_there_is_no_better_layout_the_matrices_stay_as_they_are(tiny_model, monkeypatch, kind):
    def refuse(*_) -> None:
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512")

    monkeypatch.setattr(weights.Packed, "__init__", refuse)
    weights.transposes_are_faster.cache_clear()  # it is to try here
    plain = tiny_model()
    model, texts = prepared(plain, kind), written(plain, 3)
    assert isinstance(model.blocks[0].attn.qkv, weights.Plain)
    assert loss(model, texts) == pytest.approx(loss(plain, texts), rel=0.02)


OLD_PROCESSOR = """
import torch
from config import ModelConfig
from inference import weights
from model import GPT
for kind in ({"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"dtype": torch.bfloat16, "int8": True}):
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=8, vocab_size=50))
    weights.prepare(model, **kind)
    assert model(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()
"""


def test_a_processor_without_16_bit_instructions_can_read_16_bit_weights():
    """Most desktop processors have AVX2 and no more. Where there is no oneDNN for x86 the setting does nothing."""
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", OLD_PROCESSOR], cwd=ROOT, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(("seconds", "dtype"), [
    ((1.0, 0.5), torch.bfloat16), ((1.0, 0.95), torch.float32), ((1.0, 3.0), torch.float32),
])  # fmt: skip
def test_the_dtype_is_the_one_that_is_clearly_faster(monkeypatch, seconds, dtype):
    taken = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    monkeypatch.setattr(weights, "trial", taken.__getitem__)
    assert weights.fastest_dtype(torch.device("cpu")) == dtype


def test_in_int8_a_text_is_as_likely_whatever_is_reported(tiny_model):
    """Its head is another one than the embedding's, and what is written and what is scored must use the same."""
    model = tiny_model()
    weights.prepare(model, torch.bfloat16, int8=True)
    engine, found = Engine(model, ByteTokenizer(), slots=1, quantized=True), []
    for logprobs in (None, 3):
        pieces = []
        engine.run([Request(list(b"some text"), Settings(max_new_tokens=0, prompt_logprobs=True, logprobs=logprobs), pieces.append)])
        found.append([token.logprob for piece in pieces for token in piece.prompt])
    assert found[0] == found[1] and len(found[0]) == 8
