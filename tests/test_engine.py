"""The engine: many texts at once, each as if it were alone, and what becomes of those that end early."""

from __future__ import annotations

import itertools
import logging
import math
import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from config import UserError
from inference import engine as engines
from inference import kv_cache, weights
from inference.engine import Engine, stream, texts
from inference.kv_cache import ManyRows
from inference.request import Busy, NotReady, Request, Settings
from inference.scheduler import Scheduler, common_start
from tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
SHAPES = {
    "classic": {"architecture": "classic"},
    "modern": {"architecture": "modern"},
    "grouped heads": {"architecture": "modern", "n_kv_head": 2},
    "one key head": {"architecture": "modern", "n_kv_head": 1},
    "runs of tokens": {"architecture": "modern", "ngrams": 4, "ngram_rows": 97},
}
LONG = 10**6  # tokens that no test waits for


class Asked(Request):
    """A request that keeps its pieces."""

    def __init__(self, ids: list[int], scope: str = "", deadline: float = float("inf"), **values):
        super().__init__(ids, Settings(**{"ignore_eos": True, **values}), self.take, scope, deadline)
        self.pieces, self.done = [], threading.Event()

    def take(self, piece) -> None:
        assert not self.done.is_set(), "nothing follows the last piece"
        self.pieces.append(piece)
        if piece.finish_reason:
            assert piece.finish_reason == self.finish_reason
            self.done.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list:
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def new(self) -> list[int]:
        """The ids that were written."""
        assert [token.id for token in self.tokens] == self.ids[self.prompt_length :]
        return [token.id for token in self.tokens]

    @property
    def prompt(self) -> list:
        return [token for piece in self.pieces for token in piece.prompt]


def run(engine: Engine, *requests: Asked) -> None:
    """Lets some requests finish, and sees to it that nothing is left behind."""
    engine.run(requests)
    assert all(request.done.is_set() for request in requests)
    assert (engine.stats().running, engine.stats().waiting, engine.transcripts) == (0, 0, {})


def steps(engine: Engine, n: int) -> None:
    for _ in range(n):
        assert engine.step()


def greedy(model: nn.Module, prompt: list[int], n: int) -> list[int]:
    """The likeliest continuation, everything read again at each step; of a full context the older half is forgotten."""
    ids, block = list(prompt), model.config.block_size
    base = max(0, len(ids) - block)
    with torch.inference_mode():
        for _ in range(n):
            if len(ids) - base > block:
                base = len(ids) - max(1, block // 2)
            ids.append(int(model(torch.tensor([ids[base:]]))[0, -1].argmax()))
    return ids[len(prompt) :]


def wait_for(condition) -> None:
    """Waits for what the engine's thread does."""
    t0 = time.monotonic()
    while not condition():
        assert time.monotonic() - t0 < 60, "waited too long"
        time.sleep(0.001)


def noise(chance: random.Random, n: int) -> list[int]:
    return [chance.randrange(256) for _ in range(n)]


# ---- the same as alone


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("slots", [1, 5])
def test_greedy_texts_equal_reading_everything_again(tiny_model, shape, slots):
    """Texts of many lengths in fewer slots than there are texts, through several contexts."""
    model, chance = tiny_model(**shape), random.Random(0)
    lengths = [1, 2, 5, 31, 32, 33, 50, 8, 1, 17, 3, 3]
    asked = [Asked(noise(chance, n), temperature=0, max_new_tokens=5 + 3 * i) for i, n in enumerate(lengths)]
    run(Engine(model, BYTES, slots=slots), *asked)
    for request in asked:
        expected = greedy(model, request.ids[: request.prompt_length], request.settings.max_new_tokens)
        assert (request.new, request.finish_reason) == (expected, "length")


@pytest.mark.parametrize("block_size", [1, 2, 7, 32])
@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_the_text_goes_on_when_the_context_is_full(tiny_model, block_size, architecture):
    """With many rows, which fill their contexts at different steps."""
    model = tiny_model(block_size=block_size, architecture=architecture)
    asked = [Asked([65 + n] * n, temperature=0, max_new_tokens=60) for n in (1, 32, 100, 7, 6)]
    run(Engine(model, BYTES, slots=4), *asked)
    for request in asked:
        assert request.new == greedy(model, request.ids[: request.prompt_length], 60)


def test_when_the_context_is_full_the_older_half_is_forgotten(tiny_model):
    model, ids = tiny_model(block_size=8), [1, 2, 3, 4, 5, 6, 7, 8]
    request = Asked(ids, temperature=0, max_new_tokens=2)
    run(Engine(model, BYTES), request)
    assert request.new[0] == int(model(torch.tensor([ids]))[0, -1].argmax())
    assert request.new[1] == int(model(torch.tensor([request.ids[5:9]]))[0, -1].argmax())


@pytest.mark.parametrize("block_size", [1, 7, 32])
@pytest.mark.parametrize("values", [{"temperature": 0}, {"seed": 5, "repetition_penalty": 1.3, "frequency_penalty": 0.5}])
def test_a_text_that_begins_with_tokens_of_its_own_goes_on_as_it_did(tiny_model, block_size, values):
    """Through several contexts: it has the same window, the same random numbers, the same penalties."""
    engine = Engine(tiny_model(block_size=block_size), BYTES, slots=3)
    for prompt in (list(b"ab"), list(b"a prompt that is longer than any of the contexts")):
        whole = Asked(prompt, max_new_tokens=60, **values)
        run(engine, whole)
        begun = [Asked(prompt, prefix_ids=tuple(whole.new[:n]), max_new_tokens=60 - n, **values) for n in (1, 6, 31, 59)]
        run(engine, *begun)
        for request in begun:
            assert request.ids == whole.ids
            assert request.new == whole.new[request.begun :], "what was given is not handed out again"


@pytest.mark.parametrize("chunk", [1, 3, 16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_prompt_read_in_chunks_is_as_one_read_at_once(tiny_model, chunk, shape):
    model, prompt = tiny_model(**shape), noise(random.Random(chunk), 29)
    whole, parts = (Asked(prompt, logprobs=3, prompt_logprobs=True, max_new_tokens=20, seed=1) for _ in range(2))
    run(Engine(model, BYTES), whole)
    engine = Engine(model, BYTES)
    engine.chunk = chunk
    run(engine, parts)
    assert parts.new == whole.new
    for a, b in zip(parts.prompt + parts.tokens, whole.prompt + whole.tokens, strict=True):
        assert (a.id, a.logprob) == (b.id, pytest.approx(b.logprob, abs=1e-4))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_text_does_not_depend_on_its_neighbours(tiny_model, shape, temperature):
    model = tiny_model(**shape)
    same = {"max_new_tokens": 50, "temperature": temperature, "repetition_penalty": 1.1, "top_p": 0.95}
    each = [Settings(seed=seed, **same) for seed in (1, 2, 3)]
    together = texts(model, BYTES, [256, 65], each)
    assert together == [texts(model, BYTES, [256, 65], [one])[0] for one in each]
    assert (len(set(together)) == 1) == (temperature == 0)


def under_load(model: nn.Module, request: Asked, chance: random.Random) -> None:
    """Runs a request among 16 others that come and go."""
    engine = Engine(model, BYTES, slots=chance.randint(2, 8))
    engine.chunk = 16
    others = [
        Asked(noise(chance, chance.randint(1, 40)), temperature=chance.choice([0, 1.0]), repetition_penalty=1.2,
              max_new_tokens=chance.randint(1, 40))
        for _ in range(16)
    ]  # fmt: skip
    line = [*others[:12], request]
    chance.shuffle(line)
    for each in line:
        engine.submit(each)
    for late in others[12:]:
        steps(engine, 3)
        engine.submit(late)
    engine.cancel(chance.choice(others))
    run(engine)
    assert all(each.done.is_set() for each in others)


@pytest.mark.parametrize("shape", [
    {"architecture": "classic", "n_head": 2, "n_embd": 20, "block_size": 37},
    {"n_head": 6, "n_kv_head": 2, "n_embd": 30, "head_dim": 10, "block_size": 51},
], ids=["classic", "modern"])  # fmt: skip
def test_a_deterministic_request_gets_the_same_bits_under_any_load(tiny_model, shape):
    """To the last bit of its log-probabilities; sizes are odd, so that no two slots are aligned alike."""
    model, chance = tiny_model(**shape), random.Random(0)
    for seed in range(4):
        prompt, found = noise(chance, chance.choice([1, 20, 60])), []
        for load in (False, True, True):
            request = Asked(prompt, temperature=0.8, seed=seed, max_new_tokens=40, logprobs=2, deterministic=True)
            if load:
                under_load(model, request, chance)
            else:
                alone = Engine(model, BYTES, slots=1)
                alone.chunk = 16
                run(alone, request)
            found.append(request.tokens)
        assert len(found[0]) == 40
        assert found[0] == found[1] == found[2]


DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]  # of weights, of the cache


@pytest.mark.parametrize(("dtype", "cache"), DTYPES)
def test_a_seeded_request_gets_the_same_text_under_load(tiny_model, monkeypatch, dtype, cache):
    monkeypatch.setattr("inference.engine.cache_dtype", lambda *_: cache)
    model, chance = tiny_model(n_embd=64), random.Random(1)
    weights.prepare(model, dtype)
    for seed in range(6):
        prompt = noise(chance, chance.choice([1, 20, 60]))
        alone, loaded = (Asked(prompt, temperature=0.8, top_p=0.95, seed=seed, max_new_tokens=40) for _ in range(2))
        engine = Engine(model, BYTES, slots=1)
        engine.chunk = 16
        run(engine, alone)
        under_load(model, loaded, chance)
        assert loaded.new == alone.new


@pytest.mark.parametrize(("dtype", "cache"), DTYPES)
@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_a_seed_keeps_its_bits_where_matrices_are_wide(tiny_model, monkeypatch, architecture, dtype, cache):
    """oneDNN adds up a float32 row of 1,280 numbers and more in two halves when it is the only one. Log-probabilities tell what
    the words do not."""
    monkeypatch.setattr("inference.engine.cache_dtype", lambda *_: cache)
    model, chance = tiny_model(architecture=architecture, n_inner=1536), random.Random(2)
    weights.prepare(model, dtype)
    prompt = noise(chance, 20)
    alone, loaded = (Asked(prompt, temperature=0.8, seed=3, max_new_tokens=40, logprobs=2) for _ in range(2))
    engine = Engine(model, BYTES, slots=1)
    engine.chunk = 16
    run(engine, alone)
    under_load(model, loaded, chance)
    assert loaded.tokens == alone.tokens and len(alone.tokens) == 40


@pytest.mark.parametrize(("seconds", "dtype"), [((1.0, 3.0), torch.float32), ((1.0, 1.2), torch.bfloat16), ((3.0, 1.0), torch.bfloat16)])
def test_keys_and_values_are_kept_in_the_dtype_that_is_clearly_faster(monkeypatch, seconds, dtype):
    """The clock stands still but for what attention is said to cost in float32 and in bfloat16."""
    clock, cost = [0.0], dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))

    def attend(q, k, v):
        clock[0] += cost[k.dtype]

    monkeypatch.setattr(weights.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(kv_cache.F, "scaled_dot_product_attention", attend)
    found = kv_cache.cache_dtype.__wrapped__
    assert found(torch.bfloat16, "cpu") == dtype
    assert found(torch.float32, "cpu") == torch.float32
    assert found(torch.bfloat16, "cuda") == torch.bfloat16


@pytest.mark.parametrize(("device", "int8", "apart"), [("cpu", False, False), ("cpu", True, True), ("cuda", False, True), ("mps", False, True)])
def test_a_seed_asks_to_be_written_apart_where_arithmetic_varies_with_the_batch(tiny_model, device, int8, apart):
    engine = Engine(tiny_model(), BYTES, quantized=int8)
    engine.device = torch.device(device)
    assert engine.wants_to_be_alone(Asked([65], seed=1)) == apart
    assert not engine.wants_to_be_alone(Asked([65]))
    assert engine.wants_to_be_alone(Asked([65], deterministic=True))


def test_without_a_seed_one_is_drawn_and_told(tiny_model):
    a, b = (Asked([65], max_new_tokens=30, temperature=1.0) for _ in range(2))
    run(Engine(tiny_model(), BYTES), a, b)
    assert a.new != b.new
    again = Asked([65], max_new_tokens=30, temperature=1.0, seed=a.seed)
    run(Engine(tiny_model(), BYTES), again)
    assert again.new == a.new


def test_the_logarithm_of_the_text_is_what_the_model_says(tiny_model):
    """Sampling at temperature 1 must match the model: the mean surprise of its own text is its entropy there."""
    model, n = tiny_model(vocab_size=5), 1000
    probabilities = model(torch.tensor([[0]]))[0, -1].detach().softmax(-1)
    asked = [Asked([0], max_new_tokens=1, temperature=1.0, seed=seed) for seed in range(n)]
    run(Engine(model, BYTES, slots=64), *asked)
    surprise = -probabilities.log()[torch.tensor([request.new[0] for request in asked])]
    entropy = float(-(probabilities * probabilities.log()).sum())
    deviation = float(surprise.std()) / math.sqrt(n)
    assert abs(float(surprise.mean()) - entropy) < 4.5 * deviation  # a false alarm in 150,000 seeds; these are fixed


# ---- whole texts


def test_streaming_gives_the_same_text(tiny_model):
    config = Settings(max_new_tokens=60, temperature=1.0, seed=1)
    pieces = list(stream(tiny_model(), BYTES, [256, 65], config))
    assert len(pieces) > 1
    assert "".join(pieces) == texts(tiny_model(), BYTES, [256, 65], [config])[0] != ""


@pytest.mark.parametrize("prompt", [[65], [65, 66, 67]])
def test_no_tokens_are_written_when_none_are_asked_for(tiny_model, prompt):
    """Neither when the prompt is read in chunks, nor when it is a single token, nor when it was read before."""
    engine, config = Engine(tiny_model(), BYTES, slots=2), {"max_new_tokens": 0}
    for _ in range(2):
        asked = [Asked(prompt, **config), Asked(prompt, **config), Asked([1, 2], max_new_tokens=3)]
        run(engine, *asked)
        assert [len(request.new) for request in asked] == [0, 0, 3]
        assert [request.finish_reason for request in asked] == ["length"] * 3
    assert "".join(stream(tiny_model(), BYTES, prompt, Settings(**config))) == ""


def test_one_token_is_written_when_one_is_asked_for(tiny_model):
    asked = [Asked([65] * n, max_new_tokens=1) for n in (1, 2, 40)]
    run(Engine(tiny_model(), BYTES), *asked)
    assert [len(request.new) for request in asked] == [1, 1, 1]


def test_no_settings_are_no_texts(tiny_model):
    assert texts(tiny_model(), BYTES, [65], []) == []


def test_what_fails_in_the_model_is_no_text(tiny_model):
    """A program that asks for texts must hear of it: half a text looks like one that ended."""
    model = tiny_model()
    model.logits = lambda x: 1 / 0
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        texts(model, BYTES, [65, 66], [Settings()])
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(stream(model, BYTES, [65, 66], Settings()))


# ---- reasons to stop: a model that writes what it is told


class Told:
    """In place of the sampler: each text is that of its seed, then the end of text."""

    scripts: list[list[int]]
    penalised = True  # so that it sees the ids

    def __init__(self, configs: list[Settings], _device):
        self.seeds = [config.seed for config in configs]

    def choose(self, _logits: Tensor, _uniforms, seen: list[list[int]], prompts: list[int]) -> Tensor:
        rows = zip(self.seeds, seen, prompts, strict=True)
        return torch.tensor([self.scripts[seed][len(ids) - prompt] for seed, ids, prompt in rows])


def told(model: nn.Module, *scripts: str | bytes, **values) -> list[Asked]:
    """What becomes of texts that the model writes byte by byte, all of them at once."""
    Told.scripts = [[*(s.encode() if isinstance(s, str) else s), BYTES.eot] for s in scripts]
    asked = [Asked([65], seed=n, **{"ignore_eos": False, **values}) for n in range(len(scripts))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "Sampler", Told)
        run(Engine(model, BYTES, slots=2), *asked)
    return asked


@pytest.fixture(scope="module")
def small(tiny_model) -> nn.Module:
    return tiny_model(n_layer=1, n_head=1, n_embd=8, block_size=64)


@pytest.mark.parametrize("stop", ["END", "E", "日本", "\n\n"])
def test_a_stop_string_is_never_shown_nor_what_follows(small, stop):
    """Byte by byte, so that every stop string is split across tokens."""
    [request] = told(small, f"some text, ENormous é\n{stop} and more", stop=(stop,))
    expected = {"E": "some text, ", "\n\n": "some text, ENormous é"}.get(stop, "some text, ENormous é\n")
    assert (request.text, request.finish_reason, request.pieces[-1].stop) == (expected, "stop", stop)


@given(text=st.text("ab\n", max_size=30), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
@settings(max_examples=150)
def test_the_first_of_several_stop_strings_ends_the_text(small, text, stops):
    [request] = told(small, text, stop=tuple(stops))
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    first = text[: ends[0]] if ends else text  # when a stop string is whole the text ends
    cuts = [first.find(stop) for stop in stops if stop in first]
    assert request.text == (first[: min(cuts)] if cuts else first)
    assert len(request.new) == len(first), "the tokens of a stop string were written; nothing after them was"
    assert (request.pieces[-1].stop in stops) == bool(cuts)


@given(text=st.text("ab\n", max_size=30), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_text_is_shown_as_soon_as_it_is_certain(small, text, stops):
    [request] = told(small, text, stop=tuple(stops))
    shown = ""
    for n, piece in enumerate(request.pieces[:-1], 1):
        shown += piece.text
        held = text[len(shown) : n]
        assert text.startswith(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_text_that_only_begins_a_stop_string_is_shown_in_the_end(small):
    assert told(small, "almost EN", stop=("END",))[0].text == "almost EN"
    assert told(small, "almost EN and more", stop=("END",), max_new_tokens=9)[0].text == "almost EN"


def test_an_empty_stop_string_stops_nothing(small):
    assert told(small, "text", stop=("",))[0].text == "text"
    assert told(small, "text END", stop=("", "END"))[0].text == "text "


def test_the_end_of_text_ends_the_text_and_is_not_shown(small):
    [request] = told(small, "short")
    assert (request.text, len(request.new), request.finish_reason) == ("short", 5, "stop")


def test_a_text_may_go_on_behind_its_end(small):
    Told.scripts = [[*b"short\xff", BYTES.eot, 65, 66]]
    request = Asked([65], seed=0, max_new_tokens=9, ignore_eos=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "Sampler", Told)
        run(Engine(small, BYTES), request)
    assert (request.text, request.new[-3:]) == ("short\ufffdAB", [BYTES.eot, 65, 66])
    assert request.finish_reason == "length"


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_a_stop_id_ends_the_text_and_is_no_part_of_it(small, ignore_eos):
    [request] = told(small, "one. two", stop_ids=(ord("."), ord("w")), ignore_eos=ignore_eos)
    assert (request.text, request.finish_reason, request.pieces[-1].stop) == ("one", "stop", ord("."))
    assert request.new == list(b"one")
    [request] = told(small, "one", stop_ids=(BYTES.eot,), ignore_eos=ignore_eos)
    assert (request.text, request.pieces[-1].stop) == ("one", BYTES.eot)


def test_pieces_are_whole_characters(small):
    [request] = told(small, "é日🙂")
    assert [piece.text for piece in request.pieces if piece.text] == ["é", "日", "🙂"]


def test_a_character_that_stays_half_is_shown_as_such(small):
    assert told(small, b"a\xe6\x97")[0].text == "a\ufffd"
    assert told(small, "a日".encode(), max_new_tokens=2)[0].text == "a\ufffd"


def test_a_text_may_begin_within_a_character_or_with_a_stop_string(small):
    [request] = told(small, "a日 END. b", prefix_ids=tuple("a日".encode()[:3]), stop=("END",))
    assert request.text == "日 ", "the last byte of the character is the first that is written"
    [request] = told(small, "END is near. END", prefix_ids=tuple(b"END i"), stop=("END",))
    assert request.text == "s near. "
    [request] = told(small, "Hi\nUser: more", prefix_ids=tuple(b"Hi\nUs"), stop=("\nUser:",))
    assert (request.text, request.finish_reason) == ("", "stop"), "a stop string may begin in the prefix"
    [request] = told(small, "Hi\nUseful", prefix_ids=tuple(b"Hi\nUs"), stop=("\nUser:",))
    assert request.text == "eful"
    [request] = told(small, "xabz xabq.", prefix_ids=tuple(b"xab"), stop=("ab", "xabq"))
    assert request.text == "z x", "one that is all in the prefix stops nothing, though a longer one may have begun there"
    [request] = told(small, "abcd", prefix_ids=tuple(b"ab"), max_new_tokens=1)
    assert (request.text, request.prompt_length, request.written) == ("c", 3, 1)


def test_each_of_many_ends_where_it_ends(small):
    asked = told(small, "short", "a longer one", "")
    assert [request.text for request in asked] == ["short", "a longer one", ""]


def test_many_obey_stop_strings_too(small):
    assert [request.text for request in told(small, "one. two.", "no stop", stop=(". ",))] == ["one", "no stop"]


# ---- log-probabilities


@pytest.mark.parametrize("architecture", ["classic", "modern"])
@pytest.mark.parametrize("vocab_size", [257, 300], ids=["", "more ids than the tokenizer has"])
def test_log_probabilities_are_the_models_own(tiny_model, architecture, vocab_size):
    """Whatever the temperature, penalties and biases by which a token was chosen."""
    model, chance = tiny_model(architecture=architecture, vocab_size=vocab_size), random.Random(3)
    strange = {"temperature": 2.0, "top_k": 40, "presence_penalty": 1.0, "logit_bias": {5: 3.0}}
    asked = [
        Asked(noise(chance, 9), max_new_tokens=20, prompt_logprobs=True, logprobs=4, seed=0),
        Asked(noise(chance, 5), max_new_tokens=20, prompt_logprobs=True, logprobs=0, seed=0, **strange),
        Asked(noise(chance, 7), max_new_tokens=20, prompt_logprobs=True, seed=0, **strange),
        Asked(noise(chance, 1), max_new_tokens=20, prompt_logprobs=True, logprobs=20, seed=0),
    ]
    engine = Engine(model, BYTES)
    engine.chunk = 4
    run(engine, *asked)
    for request in asked:
        expected = model(torch.tensor([request.ids]))[0].log_softmax(-1).detach()[:-1]  # the place before each id
        found = request.prompt + request.tokens
        assert [token.id for token in found] == request.ids[1:]
        reported = len(found) if request.settings.logprobs is not None else len(request.prompt)
        assert all(token.logprob is None for token in found[reported:])
        values = torch.tensor([token.logprob for token in found[:reported]])
        own = expected[torch.arange(reported), torch.tensor(request.ids[1 : 1 + reported])]
        torch.testing.assert_close(values, own, rtol=0, atol=1e-4)
        most = request.settings.logprobs or 0
        best = expected.topk(max(most, 1)).values
        for place, token in enumerate(found[:reported]):
            assert len(token.top) == most
            assert [value for _, value in token.top] == pytest.approx(best[place, :most].tolist(), abs=1e-4)
            assert all(value == pytest.approx(float(expected[place, i]), abs=1e-4) for i, value in token.top)


def test_the_prompt_is_reported_once_even_where_it_is_read_again(tiny_model):
    request = Asked(list(b"prompt"), prompt_logprobs=True, max_new_tokens=30)
    run(Engine(tiny_model(block_size=8), BYTES), request)
    assert [token.id for token in request.prompt] == list(b"rompt")


def test_a_prompt_can_be_scored_without_writing(tiny_model):
    request = Asked(list(b"some text"), prompt_logprobs=True, max_new_tokens=0)
    run(Engine(tiny_model(), BYTES), request)
    assert [token.id for token in request.prompt] == list(b"ome text")
    assert request.new == []


# ---- who is next


def test_those_who_came_first_begin_first(tiny_model):
    engine, chance = Engine(tiny_model(), BYTES, slots=2), random.Random(0)
    asked = [Asked(noise(chance, chance.randint(1, 30)), max_new_tokens=chance.randint(1, 9)) for _ in range(12)]
    run(engine, *asked)
    begun = [request.admitted for request in asked]
    assert begun == sorted(begun)
    assert all(r.submitted <= r.admitted <= r.first_token <= r.finished for r in asked)


@given(plan=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_those_who_write_sit_side_by_side(small, plan, seed):
    """Texts of all lengths come and go: the cache of those who write is read where it lies, and each text is its own."""
    chance = random.Random(seed)
    asked = [Asked(noise(chance, n), max_new_tokens=m, temperature=0) for n, m in plan]
    engine = Engine(small, BYTES, slots=4)
    windows = []
    forward = engine.forward
    engine.forward = lambda slots, ids, window, x=None: windows.append(window) or forward(slots, ids, window, x)
    for request in asked:
        engine.submit(request)
        for _ in range(chance.randrange(4)):
            engine.step()
    run(engine)
    assert all(window.seen == slice(0, len(window.rows)) for window in windows if isinstance(window, ManyRows))
    assert all(slot.index == place for place, slot in enumerate(engine.scheduler.slots))
    assert [request.new for request in asked] == [greedy(small, request.ids[:n], m) for request, (n, m) in zip(asked, plan, strict=True)]


def test_no_more_run_than_there_are_slots(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=3)
    for n in range(7):
        engine.submit(Asked([65 + n], max_new_tokens=5))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting, engine.stats().waiting_tokens) == (3, 4, 4)
    assert engine.stats().kv_usage == 3 / (3 * 32)


def watched(engine: Engine) -> list[int]:
    """The tokens of prompts in each pass of the model, as they are read."""
    read, hidden = [], engine.model.hidden

    def watch(idx: Tensor, cache=None, x=None) -> Tensor:
        if idx.size(1) > 1:
            read.append(idx.size(1))
        return hidden(idx, cache, x)

    engine.model.hidden = watch
    return read


def test_a_long_prompt_does_not_stop_the_others(tiny_model):
    """Between two tokens of a running text at most a chunk of prompts is read."""
    engine = Engine(tiny_model(block_size=128), BYTES, slots=8)
    engine.chunk, read = 16, watched(engine)
    running = Asked([65], max_new_tokens=40)
    engine.submit(running)
    steps(engine, 2)
    for n in (100, 90, 40, 2, 2, 3):
        engine.submit(Asked([66] * n, scope=str(n), max_new_tokens=3))
    while not running.done.is_set():
        before = running.written
        del read[:]
        engine.step()
        assert running.written == before + 1
        assert sum(read) <= 16
    run(engine)


def test_prompts_are_read_in_the_order_in_which_they_came(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=4)
    engine.chunk = 8
    asked = [Asked([65 + n] * 20, max_new_tokens=30) for n in range(4)]
    run(engine, *asked)
    first = [request.first_token for request in asked]
    assert first == sorted(first)
    assert len(set(first)) == 4


# ---- those who give up


def test_a_running_request_can_be_cancelled(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1)
    running, waiting = Asked([65], max_new_tokens=LONG), Asked([66], max_new_tokens=3)
    engine.submit(running)
    engine.submit(waiting)
    steps(engine, 5)
    before = running.written
    engine.cancel(running)
    steps(engine, 2)
    assert running.finish_reason == "cancelled"
    assert running.written <= before + 2
    assert running.text == BYTES.decode(running.new)
    assert waiting.admitted, "its slot is free again"
    run(engine)
    assert waiting.finish_reason == "length"


def test_a_request_can_be_cancelled_while_its_prompt_is_read(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1)
    engine.chunk = 4
    request = Asked([65] * 30, max_new_tokens=5)
    engine.submit(request)
    engine.step()
    engine.cancel(request)
    run(engine)
    assert (request.finish_reason, request.new, request.text) == ("cancelled", [], "")


def test_a_waiting_request_can_be_cancelled(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1)
    running, waiting, last = (Asked([65 + n], max_new_tokens=30) for n in range(3))
    for request in (running, waiting, last):
        engine.submit(request)
    steps(engine, 2)
    engine.cancel(waiting)
    steps(engine, 2)
    assert (waiting.finish_reason, waiting.pieces[-1].text, waiting.admitted) == ("cancelled", "", 0.0)
    assert engine.stats().waiting == 1
    run(engine)
    assert (running.finish_reason, last.finish_reason) == ("length", "length")
    assert engine.stats().prompt_tokens == 2, "nobody read its prompt"


def test_a_deadline_ends_those_who_run_and_those_who_wait(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1)
    late = Asked([64], deadline=time.monotonic() - 1)
    running, waiting, patient = (Asked([65 + n], deadline=time.monotonic() + 60, max_new_tokens=30) for n in range(3))
    for request in (late, running, waiting, patient):
        engine.submit(request)
    steps(engine, 3)
    assert (late.finish_reason, late.admitted) == ("deadline", 0.0)
    running.deadline = waiting.deadline = time.monotonic() - 1e-3
    steps(engine, 1)
    assert (running.finish_reason, waiting.finish_reason) == ("deadline", "deadline")
    assert 1 <= running.written <= 4
    assert running.text == BYTES.decode(running.new)
    run(engine)
    assert patient.finish_reason == "length"


def test_what_is_held_back_is_shown_to_who_gives_up(small):
    """It was written, and no stop string came."""
    Told.scripts = [[*b"text EN", *b"joyed"]]
    request = Asked([65], seed=0, stop=("END",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "Sampler", Told)
        engine = Engine(small, BYTES)
        engine.submit(request)
        steps(engine, 7)
        assert request.text == "text "
        engine.cancel(request)
        run(engine)
    assert request.text == "text EN"


# ---- a line of limited length


def test_a_full_line_refuses_and_says_when_to_come_again(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1, max_waiting=2)
    asked = [Asked([65], max_new_tokens=5) for _ in range(3)]
    engine.submit(asked[0])
    engine.step()
    engine.submit(asked[1])
    engine.submit(asked[2])
    with pytest.raises(Busy) as refusal:
        engine.submit(Asked([65]))
    assert refusal.value.retry_after > 0
    assert engine.stats().waiting == 2
    run(engine)
    assert all(request.done.is_set() for request in asked)
    run(engine, Asked([65], max_new_tokens=1))


def test_a_line_that_holds_too_many_tokens_refuses(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1, max_waiting_tokens=20)
    engine.submit(Asked([65], max_new_tokens=5))
    engine.step()
    engine.submit(Asked([65] * 15, max_new_tokens=1))
    with pytest.raises(Busy) as refusal:
        engine.submit(Asked([65] * 6))
    assert refusal.value.retry_after > 0
    engine.submit(Asked([65] * 5, max_new_tokens=1))
    run(engine)
    run(engine, Asked([65] * 30, max_new_tokens=1))  # longer than the line is: alone it may come


@pytest.mark.parametrize("most", [0, 1])
def test_who_finds_a_free_slot_does_not_wait(tiny_model, most):
    """Those who came since the last step and will be given slots in the next are not in the way of others."""
    engine = Engine(tiny_model(), BYTES, slots=2, max_waiting=most)
    asked = [Asked([65], max_new_tokens=2) for _ in range(2 + most)]
    for request in asked:
        engine.submit(request)
    with pytest.raises(Busy):
        engine.submit(Asked([65]))
    run(engine)
    assert [request.finish_reason for request in asked] == ["length"] * (2 + most)


def refusal(scheduler: Scheduler, **settings) -> Busy:
    with pytest.raises(Busy) as refusal:
        scheduler.check_room(Asked([65], **settings))
    return refusal.value


def test_the_time_to_come_again_is_that_of_the_texts_before(tiny_model):
    """Two at once, of 100 tokens each: one of the two that run has written 60, so the first slot is free in 40 steps."""
    scheduler = Scheduler(2, 32, max_waiting=3, max_waiting_tokens=1000, chunk=8)
    for slot, written in zip(scheduler.slots, (60, 0), strict=True):
        slot.take(Asked([65], max_new_tokens=100), 32)
        slot.request.ids += [66] * written
        slot.base, slot.length = written, 1
    scheduler.waiting.extend(Asked([65] * 20, max_new_tokens=100) for _ in range(3))
    scheduler.took(0.1)
    assert refusal(scheduler).retry_after == pytest.approx(0.1 * (100 + 100 + 3), abs=0.2), "20 tokens are read in 3 steps"
    for _ in range(40):
        scheduler.took(0.2)
    assert refusal(scheduler).retry_after == pytest.approx(0.2 * 203, rel=0.05)
    scheduler.waiting.popleft()
    scheduler.max_waiting = 2
    assert refusal(scheduler).retry_after == pytest.approx(0.2 * (40 + 103), rel=0.05)


def test_a_fresh_server_knows_how_long_its_texts_take(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1, max_waiting=0)
    engine.submit(Asked([65], max_new_tokens=LONG, ignore_eos=True))
    for _ in range(20):
        engine.step()
    step = engine.scheduler.seconds_per_step
    assert step > 0
    assert refusal(engine.scheduler).retry_after == pytest.approx(step * LONG, rel=0.01)


def test_texts_that_end_early_are_expected_to(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1, max_waiting=0)
    asked = {"max_new_tokens": 1000, "logit_bias": {65: 100.0}, "stop": ("AAAAA",)}
    for _ in range(50):
        run(engine, Asked([65], **asked))
    engine.submit(Asked([65], **asked))
    engine.step()
    assert engine.scheduler.steps_until_a_turn() < 30


def test_a_refusal_says_what_the_line_holds(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=2, max_waiting=2, max_waiting_tokens=50)
    for _ in range(4):
        engine.submit(Asked([65], max_new_tokens=5))
    assert "2 requests are waiting, which is all" in str(refusal(engine.scheduler)), "the other two find slots free"
    run(engine)
    for _ in range(3):
        engine.submit(Asked([65] * 30, max_new_tokens=5))
    with pytest.raises(Busy, match="have 30 tokens, and with this one's 25 more"):  # the first two find slots free
        engine.submit(Asked([65] * 25))
    run(engine)


@pytest.mark.parametrize("token", [-1, 257, 10**9])
def test_a_bias_on_a_token_that_does_not_exist_is_refused(tiny_model, token):
    """It would fail in the step that it shares with others."""
    with pytest.raises(UserError, match=f"token {token}"):
        Engine(tiny_model(), BYTES).submit(Asked([65], logit_bias={65: 1.0, token: 1.0}))


def test_an_empty_prompt_is_refused(tiny_model):
    """There is nothing that the first token could follow."""
    with pytest.raises(UserError, match="empty"):
        Engine(tiny_model(), BYTES).submit(Asked([]))


# ---- what was read before


def test_a_request_that_begins_alike_need_not_be_read_again(tiny_model):
    model, prompt = tiny_model(block_size=64), list(b"the same beginning, ")
    engine = Engine(model, BYTES, slots=3)
    same = {"max_new_tokens": 8, "temperature": 0, "scope": "a"}
    first, again = Asked(prompt, **same), Asked(prompt, **same)
    run(engine, first)
    run(engine, again)
    assert (first.cached, again.cached) == (0, len(prompt) - 1), "the last token is always read: its logits are wanted"
    assert again.new == first.new == greedy(model, prompt, 8)
    more = Asked([*first.ids, 65, 66], **same)  # as in a conversation
    run(engine, more)
    assert more.cached == len(first.ids) - 1, "what was written last was not read"
    assert more.new == greedy(model, [*first.ids, 65, 66], 8)
    other = Asked([*prompt[:9], 1, 2, 3], **same)
    run(engine, other)
    assert (other.cached, other.new) == (9, greedy(model, [*prompt[:9], 1, 2, 3], 8))


@pytest.mark.parametrize("values", [{"scope": "b"}, {"deterministic": True}, {"prompt_logprobs": True}])
def test_nothing_is_reused_for_strangers_nor_where_bits_or_all_logits_count(tiny_model, values):
    engine, prompt = Engine(tiny_model(), BYTES, slots=1), list(b"the same beginning")
    run(engine, Asked(prompt, scope="a", max_new_tokens=2))
    request = Asked(prompt, **{"scope": "a", **values}, temperature=0, max_new_tokens=8)
    run(engine, request)
    assert (request.cached, request.new) == (0, greedy(engine.model, prompt, 8))


def test_a_context_that_slid_is_not_taken_for_its_beginning(tiny_model):
    engine = Engine(tiny_model(block_size=8), BYTES, slots=1)
    first = Asked(list(b"abcde"), temperature=0, max_new_tokens=9)
    run(engine, first)
    again = Asked(list(b"abcde"), temperature=0, max_new_tokens=9)
    run(engine, again)
    assert (again.cached, again.new) == (0, first.new)


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_reuses_nothing(tiny_model):
    engine, prompt = Engine(tiny_model(block_size=8), BYTES, slots=1), list(b"abcdefgh")
    run(engine, Asked(prompt, max_new_tokens=1))
    request = Asked(prompt + list(b"ij"), temperature=0, max_new_tokens=1)
    run(engine, request)
    assert (request.cached, request.new) == (0, greedy(engine.model, prompt + list(b"ij"), 1))


def test_the_slot_that_knows_most_is_taken_else_the_one_longest_unused(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=3)
    beginnings = [list(b"aaaaaaaaaa"), list(b"bbbbbbbbbb"), list(b"cccccccccc")]
    run(engine, *(Asked(ids, max_new_tokens=n) for n, ids in enumerate(beginnings, 1)))  # left one after the other
    cached = []
    for ids in (beginnings[1], list(b"new"), beginnings[2], beginnings[0]):
        request = Asked(ids, max_new_tokens=1)
        run(engine, request)
        cached.append(request.cached)
    assert cached == [9, 0, 9, 0]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 12), st.sampled_from("ab")), max_size=12)
)
@settings(max_examples=25)
def test_reuse_never_changes_a_text(small, plan):
    """Prompts out of few beginnings, in two slots and two scopes."""
    engine, asked = Engine(small, BYTES, slots=2), []
    for beginning, length, new, scope in plan:
        prompt = [(beginning * i) % 7 for i in range(length)]
        asked.append(Asked(prompt, scope=scope, temperature=0, max_new_tokens=new))
    run(engine, *asked)
    for request in asked:
        assert request.new == greedy(small, request.ids[: request.prompt_length], request.settings.max_new_tokens)
    assert all(request.cached < request.prompt_length for request in asked)


@given(st.lists(st.integers(0, 1), max_size=8), st.lists(st.integers(0, 1), max_size=8))
def test_how_many_first_elements_two_lists_share(a, b):
    n = common_start(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


# ---- figures


def test_the_figures_add_up(tiny_model):
    engine, chance = Engine(tiny_model(), BYTES, slots=3), random.Random(0)
    start = noise(chance, 10)
    asked = [
        Asked(start[: chance.randint(1, 10)] + noise(chance, chance.randint(0, 30)), ignore_eos=False,
              max_new_tokens=chance.randint(0, 20), temperature=1.0, stop=("\n",))
        for _ in range(20)
    ]  # fmt: skip
    asked.append(Asked([65], ignore_eos=False, logit_bias={BYTES.eot: 100}))  # the end of text is no token of it
    run(engine, *asked)
    assert asked[-1].new == []
    stats = engine.stats()
    assert stats.prompt_tokens == sum(request.prompt_length for request in asked)
    assert stats.generation_tokens == sum(len(request.new) for request in asked)
    assert stats.cached_tokens == sum(request.cached for request in asked) > 0
    assert (stats.slots, stats.kv_usage, stats.waiting_tokens) == (3, 0.0, 0)
    assert stats.busy_seconds > 0
    engine.forget()
    assert engine.stats().prompt_tokens == engine.stats().steps == engine.stats().bytes_read == 0


def test_the_bytes_that_were_read(tiny_model):
    """One request: the weights at each pass of the model, and the keys and values of the tokens before."""
    model = tiny_model()
    engine = Engine(model, BYTES, weight_bytes=1000)
    run(engine, Asked([65] * 5, max_new_tokens=4))
    place = 2 * 4 * model.config.n_layer * model.config.n_kv_head * model.config.head_dim
    assert engine.stats().steps == 4
    assert engine.stats().bytes_read == 4 * 1000 + (0 + 5 + 6 + 7) * place


# ---- faults


@pytest.fixture
def silent():
    """Without the traceback that the engine logs."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def poisoned(model: nn.Module, token: int) -> nn.Module:
    """A model that fails when it meets a token."""
    hidden = model.hidden

    def fail(idx: Tensor, cache=None, x=None) -> Tensor:
        if (idx == token).any():
            raise ArithmeticError("it is poisoned")
        return hidden(idx, cache, x)

    model.hidden = fail
    return model


def test_a_prompt_that_fails_fails_alone(tiny_model, silent):
    model = tiny_model()
    engine = Engine(poisoned(tiny_model(), 200), BYTES, slots=4)
    good = [Asked([65 + n] * (n + 1), temperature=0, max_new_tokens=20, logit_bias={200: -100}) for n in range(3)]
    bad = Asked([65, 200, 66], max_new_tokens=20)
    run(engine, good[0], bad, *good[1:])
    assert (bad.finish_reason, bad.pieces[-1].error) == ("error", "ArithmeticError: it is poisoned")
    for n, request in enumerate(good):
        assert request.finish_reason == "length"
        assert 200 in greedy(model, [65 + n] * (n + 1), 20) or request.new == greedy(model, [65 + n] * (n + 1), 20)


def test_a_step_that_fails_fails_those_in_it_and_no_others(tiny_model, silent):
    engine = Engine(poisoned(tiny_model(), 200), BYTES, slots=2)
    prompt = list(b"prompt")
    writes_it = Asked(prompt, max_new_tokens=30, logit_bias={200: 100})
    beside_it = Asked([65], max_new_tokens=30, logit_bias={200: -100})
    after_it = [Asked(prompt, max_new_tokens=10, temperature=0, logit_bias={200: -100}) for _ in range(2)]
    run(engine, writes_it, beside_it, *after_it)
    assert (writes_it.finish_reason, beside_it.finish_reason) == ("error", "error")
    assert [request.finish_reason for request in after_it] == ["length", "length"]
    assert after_it[0].cached == 0, "what a failed step left in the cache is not used"
    fresh = Asked(prompt, max_new_tokens=10, temperature=0, logit_bias={200: -100})
    run(Engine(tiny_model(), BYTES), fresh)
    assert [request.new for request in after_it] == [fresh.new, fresh.new]


def test_a_deterministic_request_does_not_fail_with_its_neighbours(tiny_model, silent):
    engine = Engine(poisoned(tiny_model(), 200), BYTES, slots=2)
    bad = Asked([65], max_new_tokens=30, logit_bias={200: 100})
    alone = Asked([65], max_new_tokens=30, logit_bias={200: -100}, deterministic=True)
    run(engine, bad, alone)
    assert (bad.finish_reason, alone.finish_reason) == ("error", "length")


# ---- the thread


def test_the_thread_serves_many_threads(tiny_model):
    model = tiny_model()
    engine = Engine(model, BYTES, slots=3)
    engine.start()
    asked = [[Asked([65 + a, b], temperature=0, max_new_tokens=10) for b in range(5)] for a in range(4)]

    def submit(requests: list[Asked]) -> None:
        for request in requests:
            engine.submit(request)
            if request.number % 2:
                request.done.wait(60)  # some come one at a time, others at once

    threads = [threading.Thread(target=submit, args=(requests,)) for requests in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for request in itertools.chain(*asked):
        assert request.done.wait(60)
        assert request.new == greedy(model, request.ids[:2], 10)
    engine.drain()
    assert not (engine.thread and engine.thread.is_alive()), "idle, it may have gone before"


def test_the_thread_wakes_for_a_request_and_for_its_end(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1)
    engine.start()
    for _ in range(3):
        request = Asked([65], max_new_tokens=LONG)
        engine.submit(request)
        wait_for(lambda request=request: request.written >= 3)
        engine.cancel(request)
        assert request.done.wait(60)
        assert request.finish_reason == "cancelled"
        time.sleep(0.02)  # until it sleeps
    engine.drain()


@pytest.mark.parametrize("idle", [0.0, 0.001])
def test_the_thread_goes_when_there_is_nothing_to_do_and_comes_back(tiny_model, monkeypatch, idle):
    """However close the end of one thread and a new request are, every request is served."""
    monkeypatch.setattr(engines, "IDLE", idle)
    engine = Engine(tiny_model(n_layer=1), BYTES, slots=1)
    engine.start()
    for number in range(300):
        request = Asked([65], max_new_tokens=1)
        engine.submit(request)
        assert request.done.wait(60)
        if number % 2:
            wait_for(lambda: engine.thread is None)
    engine.drain()
    with pytest.raises(NotReady):
        engine.submit(Asked([65]))


def test_a_thread_that_died_is_replaced(tiny_model, monkeypatch):
    engine = Engine(tiny_model(n_layer=1), BYTES, slots=1)
    engine.start()
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    first = Asked([65], max_new_tokens=1)
    engine.submit(first)
    wait_for(lambda: not engine.thread.is_alive())
    monkeypatch.undo()
    second = Asked([65], max_new_tokens=1)
    engine.submit(second)
    assert first.done.wait(60) and second.done.wait(60)
    engine.drain()


def test_the_thread_outlives_a_fault(tiny_model, silent):
    engine = Engine(poisoned(tiny_model(), 200), BYTES, slots=1)
    engine.start()
    for prompt, reason in (([200], "error"), ([65], "length"), ([200, 201], "error"), ([66], "length")):
        request = Asked(prompt, max_new_tokens=3, logit_bias={200: -100})
        engine.submit(request)
        assert request.done.wait(60)
        assert request.finish_reason == reason
    engine.drain()


def test_draining_lets_everyone_finish_and_takes_no_one_new(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1)
    engine.start()
    running, waiting = Asked([65], max_new_tokens=LONG), Asked([66], max_new_tokens=5)
    engine.submit(running)
    engine.submit(waiting)
    drain = threading.Thread(target=engine.drain)
    drain.start()
    wait_for(lambda: engine.draining)
    with pytest.raises(NotReady):
        engine.submit(Asked([67]))
    before = running.written
    wait_for(lambda: running.written >= before + 3)
    assert drain.is_alive()
    running.settings.max_new_tokens = 1
    drain.join(60)
    assert (running.finish_reason, waiting.finish_reason) == ("length", "length")
    assert not engine.thread.is_alive()
    with pytest.raises(NotReady):
        engine.submit(Asked([67]))


def test_draining_for_so_long_cancels_the_rest(tiny_model):
    engine = Engine(tiny_model(), BYTES, slots=1)
    engine.start()
    running, waiting = Asked([65], max_new_tokens=LONG), Asked([66], max_new_tokens=5)
    engine.submit(running)
    engine.submit(waiting)
    wait_for(lambda: running.written)
    t0 = time.monotonic()
    engine.drain(0.05)
    assert 0.05 <= time.monotonic() - t0 < 10
    assert (running.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")
    assert running.text == BYTES.decode(running.new)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    assert engine.stats().prompt_tokens == 1, "that of the one that ran"
    engine.drain(0.05)  # nobody hears of it twice: `Asked` would fail
    assert not engine.thread.is_alive()


def test_who_is_between_the_line_and_a_slot_is_not_forgotten_by_a_drain(tiny_model, monkeypatch):
    engine = Engine(tiny_model(), BYTES, slots=1)
    [slot] = engine.scheduler.slots
    take = slot.take
    monkeypatch.setattr(slot, "take", lambda *args: (time.sleep(0.1), take(*args)))
    engine.start()
    request = Asked([65], max_new_tokens=5)
    engine.submit(request)
    engine.drain()
    assert request.finish_reason == "length"


def test_who_comes_while_a_drain_begins_is_refused_or_served(tiny_model, monkeypatch):
    engine = Engine(tiny_model(), BYTES, slots=1)
    engine.start()
    drain = threading.Thread(target=engine.drain)
    check_room = engine.scheduler.check_room

    def slowly(request: Request) -> None:
        check_room(request)
        drain.start()
        time.sleep(0.1)

    monkeypatch.setattr(engine.scheduler, "check_room", slowly)
    request = Asked([65], max_new_tokens=5)
    engine.submit(request)
    drain.join(60)
    assert request.finish_reason == "length"
