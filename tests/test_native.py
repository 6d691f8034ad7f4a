"""What a page of text needs of the API: tokens with their places, texts that begin with tokens, conversations, lists, copies."""

from __future__ import annotations

import json
from itertools import pairwise

import httpx
import pytest

from server.spelling import Places, likely
from tests.live import KEY, load, save, serving
from tokenizer import ByteTokenizer, CharTokenizer

BLOCK = 64


@pytest.fixture(scope="module")
def host(tmp_path_factory, tiny_model):
    host = load(save(tmp_path_factory.mktemp("run") / "best_model.pt", tiny_model(block_size=BLOCK)))
    yield host
    host.drain(1)


@pytest.fixture(scope="module")
def client(host, tmp_path_factory):
    limits = {"api_keys": (KEY, "another"), "max_new_tokens": 1000}
    with (
        serving(host, tmp_path_factory.mktemp("server"), **limits) as address,
        httpx.Client(base_url=address, headers={"X-API-Key": KEY}, timeout=20) as client,
    ):
        yield client


def ask(client: httpx.Client, **sent) -> dict:
    sent = {"prompt": "Once", "max_new_tokens": 8, "seed": 1, "ignore_eos": True, **sent}
    answer = client.post("/v1/generate", json={name: value for name, value in sent.items() if value is not None})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, status: int = 422, path: str = "/v1/generate", **sent) -> str:
    answer = client.post(path, json=sent)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


# ---- tokens and their places


def test_the_places_of_the_tokens_cut_the_text(client):
    """The model writes noise, so most of its bytes are no characters: the text alone says what they became."""
    for seed in range(4):
        answer = ask(client, seed=seed, max_new_tokens=60, logprobs=1, temperature=1.5)
        places = [token["offset"] for token in answer["tokens"]] + [len(answer["text"])]
        pieces = [answer["text"][start:end] for start, end in pairwise(places)]
        assert "".join(pieces) == answer["text"]
        for token, piece in zip(answer["tokens"], pieces, strict=True):
            assert "bytes" in token or piece in ("", token["text"]) or piece.startswith("\ufffd")


def test_a_character_of_several_tokens_is_there_with_the_last_of_them():
    places = Places(ByteTokenizer())
    assert [places.push(byte) for byte in "aé🙂b".encode()] == [0, 1, 1, 2, 2, 2, 2, 3]
    characters = CharTokenizer("ab")
    places = Places(characters)
    assert [places.push(i) for i in characters.encode("aéb").tolist()] == [0, 1, 1, 1, 1, 2]
    places = Places(ByteTokenizer(), trimmed=True)
    assert [places.push(byte) for byte in b" \n a b"] == [0, 0, 0, 0, 1, 2]


def test_bytes_are_told_of_what_is_no_character():
    assert likely(ByteTokenizer(), 65, -1.0) == {"id": 65, "text": "A", "logprob": -1.0}
    assert likely(ByteTokenizer(), 0xF0, -1.0)["bytes"] == [0xF0]
    assert "bytes" not in likely(CharTokenizer("\ufffd"), 0, -1.0)


# ---- texts that begin with tokens


@pytest.mark.parametrize("kept", [1, 7, 50])
def test_a_text_goes_on_from_any_of_its_tokens(client, kept):
    whole = ask(client, max_new_tokens=100, logprobs=0)
    ids = [token["id"] for token in whole["tokens"]]
    again = ask(client, max_new_tokens=100 - kept, logprobs=0, prefix_ids=ids[:kept])
    assert again["text"] == whole["text"], "the text has its beginning too"
    told = [[(token["id"], token["offset"]) for token in each["tokens"]] for each in (again, whole)]
    assert told[0] == told[1][kept:], "which is not reported again"
    assert again["usage"]["completion_tokens"] == 100 - kept
    assert again["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"] + kept


def test_a_text_that_has_outgrown_the_context_goes_on_from_any_of_its_tokens(client):
    """They count as written, so the window of the model has slid on as it did when they were."""
    whole = ask(client, max_new_tokens=3 * BLOCK, logprobs=0)
    ids = [token["id"] for token in whole["tokens"]]
    for kept in (BLOCK - 5, BLOCK, 2 * BLOCK + 3):
        assert ask(client, max_new_tokens=3 * BLOCK - kept, prefix_ids=ids[:kept])["text"] == whole["text"]


def test_another_token_makes_another_text(client):
    for stream in (False, True):
        sent = {"prompt": "Once", "max_new_tokens": 5, "prefix_ids": list("日".encode()[:2]), "ignore_eos": True}
        sent |= {"logit_bias": {str("日".encode()[2]): 100}, "temperature": 0, "stream": stream}
        answer = client.post("/v1/generate", json=sent)
        if stream:
            lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
            assert "".join(json.loads(line)["text"] for line in lines).startswith("日")
        else:
            assert answer.json()["text"].startswith("日"), "the first new byte ends the character"


def test_a_text_that_was_cut_off_can_be_kept(client):
    sent = {"prompt": "Once", "prefix_ids": list(b" upon"), "max_new_tokens": 0, "session_id": "cut"}
    assert client.post("/v1/generate", json=sent).json()["text"] == " upon"
    [turn] = client.get("/v1/sessions/cut").json()["turns"]
    assert (turn["prompt"], turn["text"]) == ("Once", " upon")


def test_tokens_that_the_model_does_not_have_are_refused(client):
    assert "0 to 256" in refused(client, prompt="a", prefix_ids=[257])
    assert "prefix_ids" in refused(client, prompt="a", prefix_ids=[-1])


def test_more_tokens_than_a_text_can_have_are_refused_before_they_are_read(client):
    assert "prefix_ids has a length of 90000" in refused(client, prompt="a", prefix_ids=[256] * 90_000)


# ---- conversations


def test_a_conversation_is_answered_as_the_chat_endpoint_does(client):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    settings = {"max_tokens": 12, "seed": 3, "temperature": 0.8, "ignore_eos": True}
    theirs = client.post("/v1/chat/completions", json={"model": "default", "messages": talk, **settings}).json()
    ours = ask(client, prompt=None, messages=talk, max_new_tokens=12, seed=3, logprobs=0)
    assert ours["text"] == theirs["choices"][0]["message"]["content"]
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
    assert ours["tokens"][0]["offset"] == 0


def test_a_session_holds_what_was_said(client):
    first = ask(client, prompt=None, messages=[{"role": "user", "content": "Hi"}], session_id="talk", max_new_tokens=4)
    assert first["history_tokens"] == 0
    new = [{"role": "system", "content": "S"}, {"role": "user", "content": "Go on"}]
    second = ask(client, prompt=None, messages=new, session_id="talk", max_new_tokens=4)
    between = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": first["text"]}]
    whole = ask(client, prompt=None, messages=[new[0], *between, new[1]], max_new_tokens=4)
    assert (second["text"], second["usage"]["prompt_tokens"]) == (whole["text"], whole["usage"]["prompt_tokens"])
    assert second["history_tokens"] > 0
    turns = client.get("/v1/sessions/talk").json()["turns"]
    assert [(turn["prompt"], turn["text"]) for turn in turns] == [("Hi", first["text"]), ("Go on", second["text"])]


def test_a_conversation_too_long_says_what_it_lost(client):
    turns = [{"role": ("user", "assistant")[n % 2], "content": "x" * 12} for n in range(5)]
    theirs = client.post("/v1/chat/completions", json={"model": "default", "messages": turns, "max_tokens": 4}).json()
    ours = ask(client, prompt=None, messages=turns, max_new_tokens=4)
    assert ours["dropped_messages"] == theirs["dropped_messages"] > 0
    assert ask(client, prompt=None, messages=turns[:1], max_new_tokens=4)["dropped_messages"] == 0
    assert "dropped_messages" not in ask(client)
    for turn in range(3):
        said = {"messages": turns[:1], "session_id": "long", "max_new_tokens": 12, "ignore_eos": True, "stream": True}
        lines = [line[6:] for line in client.post("/v1/generate", json=said).text.split("\n\n") if line.startswith("data: {")]
        assert (json.loads(lines[-1])["dropped_messages"] > 0) == (turn > 0), "of the session's as well"


def test_what_is_neither_prompt_nor_conversation_is_refused(client):
    user = {"role": "user", "content": "Hi"}
    assert "prompt is missing" in refused(client)
    assert "exclude each other" in refused(client, prompt="", messages=[user])
    assert "one message of the user" in refused(client, messages=[user, user], session_id="s")
    assert "context" in refused(client, messages=[{"role": "user", "content": "x" * 100}])
    assert "messages.0.role" in refused(client, messages=[{"role": "robot", "content": ""}])


def test_a_model_may_be_named(client):
    assert ask(client, model="tiny@7")["text"] == ask(client, model="default")["text"] == ask(client)["text"]
    for path, sent in (("/v1/generate", {"prompt": ""}), ("/v1/score", {"text": "a"})):
        assert "no such model" in refused(client, 404, path, model="gpt-4", **sent)
    [model] = client.get("/v1/models").json()["data"]
    assert (model["parameters"] > 1000, model["eot_id"], model["chat_template"]) == (True, 256, False)


# ---- scores


def test_a_score_can_name_its_tokens(client):
    text = "A tale of two né " * 12
    answer = client.post("/v1/score", json={"text": text, "logprobs": 2}).json()
    assert bytes(token["id"] for token in answer["scored"]).decode() == text
    assert sum(token["logprob"] for token in answer["scored"]) == pytest.approx(answer["log_likelihood"])
    assert all(len(token["top"]) == 2 for token in answer["scored"])
    assert [text[token["offset"]] for token in answer["scored"][:16]] == list("A tale of two né")[:16]
    plain = client.post("/v1/score", json={"text": text}).json()
    assert "scored" not in plain and plain["log_likelihood"] == pytest.approx(answer["log_likelihood"])
    assert "1001 tokens" in refused(client, path="/v1/score", text="a" * 1001, logprobs=0)


# ---- lists and copies of sessions


def test_the_callers_sessions_are_listed_the_last_used_first(client):
    you = {"X-API-Key": "another"}
    for name in ("one", "two", "one", "three"):
        client.post("/v1/generate", json={"prompt": name, "max_new_tokens": 0, "session_id": name}, headers=you)
    listed = client.get("/v1/sessions", headers=you).json()
    assert [each["session_id"] for each in listed["sessions"]] == ["three", "one", "two"]
    assert [(each["turns"], each["prompt"]) for each in listed["sessions"]] == [(1, "three"), (2, "one"), (1, "two")]
    assert {each["text"] for each in listed["sessions"]} == {""}
    first = client.get("/v1/sessions?limit=2", headers=you).json()
    rest = client.get("/v1/sessions", params={"before": first["next"]}, headers=you).json()
    assert [each["session_id"] for each in rest["sessions"]] == ["two"]
    assert (rest["next"], listed["next"]) == (None, None)
    assert "two" not in str(client.get("/v1/sessions").json())
    refused = {"messages": [{"role": "user", "content": "x" * 99}], "session_id": "talk"}
    assert client.post("/v1/generate", json=refused, headers=you).status_code == 422
    newest = client.get("/v1/sessions?limit=1", headers=you).json()["sessions"][0]
    assert (newest["session_id"], newest["turns"], newest["prompt"], newest["text"]) == ("talk", 0, None, None)
    for wrong in ("before=nan", "limit=0", "before=x"):
        assert client.get(f"/v1/sessions?{wrong}", headers=you).status_code == 422


def test_a_session_can_be_copied_up_to_a_turn(client):
    for prompt in ("a", "b", "c"):
        ask(client, prompt=prompt, session_id="line", max_new_tokens=1)
    turns = client.get("/v1/sessions/line").json()["turns"]
    copied = client.post("/v1/sessions/line/fork", json={"session_id": "line.2", "last": 2})
    assert copied.json() == {"session_id": "line.2", "copied_from": "line"}
    assert client.get("/v1/sessions/line.2").json()["turns"] == turns[:2]
    ask(client, prompt="d", session_id="line.2", max_new_tokens=1)
    assert [turn["number"] for turn in client.get("/v1/sessions/line.2").json()["turns"]] == [1, 2, 3]
    assert client.get("/v1/sessions/line").json()["turns"] == turns
    client.post("/v1/sessions/line/fork", json={"session_id": "line.3"})
    assert client.get("/v1/sessions/line.3").json()["turns"] == turns


def test_copies_that_cannot_be_made_are_refused(client):
    ask(client, session_id="mine")
    assert "name" in refused(client, 409, "/v1/sessions/mine/fork", session_id="mine")
    assert "no such session" in refused(client, 404, "/v1/sessions/none/fork", session_id="new")
    assert "session_id" in refused(client, 422, "/v1/sessions/mine/fork", session_id="a b")
    you = client.post("/v1/sessions/mine/fork", json={"session_id": "new"}, headers={"X-API-Key": "another"})
    assert you.status_code == 404
