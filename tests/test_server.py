"""The server's own endpoints over real HTTP, from a model that was never trained: what it writes is noise, but always the same."""

from __future__ import annotations

import gzip
import json
import math
import socket
import time

import httpx
import pytest
import torch

from config import ServeConfig
from inference.request import Request, Settings
from inference.sampling import start_ids
from server import errors
from server.schemas import GenerateRequest
from server.score import windows
from tests.live import KEY, load, save, serving, wait_until

BLOCK = 64
LONG = {"max_new_tokens": 100_000, "ignore_eos": True}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def host(tmp_path_factory, tiny_model):
    path = save(tmp_path_factory.mktemp("run") / "best_model.pt", tiny_model(block_size=BLOCK))
    host = load(path, slots=2, max_waiting=2)
    yield host
    host.drain(1)


@pytest.fixture(scope="module")
def address(host, tmp_path_factory):
    limits = {"max_new_tokens": 100_000, "max_body_bytes": 20_000, "body_timeout": 0.3, "docs": True}
    with serving(host, tmp_path_factory.mktemp("server"), **limits, cors_origins=("https://a.org",)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, headers={"X-API-Key": KEY}, timeout=20) as client:
        yield client


@pytest.fixture
def generate(client):
    """Asks for a text: eight tokens with a seed, unless told otherwise."""

    def ask(**sent) -> dict:
        answer = client.post("/v1/generate", json={"prompt": "Once", "max_new_tokens": 8, "seed": 1, **sent})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ask


def refused(answer: httpx.Response, status: int) -> dict:
    """The error of an answer, whose shape is always the same."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    [(name, error)] = answer.json().items()
    assert name == "error"
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"].endswith(".")
    return error


def events(client: httpx.Client, **sent) -> list[dict]:
    """The events of a stream, which ends with [DONE]."""
    sent = {"prompt": "Once", "max_new_tokens": 8, "seed": 1, "stream": True, **sent}
    with client.stream("POST", "/v1/generate", json=sent) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# ---- what is written


def test_a_text_and_what_produced_it(generate):
    answer = generate(ignore_eos=True)
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    assert answer["model"] == {"id": "tiny@7", "run": "tiny", "step": 7, "val_loss": 2.5}
    assert (answer["session_id"], answer["seed"], answer["history_tokens"]) == (None, 1, 0)
    assert "tokens" not in answer


def test_a_seed_gives_the_same_text_and_the_answer_names_it(generate):
    first = generate(seed=None, max_new_tokens=20)
    assert generate(seed=first["seed"], max_new_tokens=20)["text"] == first["text"]
    assert generate(seed=first["seed"] ^ 1, max_new_tokens=20)["text"] != first["text"]


def test_a_stream_has_the_same_text_and_ends_with_the_rest_of_the_answer(client, generate):
    whole, pieces = generate(max_new_tokens=400), events(client, max_new_tokens=400)
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert len(pieces) > 2  # what is written within a thirtieth of a second comes together
    assert all(set(piece) == {"text"} for piece in pieces[:-1])
    last = pieces[-1] | {"text": whole["text"]}
    assert last.pop("usage")["completion_tokens"] == whole.pop("usage")["completion_tokens"]
    assert last == whole


def test_the_settings_reach_the_sampler(generate):
    letter = generate(logit_bias={"65": 100}, temperature=0)
    assert letter["text"] == "A" * 8
    assert generate(logit_bias={"65": 100}, stop="AAA")["text"] == ""
    stopped = generate(logit_bias={"65": 100}, stop=["B", "AAA"])
    assert (stopped["finish_reason"], stopped["stop"]) == ("stop", "AAA")
    assert generate(logit_bias={"65": 100}, stop_ids=[65])["stop"] == 65
    assert generate(prompt="Nothing", max_new_tokens=0)["text"] == ""
    assert generate(deterministic=True, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2)["text"]


def test_logprobs_come_with_each_token(client, generate):
    answer = generate(logprobs=2, temperature=0)
    assert len(answer["tokens"]) == 8
    for token in answer["tokens"]:
        assert set(token) - {"bytes"} == {"id", "text", "logprob", "offset", "top"}
        assert token["top"][0] == {name: token[name] for name in token.keys() - {"offset", "top"}}
        assert token["logprob"] <= 0
    streamed = [token for piece in events(client, logprobs=2, temperature=0) for token in piece["tokens"]]
    assert [token["id"] for token in streamed] == [token["id"] for token in answer["tokens"]]


@pytest.mark.parametrize("prompt", ["", "a\0b", "שלום עולם", "👩‍👩‍👧‍👦 ok", "\u202etxt", "line\r\nline\u2028"])
def test_any_text_is_a_prompt_and_comes_back_as_it_was(client, generate, prompt):
    generate(prompt=prompt, session_id="odd")
    [*_, turn] = client.get("/v1/sessions/odd").json()["turns"]
    assert turn["prompt"] == prompt
    assert client.delete("/v1/sessions/odd").json() == {"session_id": "odd", "deleted": True}


def test_the_defaults_are_those_of_the_command_line():
    assert GenerateRequest(prompt="").settings() == Settings()


def test_what_the_schema_allows_can_be_sampled():
    for name, described in GenerateRequest.model_json_schema()["properties"].items():
        for limit in {"minimum", "maximum"} & described.keys():
            GenerateRequest(**{"prompt": "", name: described[limit]}).settings()


# ---- scores


def score(client: httpx.Client, text: str) -> dict:
    answer = client.post("/v1/score", json={"text": text})
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_hand(host, text: str) -> float:
    """The log-likelihood of a text that fits the context."""
    engine = host.engine
    ids = torch.tensor([start_ids(engine.tokenizer, text, True)])
    with torch.inference_mode():
        logits = engine.model.logits(engine.model.hidden(ids[:, :-1]))[0, :, :257].log_softmax(-1)
    return logits.gather(-1, ids[0, 1:, None]).sum().item()


def test_a_score_is_the_likelihood_of_the_text(client, host):
    answer = score(client, "A tale, é.")
    assert answer["log_likelihood"] == pytest.approx(by_hand(host, "A tale, é."), abs=1e-3)
    assert (answer["tokens"], answer["bytes"]) == (11, 11)
    assert answer["perplexity"] == pytest.approx(math.exp(-answer["log_likelihood"] / 11))
    assert answer["bits_per_byte"] == pytest.approx(-answer["log_likelihood"] / 11 / math.log(2))
    assert answer["model"]["id"] == "tiny@7"


def test_a_text_longer_than_the_context_is_scored_whole(client, host):
    text = "word " * 50
    answer = score(client, text)
    assert answer["tokens"] == 250
    assert score(client, text[: BLOCK - 1])["log_likelihood"] == pytest.approx(
        by_hand(host, text[: BLOCK - 1]), abs=1e-3
    )
    assert answer["log_likelihood"] < score(client, text[:200])["log_likelihood"]


@pytest.mark.parametrize("length", [2, 63, 64, 65, 96, 97, 500])
def test_windows_score_each_place_once_with_half_a_context_before_it(length):
    scored = []
    for start, end, first in windows(length, 64):
        assert end - start <= 64
        assert all(place - start >= min(place, 32) for place in range(first, end))
        scored += range(first, end)
    assert scored == list(range(1, length))


# ---- bad input

BAD = {
    "no prompt": {},
    "prompt null": {"prompt": None},
    "prompt a number": {"prompt": 5},
    "prompt a list": {"prompt": ["Once"]},
    "tokens as text": {"prompt": "", "max_new_tokens": "3"},
    "tokens true": {"prompt": "", "max_new_tokens": True},
    "tokens a fraction": {"prompt": "", "max_new_tokens": 1.5},
    "tokens negative": {"prompt": "", "max_new_tokens": -1},
    "tokens too many": {"prompt": "", "max_new_tokens": 100_001},
    "tokens huge": {"prompt": "", "max_new_tokens": 10**30},
    "temperature negative": {"prompt": "", "temperature": -0.1},
    "temperature true": {"prompt": "", "temperature": True},
    "top_p": {"prompt": "", "top_p": 1.5},
    "unknown field": {"prompt": "", "max_tokens": 5},
    "unknown odd field": {"prompt": "", "a[str]": 5},
    "stream as text": {"prompt": "", "stream": "yes"},
    "seed negative": {"prompt": "", "seed": -1},
    "seed huge": {"prompt": "", "seed": 2**64},
    "empty stop": {"prompt": "", "stop": ""},
    "stops": {"prompt": "", "stop": ["a"] * 17},
    "stop a number": {"prompt": "", "stop": [5]},
    "stop id": {"prompt": "", "stop_ids": [257]},
    "bias of a word": {"prompt": "", "logit_bias": {"cat": 1}},
    "bias of no token": {"prompt": "", "logit_bias": {"257": 1}},
    "bias too large": {"prompt": "", "logit_bias": {"5": 101}},
    "logprobs": {"prompt": "", "logprobs": 21},
    "session": {"prompt": "", "session_id": "a/b"},
    "session empty": {"prompt": "", "session_id": ""},
    "a list": [],
    "a word": "Once",
    "null": None,
}  # fmt: skip


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD)
def test_bad_fields_are_refused_by_name(client, sent):
    error = refused(client.post("/v1/generate", json=sent), 422)
    assert error["type"] == "invalid_request_error"
    if isinstance(sent, dict):
        assert error["param"] and error["param"] in error["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client, number):
    body = f'{{"prompt": "", "temperature": {number}}}'
    assert refused(client.post("/v1/generate", content=body, headers=JSON), 422)["param"] == "temperature"


RAW = {
    "half": b'{"prompt": "On',
    "nothing": b"",
    "no UTF-8": b'{"prompt": "\xff"}',
    "deep": b"[" * 9000,
    "a long number": b'{"prompt": "", "seed": ' + b"9" * 9000 + b"}",
    "surrogate": b'{"prompt": "\\ud800"}',
    "surrogate in a name": b'{"prompt": "", "\\udc00": 1}',
    "NUL in a name": b'{"prompt": "", "\\u0000": 1}',
    "a form": b"prompt=Once",
}


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_bad_bodies_are_refused(client, body):
    answer = client.post("/v1/generate", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)


TOLD = {
    "too deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "a long number": (RAW["a long number"], "more than 4300 digits"),
    "no UTF-8": (RAW["no UTF-8"], "send JSON in UTF-8"),
    "surrogate in a name": (RAW["surrogate in a name"], "the body: a name in it holds half of a surrogate pair"),
    "surrogate in a bias": (b'{"prompt": "", "logit_bias": {"\\udc00": 1}}', "logit_bias.???: a name in it holds half of a surrogate"),
    "no messages": (b'{"messages": []}', "messages has a length of 0: it must be 1 at least."),
    "long stop": (b'{"prompt": "", "stop": "%s"}' % (b"x" * 300), "stop has a length of 300: it must be 256 at most."),
    "stops": (b'{"prompt": "", "stop": ["a", 5]}', "stop.1: input should be a valid string."),
    "no stop": (b'{"prompt": "", "stop": 5}', "stop: input should be a valid string or a valid list."),
}  # fmt: skip


@pytest.fixture(scope="module")
def roomy(host, tmp_path_factory):
    """A client of a server that takes larger bodies."""
    with (
        serving(host, tmp_path_factory.mktemp("roomy")) as address,
        httpx.Client(base_url=address, headers={"X-API-Key": KEY, **JSON}, timeout=20) as client,
    ):
        yield client


@pytest.mark.parametrize(("body", "told"), TOLD.values(), ids=TOLD)
def test_what_is_wrong_with_a_body_is_told(roomy, body, told):
    answer = roomy.post("/v1/generate", content=body)
    assert answer.status_code in (400, 422)
    message = refused(answer, answer.status_code)["message"]
    assert told in message and ";" not in message


def test_a_compressed_body_is_told_what_it_is(client):
    answer = client.post("/v1/generate", content=gzip.compress(b'{"prompt": ""}'), headers={**JSON, "Content-Encoding": "gzip"})
    assert "Content-Encoding: gzip" in refused(answer, 400)["message"]


def test_a_body_that_is_not_called_json_is_told_so(client):
    answer = client.post("/v1/generate", data={"prompt": "Once"})
    assert "Content-Type: application/json" in refused(answer, 422)["message"]


def test_a_misspelt_field_gets_a_hint_and_no_value_is_repeated(client):
    answer = client.post("/v1/generate", json={"prompt": "", "temprature": 1, "stop": {"a": "my secret"}})
    assert "perhaps temperature was meant" in refused(answer, 422)["message"]
    assert "my secret" not in answer.text


def test_a_body_of_very_many_mistakes_is_refused_at_once(client, monkeypatch):
    """Only some of them are put into words, which takes a while each, and everyone waits meanwhile."""
    said, sentence = [], errors.sentence
    monkeypatch.setattr(errors, "sentence", lambda *args: said.append(1) or sentence(*args))
    answer = client.post("/v1/generate", json={"prompt": "a", **{f"x{n}": 0 for n in range(900)}})
    assert "there is no field" in refused(answer, 422)["message"]
    assert 0 < len(said) <= errors.MOST_READ


MANY = {f"x{n}": 0 for n in range(1500)}
PICTURE = {"type": "image_url", "image_url": MANY}
FLOODS = {
    "prompts": ("/v1/completions", {"prompt": [{}] * 4000}, "prompt"),
    "lists of ids": ("/v1/completions", {"prompt": [[1.5]] * 2000}, "prompt"),
    "messages": ("/v1/chat/completions", {"messages": [{}] * 4000}, "messages.0"),
    "parts": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * 4000}]}, "messages.0.content.0"),
    "a picture's": ("/v1/generate", {"messages": [{"role": "user", "content": [PICTURE]}]}, "messages.0.content.0.image_url has a length"),
    "biases": ("/v1/generate", {"prompt": "", "logit_bias": MANY}, "logit_bias has a length of 1500"),
    "prefix": ("/v1/generate", {"prompt": "", "prefix_ids": [1.5] * 3000}, "prefix_ids"),
    "fields": ("/v1/generate", MANY, "the body has a length of 1500: it must be 1000 at most"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_large_body_that_is_wrong_throughout_is_not_looked_at_throughout(client, monkeypatch, flood):
    """pydantic would tell of each mistake, for seconds in which all others wait."""
    counts = []
    monkeypatch.setattr(errors, "meant", lambda mistakes: counts.append(len(mistakes)) or mistakes)
    path, body, told = FLOODS[flood]
    answer = client.post(path, json={"model": "default", **body} if path != "/v1/generate" else body)
    assert told in answer.json()["error"]["message"] and answer.status_code in (400, 422)
    assert counts[0] <= 8


def test_a_prompt_longer_than_the_context_is_refused(client):
    error = refused(client.post("/v1/generate", json={"prompt": "x" * BLOCK}), 422)
    assert error["code"] == "context_length_exceeded"
    assert f"{BLOCK + 1} tokens" in error["message"]
    assert client.post("/v1/generate", json={"prompt": "x" * (BLOCK - 1), "max_new_tokens": 1}).status_code == 200


def test_wrong_paths_and_methods(client):
    nowhere = refused(client.get("/nowhere"), 404)
    assert (nowhere["type"], nowhere["code"]) == ("not_found_error", "unknown_url")
    answer = client.get("/v1/generate")
    error = refused(answer, 405)
    assert "it takes POST" in error["message"] and error["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"
    assert client.post("/v1/sessions/a").headers["allow"] == "GET, DELETE"
    assert client.get("/v1/sessions/%00").status_code == 404
    for query in ("limit=0", "limit=x", "after=-1", "limit=9999999999999999999999"):
        refused(client.get(f"/v1/sessions/a?{query}"), 422)


def test_a_body_over_the_limit_is_refused(client):
    assert refused(client.post("/v1/generate", json={"prompt": "x" * 30_000}), 413)["code"] == "body_too_large"
    assert refused(client.post("/v1/generate", content=(b"x" * 1000 for _ in range(50)), headers=JSON), 413)


def begin(address: str, rest: str) -> tuple[int, str, float]:
    """Sends the beginning of a body and no more: the status and the code of the answer, and the seconds until it was closed."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as wire:
        head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
        wire.sendall((head + rest).encode())
        t0 = time.monotonic()
        head, _, body = wire.makefile("rb").read().partition(b"\r\n\r\n")  # to the end: the connection is closed
    return int(head.split()[1]), json.loads(body)["error"]["code"], time.monotonic() - t0


def test_a_slow_body_is_given_up(address):
    status, code, seconds = begin(address, "Content-Length: 100\r\n\r\n{")
    assert (status, code) == (408, "body_timeout")
    assert 0.2 < seconds < 2


@pytest.mark.parametrize("end", ["", "0\r\n\r\n"], ids=["goes on", "over"])
def test_a_body_that_is_too_large_is_told_so_however_slow_it_is(address, monkeypatch, end):
    monkeypatch.setattr("server.limits.LINGER", 0.5)
    chunk = f"{30_000:x}\r\n{'x' * 30_000}\r\n"
    status, code, seconds = begin(address, f"Transfer-Encoding: chunked\r\n\r\n{chunk}{end}")
    assert (status, code) == (413, "body_too_large")
    assert seconds < 5


# ---- busy, gone


def occupy(host, number: int) -> list[Request]:
    """Requests that keep the engine busy until they are cancelled."""
    requests = [Request([65], Settings(**LONG), lambda piece: None, scope="other") for _ in range(number)]
    for request in requests:
        host.engine.submit(request)
    return requests


def test_a_full_queue_says_when_to_come_back(client, host):
    busy = occupy(host, 2)
    wait_until(lambda: host.engine.stats().running == 2)
    busy += occupy(host, 2)
    try:
        for stream in (False, True):
            answer = client.post("/v1/generate", json={"prompt": "Once", "stream": stream})
            assert refused(answer, 429)["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
            assert int(answer.headers["retry-after-ms"]) >= 1
    finally:
        for request in busy:
            host.engine.cancel(request)
        wait_until(lambda: host.engine.stats().running == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(client, address, host, stream):
    def left(response: httpx.Response | None = None) -> None:
        written = host.engine.stats().generation_tokens
        wait_until(lambda: host.engine.stats().running == 0)
        assert host.engine.stats().generation_tokens - written < 2000  # of 100,000

    sent = {"prompt": "Once", "stream": stream, **LONG}
    if stream:
        with client.stream("POST", "/v1/generate", json=sent) as answer:
            lines = answer.iter_lines()  # the connection lives as long as this
            next(lines)
            assert host.engine.stats().running == 1
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/generate", json=sent, headers={"X-API-Key": KEY}, timeout=0.3)
    left()


# ---- what every answer carries


def test_request_ids(client):
    assert client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {
        client.get("/healthz", headers={"x-request-id": odd}).headers["x-request-id"] for odd in ("a b", "x" * 129, "")
    }
    assert len(made) == 3
    assert all(one.startswith("req-") for one in made)


def test_health_and_readiness(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["model"]["id"] == "tiny@7"


def test_pages_of_named_origins_may_call(client):
    asked = {"Origin": "https://a.org", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/generate", headers=asked).headers["access-control-allow-origin"] == "https://a.org"
    answer = client.options("/v1/generate", headers=asked | {"Origin": "https://b.org"})
    assert "access-control-allow-origin" not in answer.headers


def test_the_api_describes_itself(client):
    document = client.get("/openapi.json").json()
    assert {"/v1/generate", "/v1/score", "/v1/sessions/{session_id}", "/oauth/token", "/readyz"} <= document[
        "paths"
    ].keys()
    post = document["paths"]["/v1/generate"]["post"]
    assert {"401", "413", "422", "429", "503"} <= post["responses"].keys()
    assert client.get("/docs").status_code == 200


def test_what_nobody_foresaw_is_told_without_its_insides(client, host, monkeypatch, caplog):
    monkeypatch.setattr("server.native.Job.told", lambda *_: 1 / 0)
    answer = client.post("/v1/generate", json={"prompt": "my secret", "max_new_tokens": 1})
    assert refused(answer, 500)["type"] == "server_error"
    assert "Zero" not in answer.text
    assert any("ZeroDivisionError" in str(record.exc_info) for record in caplog.records)
    with client.stream("POST", "/v1/generate", json={"prompt": "", "max_new_tokens": 3, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"


def test_a_failing_model_fails_one_request(client, host, monkeypatch):
    def broken(*_unused):
        raise RuntimeError("out of everything")

    with monkeypatch.context() as patch:
        patch.setattr(host.engine, "read", broken)
        answer = client.post("/v1/generate", json={"prompt": "Once"})
        assert "everything" not in refused(answer, 500)["message"]
    assert client.post("/v1/generate", json={"prompt": "Once", "max_new_tokens": 1}).status_code == 200


def test_a_deadline_ends_a_text(host, tmp_path):
    limits = {"max_new_tokens": 100_000, "request_timeout": 1.0}
    with (
        serving(host, tmp_path, **limits) as address,
        httpx.Client(base_url=address, headers={"X-API-Key": KEY}) as client,
    ):
        answer = client.post("/v1/generate", json={"prompt": "Once", **LONG}).json()
        assert answer["finish_reason"] == "deadline"
        assert answer["text"]
        busy = occupy(host, 2)
        wait_until(lambda: host.engine.stats().running == 2)
        answer = client.post("/v1/generate", json={"prompt": "Once", **LONG})
        assert refused(answer, 503)["code"] == "deadline"
        for request in busy:
            host.engine.cancel(request)


def test_secrets_are_not_shown():
    shown = repr(ServeConfig(api_keys=("k1",), users="a:k2", jwt_secret="k3", admin_key="k4", metrics_token="k5"))
    assert not [secret for secret in ("k1", "k2", "k3", "k4", "k5") if secret in shown]
