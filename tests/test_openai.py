"""OpenAI's own Python client against a real server, whose model was never trained: what it writes is noise, but always the same."""

from __future__ import annotations

import asyncio
import json
from itertools import chain

import httpx
import openai
import pytest

from config import UserError
from inference.request import Busy
from tests.live import KEY, load, save, serving, wait_until

BLOCK = 128
EOT = 256  # the byte tokenizer's end of text
A = {"logit_bias": {"65": 100}}  # writes nothing but the letter A
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def host(tmp_path_factory, tiny_model):
    path = save(tmp_path_factory.mktemp("run") / "best_model.pt", tiny_model(block_size=BLOCK))
    host = load(path, max_waiting=32)
    yield host
    host.drain(1)


@pytest.fixture(scope="module")
def address(host, tmp_path_factory):
    with serving(host, tmp_path_factory.mktemp("server"), max_new_tokens=100_000, max_waiting=32) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def complete(client):
    """Asks for a completion: eight tokens with a seed, unless told otherwise."""
    return lambda **sent: client.completions.create(
        **{"model": "default", "prompt": "Once", "max_tokens": 8, "seed": 1, **sent}
    )


@pytest.fixture
def chat(client):
    """Asks for a chat completion, likewise."""
    return lambda **sent: client.chat.completions.create(
        **{"model": "default", "messages": HI, "max_tokens": 8, "seed": 1, **sent}
    )


def refused(call, **sent) -> openai.APIStatusError:
    """The error of a request that must be refused with 400."""
    with pytest.raises(openai.BadRequestError) as caught:
        call(**sent)
    assert caught.value.body["type"] == "invalid_request_error"
    assert caught.value.request_id
    return caught.value


# ---- models


def test_the_model_is_listed(client):
    [model] = client.models.list()
    assert (model.id, model.object) == ("tiny@7", "model")
    assert model.provenance == {"id": "tiny@7", "run": "tiny", "step": 7, "val_loss": 2.5}
    assert client.models.retrieve("tiny@7") == client.models.retrieve("default") == model


def test_another_model_is_not_found(client, complete, chat):
    for call in (lambda **sent: client.models.retrieve(sent["model"]), complete, chat):
        with pytest.raises(openai.NotFoundError) as caught:
            call(model="gpt-5")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# ---- completions


def test_a_completion_has_all_that_the_client_expects(complete):
    answer = complete(model="tiny@7")
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("text_completion", "tiny@7", "tiny@7")
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 8, 13), (
        "4 bytes and the end of text"
    )
    assert answer.provenance["run"] == "tiny"


def test_sixteen_tokens_are_the_default(complete):
    assert complete(max_tokens=None, extra_body={"ignore_eos": True}).usage.completion_tokens == 16


def test_a_prompt_may_be_texts_or_tokens(complete):
    def texts(prompt) -> list[str]:
        answer = complete(prompt=prompt, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    [once], [then] = texts("Once"), texts("Then")
    assert texts(["Once", "Then"]) == [once, then]
    assert texts([EOT, *b"Once"]) == [once]
    assert texts([[EOT, *b"Once"], [EOT, *b"Then"]]) == [once, then]
    assert texts("") == texts([EOT])


def test_several_choices_have_seeds_of_their_own(complete):
    many = [choice.text for choice in complete(n=3, seed=5).choices]
    alone = [complete(seed=5 + n).choices[0].text for n in range(3)]
    assert many == alone
    assert len(set(many)) == 3


def test_usage_counts_each_prompt_once(complete):
    usage = complete(prompt=["Once", "Hello!"], n=3, extra_body={"ignore_eos": True}).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (5 + 7, 6 * 8)


def test_the_same_seed_gives_the_same_text(complete):
    assert complete(seed=3).choices[0].text == complete(seed=3).choices[0].text != complete(seed=4).choices[0].text
    assert complete(seed=None).choices[0].text != complete(seed=None).choices[0].text


def test_temperature_zero_takes_the_likeliest(complete):
    greedy = complete(temperature=0, seed=None).choices[0].text
    assert complete(temperature=0, seed=9).choices[0].text == greedy
    assert complete(temperature=1, extra_body={"top_k": 1}).choices[0].text == greedy
    assert complete(temperature=1, extra_body={"min_p": 1.0}).choices[0].text == greedy
    assert complete(temperature=1, top_p=0.0).choices[0].text == greedy


def test_biases_and_stops(complete):
    assert complete(**A).choices[0].text == "A" * 8
    stopped = complete(**A, stop="AAA", max_tokens=50).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("", "stop")
    assert complete(**A, stop=["x", "y"]).choices[0].finish_reason == "length"
    ended = complete(logit_bias={str(EOT): 100})
    assert (ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("stop", 0)
    assert complete(logit_bias={str(EOT): 100}, extra_body={"ignore_eos": True}).usage.completion_tokens == 8


def test_penalties_change_the_text(complete):
    once = complete(logit_bias={"65": 5}, temperature=0, frequency_penalty=2, presence_penalty=2).choices[0].text
    assert once.count("A") < complete(logit_bias={"65": 5}, temperature=0).choices[0].text.count("A")
    assert complete(extra_body={"repetition_penalty": 1.5, "deterministic": True}).choices


def test_a_text_may_outgrow_the_context(complete):
    answer = complete(prompt="x" * 100, max_tokens=2 * BLOCK, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 2 * BLOCK


def test_a_prompt_longer_than_the_context_is_refused(complete):
    assert complete(prompt="x" * (BLOCK - 1)).choices, "with the end of text in front it just fits"
    for prompt in ("x" * BLOCK, [65] * (BLOCK + 1)):
        assert refused(complete, prompt=prompt).code == "context_length_exceeded"


# ---- log-probabilities


def test_logprobs_of_a_completion(complete):
    logprobs = complete(logprobs=3).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 8
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == value <= max(top.values()) < 0
        assert len(top) in (3, 4), "the one that was taken may not be among the three"


def test_echo_shows_the_prompt_and_how_likely_it_was(complete):
    [choice] = complete(echo=True, logprobs=0, max_tokens=2).choices
    assert choice.text.startswith("Once")
    assert choice.logprobs.tokens[:4] == list("Once")
    assert all(value < 0 for value in choice.logprobs.token_logprobs), "the first follows the end of text"
    assert choice.logprobs.text_offset[:5] == [0, 1, 2, 3, 4]
    [choice] = complete(prompt=list(b"Once"), echo=True, logprobs=0, max_tokens=0).choices
    assert choice.text == "Once"
    assert choice.logprobs.token_logprobs[0] is None, "nothing comes before it"
    assert choice.logprobs.top_logprobs[0] is None
    assert complete(echo=True, max_tokens=0).choices[0].logprobs is None


def test_a_text_scored_is_as_likely_as_it_was_when_written(client, complete):
    written = complete(**A, logprobs=0).choices[0].logprobs.token_logprobs
    scored = complete(prompt="Once" + "A" * 8, echo=True, logprobs=0, max_tokens=0).choices[0].logprobs.token_logprobs
    assert scored[4:] == pytest.approx(written, abs=1e-3)


def test_offsets_find_the_tokens_in_any_text(complete):
    [choice] = complete(prompt="a€b", echo=True, logprobs=0, max_tokens=0).choices
    assert choice.text == "a€b"
    assert choice.logprobs.tokens == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b"]
    assert choice.logprobs.text_offset == [0, 1, 1, 1, 2]


def test_logprobs_of_a_chat(chat):
    [choice] = chat(logprobs=True, top_logprobs=2).choices
    tokens = choice.logprobs.content
    said = bytes(byte for token in tokens for byte in token.bytes).decode(errors="replace")
    assert said.lstrip() == choice.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob for token in tokens)
    assert chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert refused(chat, top_logprobs=2).param == "top_logprobs"


# ---- streams


@pytest.mark.parametrize("sent", [
    {}, {"n": 3}, {"prompt": ["Once", "Then"], "n": 2}, {"stop": "e"}, {"echo": True, "logprobs": 2}, {"logprobs": 1},
    {"echo": True, "max_tokens": 0}, {"logit_bias": {str(EOT): 100}},
], ids=str)  # fmt: skip
def test_a_streamed_completion_is_the_whole_one_in_pieces(complete, sent):
    whole = complete(**sent)
    chunks = list(complete(**sent, stream=True))
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [choice.finish_reason]
        if choice.logprobs:
            told = [part.logprobs.model_dump() for part in parts]
            assert choice.logprobs.model_dump() == {name: [*chain(*(each[name] for each in told))] for name in told[0]}
    assert chunks[-1].provenance["step"] == 7


@pytest.mark.parametrize("sent", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 1}], ids=str)
def test_a_streamed_chat_is_the_whole_one_in_pieces(chat, sent):
    whole = chat(**sent)
    chunks = list(chat(**sent, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert [part.delta.role for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
        assert "".join(part.delta.content for part in parts) == choice.message.content
        assert parts[-1].finish_reason == choice.finish_reason
        if choice.logprobs:
            assert [token for part in parts for token in part.logprobs.content] == choice.logprobs.content
    assert (chunks[-1].dropped_messages, chunks[-1].provenance["run"]) == (0, "tiny")


@pytest.mark.parametrize("call", ["complete", "chat"])
def test_usage_comes_last_where_it_is_asked_for(request, call):
    ask = request.getfixturevalue(call)
    *chunks, last = ask(stream=True, n=2, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == ask(n=2).usage.model_copy(update={"prompt_tokens_details": last.usage.prompt_tokens_details})
    assert last.provenance["run"] == "tiny"
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)
    assert all("usage" not in chunk.model_fields_set for chunk in ask(stream=True))


def test_the_events_are_as_openai_writes_them(address):
    sent = {"model": "default", "prompt": "Once", "max_tokens": 3, "stream": True}
    answer = httpx.post(f"{address}/v1/completions", json=sent, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["model"] == "tiny@7" for event in events)


def test_leaving_a_stream_frees_its_slot(host, complete):
    with complete(stream=True, max_tokens=100_000, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
        assert host.engine.stats().running == 1
    wait_until(lambda: host.engine.stats().running == 0)


def test_a_failure_in_mid_stream_is_told(host, complete, monkeypatch):
    def fail(*_unused):
        raise RuntimeError("the secret reason")

    stream = iter(complete(stream=True, max_tokens=100_000, extra_body={"ignore_eos": True}))
    next(stream)
    monkeypatch.setattr(host.engine, "forward", fail)
    with pytest.raises(openai.APIError, match="failed on this request") as caught:
        list(stream)
    assert "secret" not in str(caught.value)
    monkeypatch.undo()
    assert complete().choices, "the next one is none the worse"


# ---- chats


def test_a_chat_has_all_that_the_client_expects(chat):
    answer = chat(messages=[{"role": "system", "content": "Be kind."}, *HI])
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.system_fingerprint, answer.dropped_messages) == ("chat.completion", "tiny@7", 0)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.refusal, choice.finish_reason) == ("assistant", None, "length")


def test_a_chat_may_go_on_as_long_as_fits(chat):
    answer = chat(max_tokens=None, logit_bias={str(EOT): -100}, stop=None)
    assert answer.usage.total_tokens == BLOCK
    assert chat(max_tokens=None, max_completion_tokens=3, extra_body={"ignore_eos": True}).usage.completion_tokens == 3


def test_a_base_model_goes_on_from_a_transcript(chat, complete):
    told = complete(prompt="User: Hi\nAssistant:").choices[0].text
    assert chat().choices[0].message.content == told.lstrip()


def test_what_was_answered_can_be_sent_back(chat):
    first = chat().choices[0].message
    assert chat(messages=[*HI, first, {"role": "user", "content": "And?"}]).choices
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert chat(messages=[{"role": "user", "content": parts}]).choices[0].message == first


def test_a_long_history_loses_its_oldest_turns(chat):
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " * 10} for n in range(9)]
    messages = [{"role": "system", "content": "Count."}, *turns]
    answer = chat(messages=messages)
    assert answer.dropped_messages >= 6
    assert answer.dropped_messages % 2 == 0, "a question goes with its answer"
    assert answer.usage.prompt_tokens <= BLOCK
    assert list(chat(messages=messages, stream=True))[-1].dropped_messages == answer.dropped_messages


def test_a_last_message_longer_than_the_context_is_refused(chat):
    error = refused(chat, messages=[{"role": "user", "content": "x" * 200}])
    assert (error.code, error.param) == ("context_length_exceeded", "messages")


def test_the_checkpoints_template_is_used(host, chat, complete, monkeypatch):
    template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    monkeypatch.setitem(host.engine.provenance, "chat_template", template)
    assert chat().choices[0].message.content == complete(prompt="[Hi]").choices[0].text
    monkeypatch.setitem(host.engine.provenance, "chat_template", "{{ raise_exception('only in Latin') }}")
    assert "only in Latin" in refused(chat).message


@pytest.mark.parametrize("message", [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]},
    {"role": "user"}, {"role": "tool", "content": "4", "tool_call_id": "1"}, {"role": "nobody", "content": "x"},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
], ids=str)  # fmt: skip
def test_messages_that_are_no_text_are_refused(chat, message):
    assert refused(chat, messages=[message]).param.startswith("messages")


def test_pictures_and_sounds_are_refused_in_so_many_words(chat):
    parts = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "http://x"}}]
    assert "takes no pictures, only text" in refused(chat, messages=[{"role": "user", "content": parts}]).message


# ---- what is refused, and what is ignored


@pytest.mark.parametrize("sent", [
    {"n": 17}, {"n": 0}, {"best_of": 3}, {"suffix": "end"}, {"max_tokens": -1}, {"max_tokens": 10**7}, {"max_tokens": 200_000},
    {"temperature": 3}, {"top_p": 2}, {"presence_penalty": -3}, {"logprobs": 21}, {"logprobs": -1}, {"seed": 2**64},
    {"logit_bias": {"257": 1}}, {"logit_bias": {"65": 101}}, {"logit_bias": {"a": 1}}, {"stop": ["x"] * 17},
    {"prompt": []}, {"prompt": [[]]}, {"prompt": [257]}, {"prompt": [-1]}, {"prompt": ["x", 1]}, {"prompt": ["x"] * 33},
    {"prompt": 5}, {"temperature": "1"}, {"stream": "yes"},
], ids=str)  # fmt: skip
def test_impossible_completions_are_refused_by_name(complete, sent):
    [name] = sent
    assert refused(complete, **sent).param.startswith(name)


@pytest.mark.parametrize(("prompt", "told"), [
    (["a", 1], "prompt.1: input should be a valid string."),
    ([[1], ["a"]], "prompt.1.0: input should be a valid integer."), (5, "prompt: input should be a valid string or a valid list."),
    ([-1], "prompt.0: input should be greater than or equal to 0."),
], ids=str)  # fmt: skip
def test_of_what_a_prompt_may_be_the_nearest_is_told(complete, prompt, told):
    assert refused(complete, prompt=prompt).body["message"] == told


def test_a_surrogate_in_a_chat_is_told(address):
    body = b'{"model": "default", "messages": [{"role": "user", "content": "\\ud800"}]}'
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    error = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers).json()["error"]
    assert (error["param"], error["message"]) == ("messages.0.content", "messages.0.content: holds half a surrogate pair, which is no character.")


def test_too_many_texts_blame_what_asks_for_them(host, tmp_path):
    with serving(host, tmp_path, max_waiting=2) as address, openai.OpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
        complete, chat = client.completions.create, client.chat.completions.create
        assert refused(complete, model="default", prompt="a", n=4).param == "n"
        assert refused(complete, model="default", prompt=["a", "b"], n=2).param == "prompt"
        assert refused(chat, model="default", messages=HI, n=4).param == "n"


def test_what_this_server_does_not_have_is_told_with_a_code(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="default", input="a")
    assert caught.value.code == "unknown_url"


@pytest.mark.parametrize("sent", [
    {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"response_format": {"type": "json_object"}},
    {"tool_choice": "required"}, {"functions": [{"name": "f"}]}, {"modalities": ["text", "audio"]},
    {"audio": {"voice": "alloy", "format": "wav"}}, {"reasoning_effort": "high"}, {"web_search_options": {}},
    {"n": 17}, {"messages": []}, {"max_tokens": 0}, {"top_logprobs": 21},
], ids=str)  # fmt: skip
def test_impossible_chats_are_refused_by_name(chat, sent):
    [name] = sent
    assert refused(chat, **sent).param == name


@pytest.mark.parametrize(
    "sent", [{"min_p": 2}, {"top_k": -1}, {"ignore_eos": "no"}, {"repetition_penalty": 0}], ids=str
)
def test_impossible_extensions_are_refused_by_name(complete, sent):
    [name] = sent
    assert refused(complete, extra_body=sent).param == name


def test_fields_that_change_nothing_are_ignored(complete, chat):
    many = {
        "user": "u-1",
        "extra_body": {"next_years_field": {"deep": [1]}, "best_of": 1},
        "stop": None,
        "logit_bias": {},
    }
    assert complete(**many).choices == complete().choices
    many = {
        "user": "u-1", "store": False, "metadata": {"a": "b"}, "tools": [], "tool_choice": "none", "modalities": ["text"],
        "response_format": {"type": "text"}, "service_tier": "auto", "safety_identifier": "s", "parallel_tool_calls": True,
    }  # fmt: skip
    assert chat(**many).choices == chat().choices


@pytest.mark.parametrize("body", [
    b"{", b"[]", b"", b'{"model": "default", "prompt": "\\ud800"}', b'{"model": "default", "prompt": "x", "temperature": NaN}',
    b'{"model": "default", "prompt": "x", "top_p": 1e999}', b"\xff", b'{"prompt": "x"}', b'{"model": null, "prompt": "x"}',
])  # fmt: skip
def test_bodies_that_make_no_sense_are_refused_in_openais_shape(address, body):
    for path in ("completions", "chat/completions"):
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        answer = httpx.post(f"{address}/v1/{path}", content=body, headers=headers)
        assert answer.status_code == 400
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_any_text_goes_through(complete):
    prompt = "NUL \0, right to left שלום, emoji 👩‍🚀"
    assert complete(prompt=prompt, echo=True, max_tokens=0).choices[0].text == prompt


def test_a_wrong_key_is_refused(address):
    for key in ("wrong", "x" * 1000):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        with pytest.raises(openai.AuthenticationError):
            client.completions.create(model="default", prompt="x")


# ---- a busy server


@pytest.fixture
def full(host, monkeypatch):
    """A queue that is full for the next so many requests; the list holds one element for each that came."""

    def make(times: int) -> list[None]:
        came, submit = [], host.engine.submit

        def submit_or_not(request):
            came.append(None)
            if len(came) <= times:
                raise Busy("3 requests are waiting.", retry_after=0.02)
            submit(request)

        monkeypatch.setattr(host.engine, "submit", submit_or_not)
        return came

    return make


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_comes_back_when_the_queue_was_full(client, full, stream):
    came = full(2)
    patient = client.with_options(max_retries=2)
    assert list(patient.completions.create(model="default", prompt="x", max_tokens=1, stream=stream))
    assert len(came) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_a_bad_request_streamed_too(complete, host, monkeypatch, stream):
    def refuse(request):
        raise UserError("the prompt ends where nothing can follow.")

    monkeypatch.setattr(host.engine, "submit", refuse)
    assert "nothing can follow" in refused(complete, stream=stream).body["message"]


def test_more_logprobs_than_one_answer_may_hold_are_refused(complete):
    told = refused(complete, n=16, max_tokens=4096, logprobs=20).body
    assert "16 texts with 65536 tokens" in told["message"] and told["param"] == "logprobs"
    assert len(complete(n=2, max_tokens=8, logprobs=20).choices) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_says_when_to_come_back(complete, full, stream):
    full(1)
    with pytest.raises(openai.RateLimitError) as caught:
        complete(stream=stream)
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"], caught.value.code) == ("1", "20", "queue_full")


def test_of_several_texts_all_or_none_are_written(host, complete, full):
    came = full(0)
    submit = host.engine.submit

    def third_fails(request):
        if len(came) == 2:
            raise Busy("3 requests are waiting.", retry_after=0.02)
        submit(request)

    host.engine.submit = third_fails  # the fixture takes it back
    with pytest.raises(openai.RateLimitError):
        complete(n=3, max_tokens=100_000, extra_body={"ignore_eos": True})
    wait_until(lambda: host.engine.stats().running == host.engine.stats().waiting == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_model_the_server_says_why(host, complete, monkeypatch, stream):
    monkeypatch.setattr(host, "reason", "the model is being loaded.")
    with pytest.raises(openai.InternalServerError) as caught:
        complete(stream=stream)
    assert caught.value.status_code == 503
    assert "being loaded" in caught.value.message
    assert float(caught.value.response.headers["retry-after"]) > 0


def test_a_client_that_gives_up_frees_its_slot(host, client):
    hasty = client.with_options(timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        hasty.completions.create(model="default", prompt="x", max_tokens=100_000, extra_body={"ignore_eos": True})
    wait_until(lambda: host.engine.stats().running == 0)


def test_many_at_once_get_what_each_gets_alone(address, complete):
    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        sent = {"model": "default", "prompt": "Once", "max_tokens": 8, "seed": seed, "stream": True}
        return "".join([chunk.choices[0].text async for chunk in await client.completions.create(**sent)])

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(12)))

    assert asyncio.run(all_at_once()) == [complete(seed=seed).choices[0].text for seed in range(12)]


def test_prompts_that_an_idle_server_has_no_room_for_are_not_told_to_come_again(host, complete):
    """The first of them find slots, the others would have to wait, and are more than may."""
    scheduler = host.current.scheduler
    most, scheduler.max_waiting_tokens = scheduler.max_waiting_tokens, 100
    try:
        slots = len(scheduler.slots)
        assert "more than this server takes at once" in str(refused(complete, prompt=["a" * 40] * (slots + 3)))
        assert len(complete(prompt=["a" * 40] * (slots + 2)).choices) == slots + 2
    finally:
        scheduler.max_waiting_tokens = most
