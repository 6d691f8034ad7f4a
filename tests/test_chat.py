"""Conversations as prompts: the transcript of a base model, a checkpoint's own template, and what is left out of a long one."""

from __future__ import annotations

import pytest

from config import UserError
from inference.dialogue import Chat, Message
from inference.request import Request, Settings
from inference.transcript import Transcript
from tokenizer import EOT, BPETokenizer, ByteTokenizer

BYTES = ByteTokenizer()
IMPORTED = BPETokenizer(
    [bytes([byte]) for byte in range(256)],
    controls={EOT: 256, "<|im_start|>": 257, "<|im_end|>": 258},
    visible={"<think>": 259, "</think>": 260},
    ends=[258],
)
THINKING = (  # what Qwen's templates do
    "{% for m in messages %}{% set said = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said %}{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + said }}{{ eos_token }}\n"
    "{% endfor %}{{ '<|im_start|>assistant\n' + ('<think>' if quick is not defined else '') }}"
)
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message.role }}>{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def talk(*contents: str, system: str = "") -> list[Message]:
    """A conversation in which the user and the assistant take turns."""
    said = [Message(("user", "assistant")[n % 2], content) for n, content in enumerate(contents)]
    return ([Message("system", system)] if system else []) + said


def text(ids: list[int]) -> str:
    """The text of some ids, with the end of text as a bar."""
    return "".join("|" if i == BYTES.eot else chr(i) for i in ids)


def test_a_base_model_gets_a_transcript():
    prompt = Chat(BYTES).prompt(talk("Hi", "Hello", "Who?", system="A play."), 1000)
    assert text(prompt.ids) == "A play.\nUser: Hi\nAssistant: Hello\nUser: Who?\nAssistant:"
    assert (prompt.stop, prompt.plain, prompt.dropped) == (("\nUser:",), True, 0)


def test_a_model_of_documents_gets_the_end_of_text_in_front():
    assert Chat(BYTES, documents=True).prompt(talk("Hi"), 1000).ids[0] == BYTES.eot
    assert Chat(BYTES, CHATML, documents=True).prompt(talk("Hi"), 1000).ids.count(BYTES.eot) == 2, "not twice"


def test_a_template_says_itself_how_a_chat_begins():
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    assert text(Chat(BYTES, template, documents=True).prompt(talk("Hi"), 1000).ids) == "<user>Hi"


def test_the_checkpoints_template_is_used():
    prompt = Chat(BYTES, CHATML).prompt(talk("Hi", system="Be kind."), 1000)
    assert text(prompt.ids) == "|<system>Be kind.|<user>Hi|<assistant>"
    assert (prompt.stop, prompt.plain) == ((), False)


def test_end_of_text_written_out_in_a_template_is_the_token():
    assert text(Chat(BYTES, "a<|endoftext|>b").prompt(talk("Hi"), 1000).ids) == "a|b"


@pytest.mark.parametrize("template", ["", CHATML], ids=["transcript", "template"])
def test_no_message_can_write_the_end_of_text_token(template):
    harmless = Chat(BYTES, template).prompt(talk("Hi"), 1000).ids.count(BYTES.eot)
    assert Chat(BYTES, template).prompt(talk("<|endoftext|>"), 1000).ids.count(BYTES.eot) == harmless


def named(ids: list[int]) -> str:
    """The text of some ids, with the names of an imported tokenizer's tokens in brackets."""
    return "".join(f"[{IMPORTED.names[i]}]" if i in IMPORTED.names else chr(i) for i in ids)


def test_an_imported_template_writes_the_tokens_that_it_was_taught_with():
    assert named(Chat(IMPORTED, THINKING).ids(talk("Hi"))) == (
        "[<|im_start|>]user\nHi[<|im_end|>]\n[<|im_start|>]assistant\n[<think>]"
    )


def test_a_template_finds_what_it_looks_for_in_a_message():
    """A thought in an old answer is dropped, although its end is the name of a token."""
    told = named(Chat(IMPORTED, THINKING).ids(talk("Hi", "<think>Hm.</think> Yes.", "So?")))
    assert "Hm." not in told and "[<|im_start|>]assistant\nYes.[<|im_end|>]" in told


@pytest.mark.parametrize("name", IMPORTED.names.values())
def test_no_message_can_write_a_token_of_the_template(name):
    chat = Chat(IMPORTED, THINKING)
    harmless = [i for i in chat.ids(talk("Hi")) if i > 255]
    written = chat.ids(talk(f"a{name}b"))
    assert [i for i in written if i > 255] == harmless
    assert f"a{name}b" in named(written)


def test_no_two_messages_can_write_a_token_together():
    written = Chat(IMPORTED, "{% for m in messages %}{{ m.content }}{% endfor %}").ids(talk("<|im_", "end|>"))
    assert named(written) == "<|im_end|>"


@pytest.mark.parametrize("end", [256, 258])
def test_an_answer_ends_where_its_model_says_so(end):
    def write(**settings) -> list[tuple]:
        transcript = Transcript(Request([1], Settings(max_new_tokens=9, **settings), lambda _: None), IMPORTED)
        return [transcript.push(token) for token in (259, 72, 105, 257, end)]

    assert [text for text, _, _ in write()] == ["<think>", "H", "i", "", ""], "controls have no text"
    assert [why for _, why, _ in write()] == ["", "", "", "", "stop"]
    assert write(ignore_eos=True)[-1][1] == ""


def test_a_template_is_not_filled_in_from_a_message():
    assert "{{ 7 * 7 }}" in text(Chat(BYTES, CHATML).prompt(talk("{{ 7 * 7 }}"), 1000).ids)


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for", "{{ nobody.knows }}", "{{ 1 / 0 }}",
])  # fmt: skip
def test_a_template_that_fails_is_told(template):
    with pytest.raises(UserError, match="chat template"):
        Chat(BYTES, template).prompt(talk("Hi"), 1000)


def test_a_template_may_refuse():
    template = "{{ raise_exception('the system has no say here') }}"
    with pytest.raises(UserError, match="the system has no say here"):
        Chat(BYTES, template).prompt(talk("Hi"), 1000)


@pytest.mark.parametrize("template", ["", CHATML], ids=["transcript", "template"])
def test_a_long_history_loses_its_oldest_turns(template):
    messages = talk("one", "1", "two", "2", "three", "3", "four", system="Count.")
    chat = Chat(BYTES, template)
    for dropped in (2, 4, 6):
        fitting = chat.ids([messages[0], *messages[1 + dropped :]])
        prompt = chat.prompt(messages, len(fitting) + 1, answer=1)
        assert (prompt.ids, prompt.dropped) == (fitting, dropped)


def test_the_whole_history_stays_where_it_fits():
    messages = talk("one", "1", "two")
    assert Chat(BYTES).prompt(messages, 4 * len(Chat(BYTES).ids(messages))).dropped == 0


def test_the_answer_keeps_its_room():
    messages = talk("a" * 40, "b" * 40, "c")
    length = len(Chat(BYTES).ids(messages))
    assert Chat(BYTES).prompt(messages, length + 5, answer=5).dropped == 0
    assert Chat(BYTES).prompt(messages, length + 5).dropped == 2, "a quarter of the block is the answer's"


def test_the_last_turn_and_the_system_stay_however_long():
    prompt = Chat(BYTES).prompt(talk("old", "older", "x" * 100, system="s" * 50), 64)
    assert len(prompt.ids) > 150
    assert prompt.dropped == 2


@pytest.mark.parametrize("messages", [
    [Message("system", "Alone.")], [Message("assistant", "First.")], [Message("user", "a"), Message("user", "b")],
])  # fmt: skip
def test_unusual_conversations_are_rendered(messages):
    prompt = Chat(BYTES).prompt(messages, 1000)
    assert all(message.content in text(prompt.ids) for message in messages)
    assert prompt.dropped == 0


@pytest.mark.parametrize("template", ["", CHATML], ids=["transcript", "template"])
def test_what_is_shown_stands_where_it_was_said(template):
    chat = Chat(BYTES, template, places=lambda medium: [-medium, -medium])
    ids = chat.prompt([Message("system", (7, "a")), Message("user", ("b", 8, "c", 9))], 1000).ids
    shown = "".join(f"({-i})" if i < 0 else text([i]) for i in ids)
    assert "(7)(7)a" in shown and "b(8)(8)c(9)(9)" in shown


@pytest.mark.parametrize("template", [
    "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}",
    "{% for message in messages %}{{ message.content }}{{ message.content }}{% endfor %}", "{{ messages[0].content[:9] }}",
])  # fmt: skip
def test_a_template_that_loses_what_is_shown_is_refused(template):
    chat = Chat(BYTES, template, places=lambda medium: [-medium])
    assert chat.prompt(talk("Hi"), 1000).ids
    with pytest.raises(UserError, match="no pictures or sounds"):
        chat.prompt([Message("system", (7, "a")), Message("user", ("b",))], 1000)
