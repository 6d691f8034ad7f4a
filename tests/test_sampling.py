"""How the next token is chosen, against slow and obvious ways to do the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import GenerateConfig
from inference import sampling
from inference.sampling import choose, many, penalise, restrict, start_ids, stream
from tokenizer import ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer()
LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12)


def kept(logits: list[float], **values) -> set[int]:
    """The tokens that a sampler leaves."""
    left = restrict(torch.tensor([logits]), GenerateConfig(**values))[0]
    return set(torch.isfinite(left).nonzero()[:, 0].tolist())


def softmax(logits: list[float]) -> list[float]:
    return torch.tensor(logits).softmax(-1).tolist()


# ---- what is ruled out


@given(logits=LOGITS, k=st.integers(1, 14))
def test_top_k_keeps_the_k_likeliest_and_their_equals(logits, k):
    kth = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    assert kept(logits, top_k=k) == {i for i, value in enumerate(logits) if value >= kth}


@given(logits=LOGITS, p=st.floats(0, 1, exclude_max=True))
def test_top_p_keeps_the_likeliest_until_they_hold_enough(logits, p):
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    held, before = set(), 0.0
    probabilities = softmax(logits)
    for i in order:
        if held and before >= p + 1e-5:
            break
        held.add(i)
        before += probabilities[i]
    left = kept(logits, top_p=p)
    assert order[0] in left
    assert left <= held
    assert sum(probabilities[i] for i in left) >= p - 1e-5
    assert left == set(order[: len(left)])


@given(logits=LOGITS, share=st.floats(0.01, 1))
def test_min_p_drops_what_is_far_below_the_likeliest(logits, share):
    probabilities = softmax(logits)
    least = share * max(probabilities)
    left = kept(logits, min_p=share)
    assert {i for i, p in enumerate(probabilities) if p > least * (1 + 1e-5)} <= left
    assert left <= {i for i, p in enumerate(probabilities) if p >= least * (1 - 1e-5)}


@given(logits=LOGITS)
def test_nothing_is_ruled_out_unless_asked(logits):
    row = torch.tensor([logits])
    assert torch.equal(restrict(row, GenerateConfig()), row)


@given(logits=LOGITS, k=st.integers(0, 5), p=st.floats(0, 1), m=st.floats(0, 1))
def test_the_likeliest_always_stays(logits, k, p, m):
    assert int(torch.tensor(logits).argmax()) in kept(logits, top_k=k, top_p=p, min_p=m)


@given(logits=LOGITS, seen=st.lists(st.integers(0, 11), max_size=20), penalty=st.floats(0.5, 2))
def test_the_penalty_meets_each_used_token_once(logits, seen, penalty):
    seen = [i % len(logits) for i in seen]
    expected = list(logits)
    for i in set(seen):
        expected[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
    found = penalise(torch.tensor([logits]), torch.tensor([seen], dtype=torch.int64), penalty)
    torch.testing.assert_close(found, torch.tensor([expected]))


# ---- what is drawn


def drawn(logits: list[float], n: int, seed: int = 0, **values) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    rows, config = torch.tensor([logits]), GenerateConfig(**values)
    return [int(choose(rows, torch.zeros(1, 1, dtype=torch.int64), config, [random])) for _ in range(n)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"temperature": 1.0}, lambda x: softmax(x)),
        ({"temperature": 0.5}, lambda x: softmax([2 * v for v in x])),
        ({"temperature": 1.0, "top_k": 2}, lambda x: softmax([*x[:2], -1e9, -1e9])),
    ],
)
def test_frequencies_are_the_probabilities(values, expected):
    logits = [1.0, 0.5, 0.0, -1.0]
    n = 4000
    wanted = [p for p in expected(logits) if p > 0]
    counts = torch.tensor(drawn(logits, n, **values)).bincount(minlength=4).tolist()
    assert sum(counts[len(wanted) :]) == 0
    chi_square = sum((count - n * p) ** 2 / (n * p) for count, p in zip(counts, wanted, strict=False))
    assert chi_square < 21.1  # three degrees of freedom: a false alarm in 10,000 seeds, and the seed is fixed


def test_temperature_0_takes_the_likeliest_and_draws_nothing():
    random = torch.Generator().manual_seed(0)
    before = random.get_state()
    logits = torch.tensor([[0.0, 3.0, 2.9]])
    assert choose(logits, torch.zeros(1, 1, dtype=torch.int64), GenerateConfig(temperature=0), [random]).tolist() == [1]
    assert torch.equal(random.get_state(), before)


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-40, 1e-300])
def test_a_tiny_temperature_takes_the_likeliest(temperature):
    assert set(drawn([-50.0, 3.0, 2.9, 2.5], 50, temperature=temperature)) == {1}


def test_a_token_of_no_probability_is_never_drawn():
    assert 0 not in drawn([-1e9, 0.0, 0.0], 500, temperature=1.0)
    assert 2 not in drawn([0.0, 0.0, -1e9], 500, temperature=1.0)


def test_the_same_seed_draws_the_same():
    logits = [0.0] * 50
    assert drawn(logits, 30, seed=3) == drawn(logits, 30, seed=3) != drawn(logits, 30, seed=4)


# ---- whole texts


@pytest.mark.parametrize("architecture", ["classic", "modern"])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_text_does_not_depend_on_its_neighbours(tiny_model, architecture, temperature):
    model = tiny_model(architecture=architecture)
    config = GenerateConfig(max_new_tokens=50, temperature=temperature, repetition_penalty=1.1, top_p=0.95)
    together = many(model, BYTES, [256, 65], config, [1, 2, 3])
    assert together == [many(model, BYTES, [256, 65], config, [seed])[0] for seed in (1, 2, 3)]
    assert (len(set(together)) == 1) == (temperature == 0)


def test_streaming_gives_the_same_text(tiny_model):
    config = GenerateConfig(max_new_tokens=60, temperature=1.0)
    pieces = list(stream(tiny_model(), BYTES, [256, 65], config, 1))
    assert "".join(pieces) == many(tiny_model(), BYTES, [256, 65], config, [1])[0]


@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_the_cache_changes_nothing(tiny_model, architecture):
    """Greedy tokens against reading everything again at each step, within the block."""
    model, ids = tiny_model(architecture=architecture), [256, 72, 101]
    found = [int(t) for t in sampling.tokens(model, ids, GenerateConfig(max_new_tokens=29, temperature=0), [0])]
    for token in found:
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids = [*ids, token]


@pytest.mark.parametrize("block_size", [1, 2, 7, 32])
@pytest.mark.parametrize("prompt", [1, 32, 100])
def test_the_text_goes_on_when_the_context_is_full(tiny_model, block_size, prompt):
    model = tiny_model(block_size=block_size)
    found = list(sampling.tokens(model, [65] * prompt, GenerateConfig(max_new_tokens=80, temperature=0), [0]))
    assert len(found) == 80


def test_when_the_context_is_full_the_older_half_is_forgotten(tiny_model):
    model, ids = tiny_model(block_size=8), [1, 2, 3, 4, 5, 6, 7, 8]
    found = [int(t) for t in sampling.tokens(model, ids, GenerateConfig(max_new_tokens=2, temperature=0), [0])]
    assert found[0] == int(model(torch.tensor([ids]))[0, -1].argmax())
    assert found[1] == int(model(torch.tensor([[*ids, found[0]][-4:]]))[0, -1].argmax())


def test_no_tokens_are_written_when_none_are_asked_for(tiny_model):
    assert "".join(stream(tiny_model(), BYTES, [65], GenerateConfig(max_new_tokens=0), 0)) == ""


# ---- reasons to stop: a model that writes what it is told


def script(monkeypatch, *texts: str, tokenizer=BYTES) -> None:
    """Lets the model write these texts, an id at a time, one text a row."""
    rows = [[*tokenizer.encode(text).tolist(), tokenizer.eot] for text in texts]

    def told(*_) -> Iterator[torch.Tensor]:
        for column in range(max(map(len, rows))):
            yield torch.tensor([row[min(column, len(row) - 1)] for row in rows])

    monkeypatch.setattr(sampling, "tokens", told)


def streamed(*stops: str, tokenizer=BYTES) -> list[str]:
    return list(stream(None, tokenizer, [0], GenerateConfig(stop=stops), 0))


@pytest.mark.parametrize("stop", ["END", "E", "日本", "\n\n"])
def test_a_stop_string_is_never_shown_nor_what_follows(monkeypatch, stop):
    """Byte by byte, so that every stop string is split across tokens."""
    script(monkeypatch, f"some text, ENormous é\n{stop} and more")
    expected = {"E": "some text, ", "\n\n": "some text, ENormous é"}.get(stop, "some text, ENormous é\n")
    assert "".join(streamed(stop)) == expected


@given(text=st.text("ab\n", max_size=30), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
@settings(max_examples=200)
def test_the_first_of_several_stop_strings_ends_the_text(text, stops):
    with pytest.MonkeyPatch.context() as patch:
        script(patch, text)
        found = "".join(streamed(*stops))
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    first = text[: ends[0]] if ends else text  # when a stop string is whole the text ends
    cuts = [first.find(stop) for stop in stops if stop in first]
    assert found == (first[: min(cuts)] if cuts else first)


def test_text_that_only_begins_a_stop_string_is_shown_in_the_end(monkeypatch):
    script(monkeypatch, "almost EN")
    assert "".join(streamed("END")) == "almost EN"


def test_an_empty_stop_string_stops_nothing(monkeypatch):
    script(monkeypatch, "text")
    assert "".join(streamed("")) == "text"


def test_the_end_of_text_ends_the_text_and_is_not_shown(monkeypatch):
    script(monkeypatch, "short")
    assert "".join(streamed()) == "short"


def test_pieces_are_whole_characters(monkeypatch):
    script(monkeypatch, "é日🙂")
    assert [piece for piece in streamed() if piece] == ["é", "日", "🙂"]


def test_each_of_many_ends_where_it_ends(monkeypatch):
    script(monkeypatch, "short", "a longer one", "")
    assert many(None, BYTES, [0], GenerateConfig(), [1, 2, 3]) == ["short", "a longer one", ""]


def test_many_obey_stop_strings_too(monkeypatch):
    script(monkeypatch, "one. two.", "no stop")
    assert many(None, BYTES, [0], GenerateConfig(stop=(". ",)), [1, 2]) == ["one", "no stop"]


# ---- how a text begins


def test_a_prompt_of_a_corpus_of_documents_begins_one():
    assert start_ids(BYTES, "ab", documents=True) == [256, 97, 98]
    assert start_ids(BYTES, "", documents=True) == [256]


def test_a_prompt_of_a_single_text_goes_on_in_it():
    assert start_ids(BYTES, "ab", documents=False) == [97, 98]
    assert start_ids(BYTES, "", documents=False) == [10]
    assert len(start_ids(CharTokenizer("ab"), "", documents=False)) > 0


def test_the_logarithm_of_the_text_is_what_the_model_says(tiny_model):
    """Sampling at temperature 1 must match the model: the mean surprise of its own text is its entropy there."""
    model, config = tiny_model(vocab_size=5), GenerateConfig(max_new_tokens=1, temperature=1.0)
    probabilities = model(torch.tensor([[0]]))[0, -1].detach().softmax(-1)
    (chosen,) = sampling.tokens(model, [0], config, range(3000))
    surprise = -probabilities.log()[chosen.clone()]
    entropy = float(-(probabilities * probabilities.log()).sum())
    deviation = float(surprise.std()) / math.sqrt(3000)
    assert abs(float(surprise.mean()) - entropy) < 4.5 * deviation  # a false alarm in 150,000 seeds; these are fixed
