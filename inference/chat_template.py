"""A checkpoint's own chat template: the jinja2 program that makes a text of a conversation."""

from __future__ import annotations

import functools
import re
import secrets

from jinja2 import Template, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from config import UserError
from tokenizer import Tokenizer


def fill(template: str, messages: list[dict[str, str]], tokenizer: Tokenizer) -> list[str]:
    """The template filled in with messages (`role` and `content`), as [text, name of a token, text, ..., text].

    Only the template can write the tokens that no text is cut into: the same characters in a message are ordinary text.

    Raises:
        UserError: when it is no template, or refuses these messages.
    """
    try:
        ready, marks = compiled(template, tuple(tokenizer.controls), tuple(tokenizer.visible))
        variables = {variable: marks[name] for variable, name in tokenizer.template_tokens.items()}
        text = ready.render(messages=messages, add_generation_prompt=True, **variables)
    except Exception as error:  # a template is a program: anything may go wrong in it
        raise UserError(f"the checkpoint's chat template does not take these messages: {error}") from error
    name_of = {mark: name for name, mark in marks.items()}
    return [name_of.get(piece, piece) for piece in re.split(f"({'|'.join(name_of)})", text)]


@functools.lru_cache(maxsize=8)
def compiled(source: str, controls: tuple[str, ...], visible: tuple[str, ...]) -> tuple[Template, dict[str, str]]:
    """A template ready to fill in, and by name the marks that stand for tokens: none that a message can contain.

    It runs in a sandbox, since a checkpoint may come from a stranger.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    marks = {name: secrets.token_hex(16) for name in (*controls, *visible)}
    program = environment.parse(marked(source, {name: marks[name] for name in controls}))
    for output in program.find_all(nodes.Output):
        for node in output.nodes:
            mark_written(node, {name: marks[name] for name in visible})
    return environment.from_string(program), marks


def marked(text: str, marks: dict[str, str]) -> str:
    """A text with marks in the places of names, of two that begin alike the longer one."""
    names = sorted(marks, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, names)), lambda found: marks[found[0]], text) if names else text


def mark_written(node: nodes.Node, marks: dict[str, str]) -> None:
    """Puts marks into the texts that an expression joins to what it writes, and not into those that it looks for in a message,
    as in `content.split('</think>')`."""
    if isinstance(node, nodes.TemplateData):
        node.data = marked(node.data, marks)
    elif isinstance(node, nodes.Const) and isinstance(node.value, str):
        node.value = marked(node.value, marks)
    elif isinstance(node, nodes.Add | nodes.Concat | nodes.CondExpr):
        for part in node.iter_child_nodes(exclude=("test",)):
            mark_written(part, marks)


def refuse(reason: str) -> None:
    """What templates call for messages that they cannot render."""
    raise TemplateError(reason)
