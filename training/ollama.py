"""The Modelfile by which Ollama takes a GGUF file: how to sample, and how a conversation is put to the model."""

from __future__ import annotations

import re

from config import ModelConfig, SamplingConfig, UserError
from inference.chat_template import fill
from tokenizer import Tokenizer

SINCE = "0.30.0"  # earlier ones run a Qwen3 with code of their own, which cuts words as Qwen does, whatever the file says
RAW = "{{ .Prompt }}"  # the text as it is typed
UNSAID = "no TEMPLATE, since Ollama's language cannot say this chat template; Ollama finds it in the GGUF file, as jinja"


def modelfile(file: str, config: ModelConfig, provenance: dict, tokenizer: Tokenizer) -> tuple[str, str]:
    """The text of a Modelfile, which `ollama create NAME -f Modelfile` reads, and a sentence on chats.

    Args:
        file: the GGUF file, as seen from the Modelfile.
    """
    usual = SamplingConfig()
    parameters = {
        "num_ctx": config.block_size,
        "temperature": usual.temperature,
        "top_k": usual.top_k,
        "top_p": usual.top_p,
        "min_p": usual.min_p,
        "repeat_penalty": usual.repetition_penalty,
    }
    ends = [tokenizer.names.get(i, "") for i in tokenizer.ends]
    stops = [name for name in ends if name and name.isprintable() and '"' not in name]  # what a Modelfile can quote
    template, note = RAW, "no chat template: the model goes on from what is typed"
    if jinja := provenance.get("chat_template", ""):
        template = go_template(jinja, bool(provenance.get("documents")), tokenizer)
        note = "the chat template, in Ollama's language" if template else UNSAID
    lines = [f"FROM ./{file}", f"REQUIRES {SINCE}", "# as generate.py samples"]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [*(f'PARAMETER stop "{name}"' for name in stops), f"# {note}"]
    return "\n".join([*lines, *([f'TEMPLATE """{template}"""'] if template else []), ""]), note


def go_template(jinja: str, begins: bool, tokenizer: Tokenizer) -> str:
    """A chat template in Go's language, or nothing where that would render some conversation otherwise.

    It can say templates in which each message stands between two texts that depend on who speaks alone. Those texts are
    found by filling in one conversation; others then tell whether there is no more to the template.

    Args:
        begins: whether an end-of-text token comes before any prompt, so that the template must not write that one.
    """

    def rendered(talk: Talk) -> str:
        text = "".join(fill(jinja, [{"role": role, "content": content} for role, content in talk], tokenizer))
        return text.removeprefix(tokenizer.names[tokenizer.eot]) if begins else text

    try:
        around = surroundings(rendered([("user", MARKS[0])]), rendered(list(zip(SPEAKERS, MARKS, strict=True))))
        if around is None or any(rendered(talk) != composed(around, talk) for talk in TALKS):
            return ""
    except UserError:  # it refuses one of these conversations, for example what the system says
        return ""
    start, roles, end = around
    spoken = sum(roles.values(), ())
    if re.search(r'\{\{|"""', "".join([start, *spoken, end])):
        return ""
    if any(text.endswith("{") for text in (start, *spoken)):  # `{{` follows, and Go takes the first two of three braces for it
        return ""
    if start.startswith('"') or end.endswith('"'):  # a Modelfile has no way to quote these
        return ""
    turns = [f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}' for role, (before, after) in roles.items()]
    return start + "{{ range .Messages }}{{ " + "{{ else ".join(turns) + "{{ end }}{{ end }}" + end


Talk = list[tuple[str, str]]  # role and content
Around = tuple[str, dict[str, tuple[str, str]], str]  # the start; before and after each role's words; the end
SPEAKERS, MARKS = ("system", "user", "assistant", "user"), "\ue000\ue001\ue002\ue003"
TALKS: list[Talk] = [
    [("user", "Hello?")],
    [("system", "Be kind."), ("user", "Hello?")],
    [("user", "Hello?"), ("assistant", "Hi."), ("user", "Who are you?")],
    [("system", " \n a "), ("user", "\tb\n\n"), ("assistant", "\nc </think> d "), ("user", " <e> {{ 7 }} ")],
    [("system", "a"), *[("user", "b"), ("assistant", "c")] * 3, ("user", "d")],
]


def composed(around: Around, talk: Talk) -> str:
    """A conversation as the texts around its messages make it."""
    start, roles, end = around
    return start + "".join(roles[role][0] + content + roles[role][1] for role, content in talk) + end


def surroundings(short: str, long: str) -> Around | None:
    """The texts around the messages of two conversations: one word of a user, and the four of `SPEAKERS`.

    One text between two messages can be cut anywhere, as long as every other place agrees: what is common to all that
    comes before a user's words is the user's, and so is what is common to all that follows them.
    """
    first, between = re.split(f"[{MARKS}]", short), re.split(f"[{MARKS}]", long)
    if len(first) != 2 or len(between) != 5:
        return None
    top, after_system, after_user, after_answer, last = between
    before = common_start([text[::-1] for text in (first[0], after_system, after_answer)])[::-1]
    after = common_start([after_user, last])
    start = first[0].removesuffix(before)
    roles = {
        "system": (top.removeprefix(start), after_system.removesuffix(before)),
        "user": (before, after),
        "assistant": (after_user.removeprefix(after), after_answer.removesuffix(before)),
    }
    return start, roles, last.removeprefix(after)


def common_start(texts: list[str]) -> str:
    """The longest text that all of them begin with."""
    differ = (n for n, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
    return texts[0][: next(differ, min(map(len, texts)))]
