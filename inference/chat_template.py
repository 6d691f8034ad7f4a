"""A checkpoint's own chat template: the jinja2 program that makes a text of a conversation."""

from __future__ import annotations

import functools
import secrets

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from config import UserError
from tokenizer import EOT


def fill(template: str, messages: list[dict[str, str]]) -> list[str]:
    """The template filled in with messages (`role` and `content`), cut where it writes an end-of-text token.

    Only the template can write that token: the same characters in a message are ordinary text.

    Raises:
        UserError: when it is no template, or refuses these messages.
    """
    try:
        ready, mark = compiled(template)
        text = ready.render(messages=messages, add_generation_prompt=True, bos_token=mark, eos_token=mark)
    except Exception as error:  # a template is a program: anything may go wrong in it
        raise UserError(f"the checkpoint's chat template does not take these messages: {error}") from error
    return text.split(mark)


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> tuple[Template, str]:
    """A template ready to fill in, and the mark that stands for an end-of-text token: one that no message can contain.

    It runs in a sandbox, since a checkpoint may come from a stranger.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    mark = secrets.token_hex(16)
    return environment.from_string(source.replace(EOT, mark)), mark


def refuse(reason: str) -> None:
    """What templates call for messages that they cannot render."""
    raise TemplateError(reason)
