"""The score of a model, against the same sum done token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training import evaluate as evaluation
from training.distributed import Ranks
from training.evaluate import evaluate, score

ALONE = Ranks(0, 1, torch.device("cpu"))
VAL = ["once there was a cat", "it sat", "a longer text that does not fit into one block of the model", "é日🙂"]


class Part(Ranks):
    """One of several ranks; what the others would say is put in by hand."""

    said: dict[int, list]

    def gather(self, value):
        self.said[self.rank] = value
        return [self.said[rank] for rank in sorted(self.said)]


@pytest.fixture
def corpus(corpus_of):
    return corpus_of("some text to learn from", "and more of it", val=VAL)


def token_by_token(model, corpus, block_size: int) -> list[tuple[float, int]]:
    """(nats, bytes) of every target, each scored alone with the context that its window gives it."""
    from data import val_windows

    lengths, found = corpus.tokenizer.byte_lengths(), []
    for start, n in val_windows(corpus.val, block_size).tolist():
        ids = torch.from_numpy(corpus.val[start : start + n + 1])
        for at in range(n):
            with torch.no_grad():
                logits = model(ids[None, : at + 1])[0, -1].double()
            target = int(ids[at + 1])
            found.append((float(logits.logsumexp(-1) - logits[target]), lengths[target]))
    return found


def test_the_score_is_the_sum_over_every_token(corpus, tiny_model):
    model = tiny_model()
    nats, n_bytes = zip(*token_by_token(model, corpus, 32), strict=True)
    found = evaluate(model, corpus, 32, ALONE)
    assert found.tokens == len(nats) == len(corpus.val) - 1
    assert found.bytes == sum(n_bytes) == corpus.meta["val"]["bytes"]
    assert found.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found.bpb == pytest.approx(sum(nats) / math.log(2) / sum(n_bytes), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


@pytest.mark.parametrize("tokens", [1, 64, 10_000])
def test_the_score_does_not_depend_on_the_grouping(corpus, tiny_model, monkeypatch, tokens):
    model = tiny_model()
    before = evaluate(model, corpus, 32, ALONE)
    monkeypatch.setattr(evaluation, "TOKENS", tokens)
    assert evaluate(model, corpus, 32, ALONE).figures() == pytest.approx(before.figures(), rel=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_the_score_does_not_depend_on_the_number_of_ranks(corpus, tiny_model, monkeypatch, world):
    monkeypatch.setattr(evaluation, "TOKENS", 64)
    model, said = tiny_model(), {}
    for rank in range(world):
        part = Part(rank, world, torch.device("cpu"))
        object.__setattr__(part, "said", said)
        last = evaluate(model, corpus, 32, part)
    assert last.figures() == pytest.approx(evaluate(model, corpus, 32, ALONE).figures(), rel=1e-6)


@pytest.mark.parametrize("kind", ["char", "bpe", "byte"])
def test_every_byte_of_the_validation_text_is_counted(corpus_of, tiny_model, kind):
    """Characters that the training text did not have are counted as well, in halves of their bytes."""
    corpus = corpus_of("some text to learn from", "and more of it", val=VAL, tokenizer=kind)
    found = evaluate(tiny_model(corpus.tokenizer.vocab_size), corpus, 32, ALONE)
    assert found.bytes == sum(len(text.encode()) for text in VAL)
    assert found.bpb == pytest.approx(found.loss * found.tokens / found.bytes / math.log(2))


def test_bits_per_byte_of_single_bytes_are_the_loss_in_bits(home, tiny_model):
    """One text, one id a byte: every target is one byte."""
    import data
    from config import TrainConfig
    from sources import Source

    source = Source("text", "text", 3000, lambda: iter([("words and words " * 40, True)]))
    corpus = data.prepare(TrainConfig(tokenizer="byte"), source, 0, progress=False)
    found = evaluate(tiny_model(), corpus, 32, ALONE)
    assert found.bpb == pytest.approx(found.loss / math.log(2), rel=1e-9)
    assert found.bpb_se == pytest.approx(found.loss_se / math.log(2), rel=1e-9)


def test_the_windows_make_up_the_loss(corpus, tiny_model):
    found = evaluate(tiny_model(), corpus, 32, ALONE)
    assert len(found.terms) > 1 and found.terms.sum() == pytest.approx(found.loss, rel=1e-9)


def test_an_untrained_uniform_model_scores_the_size_of_its_vocabulary(corpus, tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.wte.weight.zero_()
    assert evaluate(model, corpus, 32, ALONE).loss == pytest.approx(math.log(257), rel=1e-6)
    assert evaluate(model, corpus, 32, ALONE).loss_se == pytest.approx(0, abs=1e-6)


def test_a_limit_scores_about_so_many_tokens_spread_over_the_text(corpus_of, tiny_model):
    corpus = corpus_of("x", val=[f"held out text number {n}" for n in range(200)])
    found = evaluate(tiny_model(), corpus, 32, ALONE, limit=1000)
    assert 800 < found.tokens < 1200
    assert found == evaluate(tiny_model(), corpus, 32, ALONE, limit=1000)


def test_evaluating_leaves_the_model_as_it_was(corpus, tiny_model):
    model = tiny_model(dropout=0.5).train()
    assert evaluate(model, corpus, 32, ALONE) == evaluate(model, corpus, 32, ALONE)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_the_standard_error_is_what_a_bootstrap_finds():
    """Windows of different lengths and difficulty, drawn again 4,000 times: that figure is good to about 2 %."""
    random = np.random.default_rng(0)
    tokens = random.integers(20, 200, 300)
    nats = tokens * random.normal(3, 0.4, 300) + random.normal(0, 10, 300)
    n_bytes = tokens * random.normal(4, 0.3, 300)
    found = score(list(zip(nats, tokens, n_bytes, strict=True)))
    drawn = random.integers(0, 300, (4000, 300))
    losses = nats[drawn].sum(1) / tokens[drawn].sum(1)
    bpb = nats[drawn].sum(1) / n_bytes[drawn].sum(1) / math.log(2)
    assert found.loss_se == pytest.approx(losses.std(), rel=0.08)
    assert found.bpb_se == pytest.approx(bpb.std(), rel=0.08)


def test_a_single_window_has_no_standard_error():
    found = score([(30.0, 10, 12)])
    assert found.loss == 3
    assert math.isnan(found.loss_se)


def test_a_hopeless_loss_is_a_number_all_the_same():
    assert math.isfinite(score([(1e6, 10, 10), (1e6, 10, 10)]).perplexity)
