"""How the next token is chosen, against slow and obvious ways to do the same."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from config import GenerateConfig, SamplingConfig
from inference.request import Settings
from inference.sampling import GROUP, Sampler, draw, likeliest, nucleus, start_ids, uniform
from tokenizer import ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer()
LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12)
BELOW_1 = math.nextafter(1, 0)


def kept(logits: list[float], **values) -> set[int]:
    """The tokens that a sampler leaves."""
    left = Sampler([SamplingConfig(**values)]).restrict(torch.tensor([logits]))[0]
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
    assert torch.equal(Sampler([SamplingConfig()]).restrict(row), row)


@given(logits=LOGITS, k=st.integers(0, 5), p=st.floats(0, 1), m=st.floats(0, 1))
def test_the_likeliest_always_stays(logits, k, p, m):
    assert int(torch.tensor(logits).argmax()) in kept(logits, top_k=k, top_p=p, min_p=m)


def test_the_likeliest_stays_where_only_the_logits_tell_it_from_the_next():
    assert kept([0.0, 1e-9], top_p=0.1) == {1}


def long_row(spread: float, size: int = 3000) -> Tensor:
    """Logits of a large vocabulary: the larger the spread, the more of the probability lies with few tokens."""
    return spread * torch.randn(size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("spread", [6.0, 1.0, 0.01], ids=["peaked", "broad", "flat"])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(spread, p):
    logits = long_row(spread)
    order = logits.argsort(descending=True)
    exact = logits.double().softmax(-1)[order]
    before = exact.cumsum(-1) - exact
    left = nucleus(logits[None], torch.tensor([[p]]))[0].isfinite()
    wrong = (left[order] != ((before < p) | (torch.arange(3000) == 0))) & ((before - p).abs() > 1e-5)
    assert not wrong.any()
    assert left[order[: left.sum()]].all(), "the likeliest, without a gap"


@pytest.mark.parametrize("V", [1, GROUP - 1, GROUP, GROUP + 1, 1000])
def test_the_likeliest_is_the_first_of_equals(V):
    """Greedy text must not depend on how the maximum is looked for. 16-bit logits are full of equals."""
    logits = torch.randn(50, V, generator=torch.Generator().manual_seed(V)).bfloat16()
    assert torch.equal(likeliest(logits), logits.argmax(-1))
    assert likeliest(torch.zeros(2, V)).tolist() == [0, 0]
    assert likeliest(torch.full((1, V), -torch.inf)).tolist() == [0]


@given(rows=st.lists(st.lists(st.integers(-2, 2), min_size=9, max_size=9), min_size=1, max_size=5), p=st.floats(0, 0.9))
def test_of_equals_at_the_border_of_the_nucleus_the_first_stay(rows, p):
    """Each row by itself, whatever stands in the others."""
    left = nucleus(torch.tensor(rows).float(), torch.full((len(rows), 1), p)).isfinite()
    for logits, stays in zip(rows, left.tolist(), strict=True):
        order = sorted(range(9), key=lambda i: (-logits[i], i))
        assert {i for i, there in enumerate(stays) if there} == set(order[: sum(stays)])
        assert kept([float(each) for each in logits], top_p=p) == set(order[: sum(stays)])


# ---- penalties and biases


@given(logits=LOGITS, seen=st.lists(st.integers(0, 11), max_size=20), penalty=st.floats(0.5, 2))
def test_the_penalty_meets_each_used_token_once(logits, seen, penalty):
    seen = [i % len(logits) for i in seen]
    expected = list(logits)
    for i in set(seen):
        expected[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
    found = Sampler([SamplingConfig(repetition_penalty=penalty)]).penalise(torch.tensor([logits]), [seen], [0])
    torch.testing.assert_close(found, torch.tensor([expected]))


def penalised(logits: list[float], ids: list[int], prompt: int, config: Settings) -> list[float]:
    """The logits after bias and penalties, the slow way."""
    after = []
    for i, value in enumerate(logits):
        value += config.logit_bias.get(i, 0)
        if i in ids:
            value = value / config.repetition_penalty if value > 0 else value * config.repetition_penalty
        times = ids[prompt:].count(i)
        after.append(value - config.presence_penalty * (times > 0) - config.frequency_penalty * times)
    return after


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6),
            st.lists(st.integers(0, 5), max_size=12),  # the ids so far
            st.integers(0, 12),  # of which the prompt
            st.floats(0.5, 2),
            st.floats(-2, 2),
            st.floats(-2, 2),
            st.dictionaries(st.integers(0, 5), st.floats(-50, 50)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_penalties_and_biases_do_what_a_slow_loop_does(rows):
    values = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
    configs = [Settings(temperature=0, **dict(zip(values, row[3:], strict=True))) for row in rows]
    logits = torch.tensor([row[0] for row in rows])
    seen, prompts = [row[1] for row in rows], [min(row[2], len(row[1])) for row in rows]
    expected = [penalised(*each) for each in zip(logits.tolist(), seen, prompts, configs, strict=True)]
    sampler = Sampler(configs)
    chosen = sampler.choose(logits, [0.0] * len(rows), seen, prompts).tolist()
    for row, token in zip(expected, chosen, strict=True):
        assert row[token] >= max(row) - 1e-4


def test_a_penalty_of_what_was_written_leaves_the_prompt_alone():
    config = Settings(presence_penalty=1.0, frequency_penalty=0.5)
    found = Sampler([config]).penalise(torch.zeros(1, 4), [[0, 0, 0, 1, 2, 2]], [3])
    assert found.tolist() == [[0.0, -1.5, -2.0, 0.0]]


def test_a_bias_is_added_and_forbids():
    logits = torch.tensor([[5.0, 4.0, 3.0]])
    for bias, wanted in (({2: 3.0}, 2), ({0: -2}, 1), ({0: -100, 1: -100}, 2)):
        assert Sampler([Settings(temperature=0, logit_bias=bias)]).choose(logits, [0.0], [[]], [0]).tolist() == [wanted]
    forbidden = Sampler([Settings(temperature=1.0, logit_bias={0: -100})] * 200)
    assert 0 not in forbidden.choose(logits.expand(200, 3), spread_out(200), [[]] * 200, [0] * 200)
    assert logits.tolist() == [[5.0, 4.0, 3.0]], "the model's own logits stay as they are: they are reported"


# ---- what is drawn


def spread_out(n: int) -> list[float]:
    """n numbers in [0, 1) at equal distances."""
    return [(i + 0.5) / n for i in range(n)]


def drawn(logits: list[float], n: int, seed: int = 0, **values) -> list[int]:
    """n tokens, each at a place of its own."""
    uniforms = [uniform(seed, place) for place in range(n)]
    rows = torch.tensor([logits]).expand(n, len(logits))
    return Sampler([SamplingConfig(**values)] * n).choose(rows, uniforms, [[]] * n, [0] * n).tolist()


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


@pytest.mark.parametrize("number", [0.0, 0.3, BELOW_1])
def test_temperature_0_takes_the_likeliest_whatever_is_drawn(number):
    logits = torch.tensor([[0.0, 3.0, 2.9]])
    config = SamplingConfig(temperature=0, top_k=3, top_p=0.5)
    assert Sampler([config]).choose(logits, [number], [[]], [0]).tolist() == [1]
    company = Sampler([SamplingConfig(temperature=100), config])
    assert company.choose(logits.expand(2, 3), [number, number], [[], []], [0, 0])[1] == 1


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-40, 1e-300])
def test_a_tiny_temperature_takes_the_likeliest(temperature):
    assert set(drawn([-50.0, 3.0, 2.9, 2.5], 50, temperature=temperature)) == {1}


def test_a_high_temperature_draws_everything():
    assert set(drawn([-50.0, 3.0, 2.9, 2.5], 200, temperature=100)) == {0, 1, 2, 3}


def test_a_token_of_no_probability_is_never_drawn():
    assert 0 not in drawn([-1e9, 0.0, 0.0], 500, temperature=1.0)
    assert 2 not in drawn([0.0, 0.0, -1e9], 500, temperature=1.0)


def test_the_same_seed_draws_the_same():
    logits = [0.0] * 50
    assert drawn(logits, 30, seed=3) == drawn(logits, 30, seed=3) != drawn(logits, 30, seed=4)


# ---- many rows at once


def some_settings(chance: random.Random) -> Settings:
    """Settings as a client might mix them."""
    return Settings(
        temperature=chance.choice([0, 1e-3, 0.8, 1.0, 5.0]),
        top_k=chance.choice([0, 0, 1, 3, 50, 10**6]),
        top_p=chance.choice([1.0, 1.0, 0.0, 0.5, 0.9, 0.999]),
        min_p=chance.choice([0.0, 0.0, 0.1, 1.0]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.3, 0.7]),
        presence_penalty=chance.choice([0.0, 0.0, 1.5, -1.0]),
        frequency_penalty=chance.choice([0.0, 0.0, 0.5, -0.5]),
        logit_bias=chance.choice([{}, {}, {3: 4.0, 2: -100.0}]),
    )


@pytest.mark.parametrize("V", [5, 257, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_mixed_settings_choose_what_each_would_alone(V, dtype):
    """In bfloat16 many logits are equal, and which of them stay must not depend on the other rows either."""
    chance = random.Random(V)
    random_logits = torch.Generator().manual_seed(V)
    for _ in range(15):
        B = chance.randint(1, 9)
        spreads = torch.tensor([[chance.choice([0.0, 0.3, 1.0, 4.0])] for _ in range(B)])
        logits = (spreads * torch.randn(B, V, generator=random_logits)).to(dtype)
        configs = [some_settings(chance) for _ in range(B)]
        uniforms = [chance.random() for _ in range(B)]
        seen = [[chance.randrange(V) for _ in range(chance.randint(0, 30))] for _ in range(B)]
        prompts = [chance.randint(0, len(ids)) for ids in seen]
        together = Sampler(configs).choose(logits, uniforms, seen, prompts).tolist()
        alone = [
            int(Sampler([configs[n]]).choose(logits[n : n + 1], uniforms[n : n + 1], [seen[n]], [prompts[n]]))
            for n in range(B)
        ]
        assert together == alone


def test_what_stays_of_equal_logits_does_not_depend_on_other_rows():
    equal = long_row(2.0).bfloat16().float()
    flat = torch.zeros_like(equal)
    for p in np.linspace(0.05, 0.95, 40):
        config = SamplingConfig(top_p=p)
        alone = Sampler([config]).restrict(equal[None])[0]
        together = Sampler([config, SamplingConfig(top_p=0.99)]).restrict(torch.stack((equal, flat)))[0]
        assert torch.equal(alone, together), p


# ---- drawing


def slowly_drawn(ladder: np.ndarray, number: float) -> int:
    """The token on which a number falls."""
    return next(token for token, height in enumerate(ladder) if height > number * ladder[-1])


@pytest.mark.parametrize("V", [1, 2, 100, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP, 1000, 4095])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_a_number_falls_on_the_token_of_a_plain_sum(V, spread):
    probabilities = (spread * torch.randn(V, generator=torch.Generator().manual_seed(V))).softmax(-1)
    at_random = [uniform(V, place) for place in range(300)]
    numbers = [*at_random, 0.0, BELOW_1, *spread_out(300)]
    found = draw(probabilities.expand(len(numbers), V), torch.tensor(numbers, dtype=torch.float64)).tolist()
    ladder = np.cumsum(probabilities.double().numpy())
    for token, number in zip(found, numbers, strict=True):
        assert 0 <= token < V
        below = (ladder[token - 1] if token else 0.0) / ladder[-1]
        # groups are summed in float32, so that a number within its rounding of a boundary may fall on either side
        assert below - 1e-6 <= number <= ladder[token] / ladder[-1] + 1e-6
    assert sum(token == slowly_drawn(ladder, x) for token, x in zip(found, at_random, strict=False)) >= 297


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-9, 0.3, 1.0]), min_size=1, max_size=40).filter(any),
    st.integers(0, 2 * GROUP + 3),
    st.integers(0, GROUP),
    st.one_of(st.sampled_from([0.0, 5e-324, 0.5, BELOW_1]), st.floats(0, 1, exclude_max=True)),
)
@settings(max_examples=300)
def test_a_token_of_probability_0_is_not_drawn_by_any_number(weights, before, behind, number):
    """Wherever in the vocabulary the likely ones stand."""
    row = torch.tensor([0.0] * before + weights + [0.0] * behind)
    token = int(draw((row / row.sum())[None], torch.tensor([number], dtype=torch.float64)))
    assert row[token] > 0


@pytest.mark.parametrize("V", [3, GROUP, 700])
def test_the_least_number_draws_the_first_and_the_largest_the_last(V):
    row = torch.zeros(V)
    row[1:-1] = 1 / (V - 2)
    numbers = torch.tensor([0.0, BELOW_1], dtype=torch.float64)
    assert draw(row.expand(2, V), numbers).tolist() == [1, V - 2]


# ---- the numbers


def test_a_number_is_a_function_of_seed_and_place():
    assert uniform(7, 3) == uniform(7, 3)
    assert len({uniform(seed, place) for seed in range(-5, 20) for place in range(40)}) == 1000
    assert uniform(2**64 + 1, 0) == uniform(1, 0)
    assert all(0 <= uniform(seed, 10**6) < 1 for seed in (-1, 2**63 - 1, 2**80))


@pytest.mark.parametrize("along", ["places", "seeds"])
def test_the_numbers_are_uniform_and_neighbours_know_nothing_of_each_other(along):
    """Of one text from place to place, and of one place from seed to seed: seeds are often 0, 1, 2."""
    x = np.array([uniform(5, n) if along == "places" else uniform(n, 5) for n in range(4000)])
    grid = np.histogram2d(x[:-1], x[1:], bins=8, range=[[0, 1], [0, 1]])[0]
    expected = 3999 / 64
    assert ((grid - expected) ** 2 / expected).sum() < 117  # 63 degrees of freedom: a false alarm in 20,000 seeds


# ---- how a text begins


def test_a_prompt_of_a_corpus_of_documents_begins_one():
    assert start_ids(BYTES, "ab", documents=True) == [256, 97, 98]
    assert start_ids(BYTES, "", documents=True) == [256]


def test_a_prompt_of_a_single_text_goes_on_in_it():
    assert start_ids(BYTES, "ab", documents=False) == [97, 98]
    assert start_ids(BYTES, "", documents=False) == [10]
    assert len(start_ids(CharTokenizer("ab"), "", documents=False)) > 0


def test_a_sampler_takes_the_command_lines_settings_too():
    assert Sampler([GenerateConfig(temperature=0)]).choose(torch.tensor([[0.0, 1.0]]), [0.0], [[]], [0]).tolist() == [1]
