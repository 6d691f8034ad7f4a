"""How the tokens of a text are told: id, text, log-probability, and where in the text each begins."""

from __future__ import annotations

from typing import Any

from inference.dialogue import Trim
from inference.request import Token
from server.answer import LEAST_LOGPROB
from tokenizer import StreamDecoder, Tokenizer


class Places:
    """Where each token of a text begins, in characters. A character of several tokens is there with the last of them.

    Args:
        trimmed: the text is told without the white space at its beginning.
    """

    def __init__(self, tokenizer: Tokenizer, trimmed: bool = False):
        self.decoder, self.trim, self.place = StreamDecoder(tokenizer), Trim(trimmed), 0

    def push(self, i: int) -> int:
        """The place of the next token."""
        before = self.place
        self.place += len(self.trim(self.decoder.push(i)))
        return before


def spelt(tokenizer: Tokenizer, token: Token, places: Places) -> dict[str, Any]:
    """A token that was written or read, with the likeliest ones at its place."""
    top = [likely(tokenizer, *pair) for pair in token.top]
    return {**likely(tokenizer, token.id, token.logprob), "offset": places.push(token.id), "top": top}


def likely(tokenizer: Tokenizer, i: int, logprob: float) -> dict[str, Any]:
    """A token and its log-probability. Bytes that are no whole characters show as U+FFFD, and are told as well."""
    raw = tokenizer.decode_bytes([i])
    text = raw.decode(errors="replace")
    partial = "\ufffd" in text and text.encode() != raw
    told = {"id": i, "text": text, "logprob": max(logprob, LEAST_LOGPROB)}
    return {**told, "bytes": list(raw)} if partial else told
