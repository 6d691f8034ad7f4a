"""Pictures and sounds over HTTP: OpenAI's own client, our own endpoint, sessions, and all that can be wrong with them."""

from __future__ import annotations

import io
import json
import threading

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from inference.dialogue import Chat, Message
from inference.engine import Engine
from inference.host import Host
from inference.request import Request, Settings
from multimodal.decode import read_picture, read_sound
from server import media
from tests import sights
from tests.live import KEY, load, save, serving
from tests.sights import image_url, input_audio, picture, sound, text

RED, TONE = picture("red"), sound()


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = load(sights.checkpoint(tmp_path_factory.mktemp("run")))
    yield host
    host.drain(1)


@pytest.fixture(scope="module")
def address(host, tmp_path_factory):
    with serving(host, tmp_path_factory.mktemp("server"), max_body_bytes=20_000, max_media_bytes=2**20) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=address, headers={"X-API-Key": KEY}, timeout=20) as client:
        yield client


@pytest.fixture
def chat(client):
    """The answer to the parts of one message, twelve tokens without chance, unless told otherwise."""

    def ask(*parts, role="user", **sent):
        usual = {"model": "default", "messages": [{"role": role, "content": list(parts)}], "max_tokens": 12, "temperature": 0}
        return client.chat.completions.create(**{**usual, **sent})

    return ask


@pytest.fixture
def generate(http):
    """The same of our own endpoint."""

    def ask(*parts, status=200, **sent) -> dict:
        usual = {"messages": [{"role": "user", "content": list(parts)}], "max_new_tokens": 12, "temperature": 0}
        answer = http.post("/v1/generate", json={**usual, **sent})
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask


def said(answer) -> str:
    return answer.choices[0].message.content


def refused(chat, *parts, **sent) -> str:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(*parts, **sent)
    assert caught.value.body["param"] == "messages"
    return caught.value.body["message"]


def direct(host, *parts) -> tuple[str, int]:
    """What the engine answers to decoded parts, and how many tokens it read."""
    engine = host.engine
    prompt = Chat(engine.tokenizer, documents=True, places=engine.places).prompt([Message("user", parts)], engine.block_size, 12)
    pieces = []
    alone = Engine(engine.model, engine.tokenizer, slots=1)
    alone.run([Request(prompt.ids, Settings(max_new_tokens=12, temperature=0, stop=prompt.stop), pieces.append, media=prompt.media)])
    return "".join(piece.text for piece in pieces).lstrip(), len(prompt.ids)


# ---- what is asked


def test_openais_client_shows_a_picture_and_plays_a_sound(host, chat):
    config = host.engine.model.config
    seen, heard = read_picture(RED, config), read_sound(TONE, config)
    for parts, decoded in (
        ([image_url(RED), text("what")], (seen, "what")),
        ([text("what"), input_audio(TONE)], ("what", heard)),
        ([text("a"), image_url(RED), text("b"), input_audio(TONE), image_url(RED)], ("a", seen, "b", heard, seen)),
    ):
        expected, tokens = direct(host, *decoded)
        answer = chat(*parts)
        assert said(answer) == expected
        assert answer.usage.prompt_tokens == tokens, "their places are tokens of the prompt"
        stream = chat(*parts, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
        assert chunks[-1].usage.prompt_tokens == tokens


def test_what_is_shown_changes_the_answer(chat, generate):
    answers = {said(chat(image_url(picture(colour)), text("what"))) for colour in ("red", "blue", "white")}
    assert len(answers) == 3
    assert said(chat(input_audio(sound(pitch=300)), text("what"))) != said(chat(input_audio(sound(pitch=1500)), text("what")))
    assert generate(image_url(RED), text("what"))["text"] == said(chat(image_url(RED), text("what")))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_the_bytes_say_what_a_picture_is(chat, kind):
    assert said(chat(image_url(picture(kind=kind), "application/whatever"), text("what")))


@pytest.mark.parametrize("kind", ["MP3", "FLAC", "OGG"])
def test_sounds_are_packed_in_many_ways(chat, kind):
    assert said(chat(input_audio(sound(kind=kind), kind.lower()), text("what")))


def test_every_role_may_show_something(chat, client):
    told = [{"role": role, "content": [image_url(RED), text("this")]} for role in ("system", "user", "assistant", "user")]
    answer = chat(messages=told)
    assert answer.usage.prompt_tokens > 4 * 16
    assert answer.dropped_messages == 0


def test_extra_fields_that_change_nothing_are_taken(chat):
    part = image_url(RED)
    part["image_url"]["detail"] = "high"
    assert said(chat({**part, "cache_control": {"type": "ephemeral"}}, text("what"), n=2, user="eva"))


def test_old_turns_go_with_their_pictures(host, chat):
    """The context has room for a few pictures: the oldest turns are left out, and so are theirs."""
    turn = [{"role": "user", "content": [image_url(RED), text("a")]}, {"role": "assistant", "content": "b"}]
    last = {"role": "user", "content": [image_url(picture("blue")), text("what")]}
    answer = chat(messages=[*turn * 8, last])
    assert answer.dropped_messages > 0
    kept = turn * ((16 - answer.dropped_messages) // 2)
    assert said(answer) == said(chat(messages=[*kept, last]))


# ---- what is refused


def test_an_address_is_not_fetched(chat):
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    message = refused(chat, part, text("what"))
    assert "picture 1 is an address, and this server fetches nothing" in message and "data:image/png;base64" in message


@pytest.mark.parametrize(("part", "told"), [
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,A*A="}}, "picture 1 is no base64"),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,é"}}, "picture 1 is no base64"),
    ({"type": "image_url", "image_url": {"url": "data:image/svg+xml,<svg/>"}}, "without ;base64"),
    ({"type": "image_url", "image_url": {"url": ""}}, "is an address"),
    (image_url(b""), "is no picture that can be read"),
    (image_url(RED[:60]), "is no picture that can be read"),
    (image_url(TONE), "is no picture that can be read"),
    ({"type": "input_audio", "input_audio": {"data": "data:audio/wav;base64,AAAA", "format": "wav"}}, "sound 1 is no base64"),
    (input_audio(RED), "sound 1 is no sound that can be read"),
    (input_audio(sound(0)), "sound 1 has no sound in it"),
    (input_audio(sound(1.5)), "sound 1 lasts 1.5 s; the model hears 1 s (audio_seconds) at most"),
])  # fmt: skip
def test_what_cannot_be_read_is_told_with_the_reason(chat, part, told):
    assert told in refused(chat, part, text("what"))


def test_the_one_that_is_to_blame_is_named(chat):
    assert "picture 2 is no picture" in refused(chat, image_url(RED), input_audio(TONE), image_url(b"x"))


@pytest.mark.parametrize("part", [
    {"type": "file", "file": {"file_data": "x"}}, {"type": "text"}, {"type": "image_url"}, {"type": "input_audio", "input_audio": {}},
    {"type": "text", "text": "a", "image_url": {"url": "data:,"}}, {"type": "image_url", "image_url": "data:,"},
    {"type": "input_audio", "input_audio": {"data": "", "format": "aiff"}},
    {"type": "image_url", "image_url": {"url": "data:,", "size": 4}},
])  # fmt: skip
def test_a_part_that_is_none_is_refused_by_name(http, part):
    sent = {"model": "default", "messages": [{"role": "user", "content": [part]}]}
    for path, status, more in (("/v1/chat/completions", 400, {}), ("/v1/generate", 422, {"model": None})):
        answer = http.post(path, json={**sent, **more})
        assert answer.status_code == status, answer.text
        assert "messages.0.content.0" in answer.json()["error"]["message"]
        assert "[" not in answer.json()["error"]["message"]


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bomb_is_not_unpacked(chat):
    file = io.BytesIO()
    Image.new("1", (12_000, 10_000)).save(file, "PNG")
    assert "12000 × 10000 pixels, more than 100 million" in refused(chat, image_url(file.getvalue()), text("what"))


def test_their_number_is_bounded(chat):
    message = refused(chat, *[image_url(RED)] * (media.MOST + 1), text("what"))
    assert f"there are {media.MOST + 1} pictures and sounds; this server reads {media.MOST}" in message


def test_more_than_the_context_holds_is_refused(chat, generate):
    parts = [image_url(RED)] * 12
    assert "the last message takes" in refused(chat, *parts)
    assert generate(*parts, status=422)["error"]["code"] == "context_length_exceeded"


def test_a_large_body_is_taken_from_known_callers_only(http, address, chat):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    assert 20_000 < len(file.getvalue()) < 2**19
    assert said(chat(image_url(file.getvalue()), text("what")))
    sent = {"messages": [{"role": "user", "content": [image_url(file.getvalue())]}]}
    for known, status in ((KEY, 422), ("wrong", 401)):
        answer = httpx.post(f"{address}/v1/generate", json={**sent, "max_new_tokens": -1}, headers={"X-API-Key": known})
        assert answer.status_code == status
    assert http.post("/v1/score", json={"text": "x" * 30_000}).status_code == 413, "texts have no more room than before"
    huge = http.post("/v1/generate", json={"prompt": "x" * (2**20 + 30_000)})
    assert huge.status_code == 413 and f"{2**20 + 20_000:,} bytes" in huge.text


@pytest.mark.parametrize(("modalities", "part", "told"), [
    ("image", input_audio(TONE), "this model takes no sounds, only text and pictures"),
    ("audio", image_url(RED), "this model takes no pictures, only text and sounds"),
    ("", image_url(RED), "this model takes no pictures, only text:"),
])  # fmt: skip
def test_a_model_says_what_it_does_not_take(tmp_path, tiny_model, modalities, part, told):
    path = sights.checkpoint(tmp_path, modalities) if modalities else save(tmp_path / "best_model.pt", tiny_model())
    host = load(path)
    with serving(host, tmp_path, api_keys=()) as address:
        for role in ("user", "system", "assistant"):
            sent = {"messages": [{"role": role, "content": [part]}, {"role": "user", "content": "what"}]}
            answer = httpx.post(f"{address}/v1/chat/completions", json={"model": "default", **sent})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_modality")
            assert told in answer.json()["error"]["message"]
            assert httpx.post(f"{address}/v1/generate", json=sent).status_code == 422
        listed = httpx.get(f"{address}/v1/models").json()["data"][0]
        assert listed["input_modalities"] == ["text", *filter(None, [modalities])]
        assert listed["audio_seconds"] == (1.0 if modalities == "audio" else None)
    host.drain(1)


# ---- sessions


def test_a_session_keeps_that_something_was_shown(generate, http):
    first = generate(image_url(RED), text("what is it"), session_id="shown")
    second = generate(text("and"), input_audio(TONE), session_id="shown")
    turns = http.get("/v1/sessions/shown").json()["turns"]
    assert [turn["prompt"] for turn in turns] == ["[picture] what is it", "and [sound]"]
    assert [turn["text"] for turn in turns] == [first["text"], second["text"]]
    assert second["history_tokens"] > len("[picture] what is it"), "as text it is read again"
    assert generate(text("a"), text("b"), session_id="words")["text"]
    assert http.get("/v1/sessions/words").json()["turns"][0]["prompt"] == "ab"


def test_streams_of_ours_show_the_same(http, generate):
    sent = {"messages": [{"role": "user", "content": [image_url(RED), text("what")]}], "max_new_tokens": 12, "temperature": 0}
    with http.stream("POST", "/v1/generate", json={**sent, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
    assert "".join(json.loads(line[6:])["text"] for line in lines) == generate(image_url(RED), text("what"))["text"]


# ---- beside others


def test_others_are_answered_while_a_picture_is_read(http, generate, monkeypatch):
    held, reading = threading.Event(), threading.Event()
    kind = media.KINDS["image_url"]

    def slow(data, config):
        reading.set()
        assert held.wait(10)
        return kind.read(data, config)

    monkeypatch.setitem(media.KINDS, "image_url", media.Kind(kind.modality, kind.word, slow))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(generate(image_url(RED), text("what"))))
    asking.start()
    assert reading.wait(10)
    assert generate(text("Hello"))["text"]
    assert not answers
    held.set()
    asking.join(10)
    assert answers


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"quantize": "int8"}])
def test_fewer_bits_see_and_hear_too(tmp_path, how):
    host = Host(str(sights.checkpoint(tmp_path)), "cpu", **{"dtype": "float32", "slots": 2, **how})
    host.load()
    with serving(host, tmp_path, api_keys=()) as address:
        sent = {"messages": [{"role": "user", "content": [image_url(RED), input_audio(TONE), text("what")]}], "max_new_tokens": 8}
        answer = httpx.post(f"{address}/v1/generate", json=sent)
        assert answer.status_code == 200, answer.text
    host.drain(1)
