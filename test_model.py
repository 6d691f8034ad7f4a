"""Is the model right? The quick check of everything a GPT must do, for both architectures: `make quick-test`."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from config import ModelConfig, UserError
from model import GPT, IGNORE, HeadLoss, KVCache, build, describe, flops_per_token, product, rms_norm, run_hashes

TINY = {"vocab_size": 97, "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24}


SHAPES = {
    "classic": {"architecture": "classic"},
    "modern": {"architecture": "modern"},
    "grouped": {"architecture": "modern", "n_kv_head": 2},
    "runs": {"architecture": "classic", "ngrams": 3, "ngram_rows": 1000},
}


@pytest.fixture(params=SHAPES)
def model(request) -> GPT:
    """A tiny model with weights far from their gentle start, so that mistakes show."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SHAPES[request.param], **TINY))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(TINY["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


def test_shapes(model):
    assert model(ids(3, 24)).shape == (3, 24, 97)
    assert model(ids(3, 24), ids(3, 24)).shape == ()
    assert model(ids(3, 24), ids(3, 24), reduction="none").shape == (3, 24)


def test_context_longer_than_the_block_is_refused(model):
    with pytest.raises(ValueError, match="block_size of 24"):
        model(ids(1, 25))


def test_causality(model):
    """Changing a token changes no logit before it, and every place from it on can notice."""
    before = ids(1, 24)
    after = before.clone()
    after[0, 10] = (after[0, 10] + 1) % 97
    change = (model(before) - model(after)).abs().amax(-1)[0]
    assert change[:10].max() == 0
    assert change[10:].min() > 0


@pytest.mark.parametrize("cuts", [(1,) * 24, (10, 14), (7, 1, 9, 1, 6), (24,)])
def test_cache_gives_the_logits_of_the_full_forward(model, cuts):
    idx, cache, parts = ids(2, 24), KVCache(model.config, 2), []
    for piece in idx.split(cuts, dim=1):
        parts.append(model(piece, cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), model(idx), atol=2e-5, rtol=1e-4)
    assert cache.length == 24


@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_first_loss_is_near_ln_v(architecture):
    torch.manual_seed(0)
    config = ModelConfig(architecture=architecture, **{**TINY, "vocab_size": 5000})
    loss = GPT(config)(torch.randint(5000, (8, 24)), torch.randint(5000, (8, 24)))
    assert abs(loss.item() - math.log(5000)) < 0.1


@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_one_batch_can_be_overfitted(architecture):
    torch.manual_seed(0)
    model = GPT(ModelConfig(architecture=architecture, **TINY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    idx, targets = ids(4, 25)[:, :-1], ids(4, 25)[:, 1:]
    for _ in range(120):
        loss = model(idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("onednn", [False, True])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(model, monkeypatch, onednn):
    """The chunked head against torch's own loss, with some targets that are not scored, by either library of products."""
    monkeypatch.setattr("model.onednn_is_faster", lambda: onednn and torch.backends.mkldnn.is_available())
    monkeypatch.setattr("model.chunks", lambda n, *_: [slice(i, i + 7) for i in range(0, n, 7)])
    idx, targets = ids(3, 24), ids(3, 24).flip(0)
    targets[0, 5:9] = IGNORE
    loss = model(idx, targets)
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    plain = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    plain.backward()
    torch.testing.assert_close(loss, plain)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, atol=1e-5, rtol=1e-4, msg=name)
    with torch.no_grad():
        each = model(idx, targets, reduction="none")
    torch.testing.assert_close(each.sum() / (targets != IGNORE).sum(), plain.detach())


def test_gradients_in_bfloat16_point_where_those_in_float32_do(model):
    """Also through the attention of short rows, which stays in float32."""
    idx, targets = ids(4, 24), ids(4, 24).flip(1)
    found = []
    for enabled in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(idx, targets)
        loss.backward()
        found.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (loss, rough), (exact_loss, exact) = found
    assert loss == pytest.approx(exact_loss, rel=0.01)
    assert F.cosine_similarity(rough, exact, dim=0) > 0.99


@pytest.mark.parametrize(
    ("autocast", "logits", "gradient"),
    [("bfloat16", "bfloat16", "bfloat16"), ("float16", "float16", "float32"), (None, "float32", "float32")],
)
def test_the_head_multiplies_in_the_dtype_of_autocast(model, monkeypatch, autocast, logits, gradient):
    """But gradients not in float16: one of 1e-9 is nothing there."""
    seen = []

    def watched(x, weight):
        y = product(x, weight)
        seen.append(y.dtype)
        return y

    monkeypatch.setattr("model.product", watched)
    monkeypatch.setattr("model.onednn_is_faster", lambda: False)  # that path knows nothing of autocast anyway
    with torch.autocast("cpu", getattr(torch, autocast or "bfloat16"), enabled=autocast is not None):
        loss, each = model(ids(2, 24), ids(2, 24)), model(ids(2, 24), ids(2, 24), reduction="none")
    assert seen == [getattr(torch, dtype) for dtype in (logits, gradient, logits)]
    assert loss.dtype == each.dtype == torch.float32
    assert float(each.mean()) == pytest.approx(float(loss.detach()), rel=1e-3)


def test_confident_logits_keep_their_loss_and_gradient():
    """A target that the model holds for impossible: its probability underflows, its loss must not."""
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    head = torch.tensor([[200.0, 0.0], [-200.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = HeadLoss.apply(x, head, torch.tensor([1]), torch.ones(1), 3)
    loss.backward()
    assert float(loss) == pytest.approx(400.0)
    torch.testing.assert_close(x.grad, torch.tensor([[400.0, 0.0]]))


def test_loss_of_each_token(model):
    idx, targets = ids(2, 24), ids(2, 24)
    targets[1, 3] = IGNORE
    losses = model(idx, targets, reduction="none")
    assert losses[1, 3] == 0
    plain = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE)
    torch.testing.assert_close(losses.flatten(), plain)


def test_nothing_scored_gives_zero_and_no_nan(model):
    loss = model(ids(1, 4), torch.full((1, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_padding_of_the_vocabulary_is_invisible(model):
    state = model.state_dict()
    assert state["wte.weight"].shape == (97, 32)
    assert model.wte.weight.shape == (128, 32)
    again = build(describe(model))
    again.load_state_dict(state)
    assert torch.equal(again(ids(1, 24)), model(ids(1, 24)))
    assert model.parameter_count() == sum(p.numel() for p in model.parameters()) - 31 * 32


@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_what_is_learned_is_normed_as_torch_does_it(shape):
    x, weight = (torch.randn(*of, requires_grad=True) for of in ((2, 5, 3, 8), shape))
    grad = torch.randn(x.shape)
    ours, theirs = rms_norm(x, weight, 1e-2), F.rms_norm(x, (8,), eps=1e-2) * weight
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y, (x, weight), grad) for y in (ours, theirs)))


def test_checkpointed_activations_change_nothing(model):
    model.train()
    idx, grads = ids(2, 24), []
    for flag in (False, True):
        model.checkpoint_activations = flag
        model.zero_grad()
        model(idx, idx).backward()
        grads.append(model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_hidden_words_are_read_as_nothing_and_only_in_training():
    config = ModelConfig(architecture="modern", vocab_size=50, n_layer=1, n_head=2, n_embd=16, block_size=400, word_dropout=0.25)
    model, x = GPT(config), torch.ones(8, 400, 16)
    assert torch.equal(model.eval().drop_words(x), x)
    left = model.train().drop_words(x)[..., 0]  # (B, T)
    assert set(left.unique().tolist()) == {0.0, 1.0}
    assert left[:, 0].all()
    assert abs(left.mean().item() - 0.75) < 0.03  # four deviations of 3,200 coins


@torch.no_grad()
def test_runs_of_tokens_are_looked_up_by_what_they_are():
    """What is added to a token's embedding hangs on the run that ends there, as far as `ngrams` goes, and on nothing before it."""
    model = GPT(ModelConfig(**SHAPES["runs"], **TINY))
    assert torch.equal(model.embed(ids(2, 24)), model.wte(ids(2, 24))), "it starts as if it were not there"
    model.ngrams.weight.normal_()
    once = torch.tensor([[5, 6, 7, 8, 1, 6, 7, 8, 2, 6, 7]])
    added = model.embed(once) - model.wte(once)  # (1, T, C)
    torch.testing.assert_close(added[0, 7], added[0, 3])
    assert not torch.allclose(added[0, 2], added[0, 6]), "5 6 7 is not 1 6 7"
    assert not torch.allclose(added[0, 5], added[0, 9]), "1 6 is not 2 6"
    hashes = torch.stack(list(run_hashes(once, 3, 1000)))  # (lengths, 1, T), two of them with nothing before
    assert len(set(hashes[0, 0].tolist())) == len({(6, 7), (7, 8), (8, 1), (1, 6), (8, 2), (2, 6)})


@torch.no_grad()
def test_runs_of_tokens_are_spread_over_the_table():
    """As many runs as there are rows fill 1 - 1/e of a table without favourites."""
    rows = 2**14
    tokens = torch.arange(rows + 1)[None]
    [found] = run_hashes(tokens, 2, rows)
    assert found.numel() == rows and found.min() >= 0 and found.max() < rows
    assert 0.55 * rows < found.unique().numel()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"n_embd": 30, "n_head": 4}, "--n_embd"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"architecture": "modern", "n_head": 6, "n_embd": 36, "n_kv_head": 4}, "--n_kv_head"),
        ({"n_head": 6, "n_embd": 36, "n_kv_head": 2}, "modern"),
        ({"dropout": 1.0}, "dropout"),
        ({"word_dropout": -0.1}, "word_dropout is -0.1"),
        ({"ngrams": 1}, "--ngrams 2"),
        ({"ngrams": 9}, "ngrams is 9"),
        ({"architecture": "bert"}, "--architecture"),
    ],
)
def test_impossible_shapes_are_named(values, names):
    with pytest.raises(UserError, match=names):
        ModelConfig(**values)


def test_known_sizes():
    """GPT-2's small and medium models have 124 M and 354 M parameters."""
    with torch.device("meta"):
        small = GPT(ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024))
        medium = GPT(ModelConfig(n_layer=24, n_head=16, n_embd=1024, block_size=1024))
    assert small.parameter_count() == 124_439_808
    assert medium.parameter_count() == 354_823_168


def test_flops_match_the_textbook():
    """6 N and the attention: N being what multiplies."""
    config = ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024)
    n = 12 * 12 * 768**2 + 50257 * 768
    assert flops_per_token(config) == 6 * n + 12 * 12 * 768 * 1024
