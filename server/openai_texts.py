"""A text as OpenAI's clients read it: a choice of a completion or of a chat, whole or piece by piece.

A whole answer is spelt as a single piece would be; so a stream and an answer cannot differ but in their wrapping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.dialogue import Prompt, Trim
from inference.engine import Engine
from inference.request import Piece, Settings, Token
from server.answer import LEAST_LOGPROB, Answer
from server.spelling import Places
from tokenizer import EOT, Tokenizer


class Text:
    """One text that was asked for, and how the client is told of it.

    Args:
        index: its place among the choices.
        ids: what the model goes on from.
        media: the pictures and sounds among them.
    """

    whole: str  # the `object` of an answer, and of a chunk of one
    part: str
    prefix: str  # of an answer's id

    def __init__(
        self, engine: Engine, index: int, ids: list[int], settings: Settings, media: Sequence[Any] = ()
    ):
        self.tokenizer, self.index, self.ids, self.settings, self.media = engine.tokenizer, index, ids, settings, media

    def choice(self, piece: Piece | Answer, streamed: bool = False) -> dict[str, Any]:
        """What a piece says, as an element of `choices`."""
        raise NotImplementedError

    def told(self, piece: Piece) -> bool:
        """Whether a piece is worth a chunk: it has text, an end, or log-probabilities that were asked for."""
        wanted = self.settings.logprobs is not None and (piece.tokens or piece.prompt)
        return bool(piece.text or piece.finish_reason or wanted)


class CompletionText(Text):
    """A text of `/v1/completions`.

    Args:
        echo: the prompt's text, if the answer is to begin with it.
        unsaid: the prompt's first id is no part of that text: it is the end of text that documents begin with.
    """

    whole = part = "text_completion"
    prefix = "cmpl"

    def __init__(
        self, engine: Engine, index: int, ids: list[int], settings: Settings, echo: str | None, unsaid: bool = False
    ):
        super().__init__(engine, index, ids, settings)
        self.echo = echo or ""
        first = [] if echo is None or unsaid else ids[:1]
        self.unscored = tuple(map(Token, first))  # nothing comes before it, so it has no probability
        self.places = Places(engine.tokenizer)

    def choice(self, piece: Piece | Answer, streamed: bool = False) -> dict[str, Any]:
        text, self.echo = self.echo + piece.text, ""
        logprobs = None
        if self.settings.logprobs is not None:
            logprobs, self.unscored = self.logprobs([*self.unscored, *piece.prompt, *piece.tokens]), ()
        reason = finish_reason(piece)
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, tokens: list[Token]) -> dict[str, list]:
        """Tokens, where each begins in the text, and how likely it and its rivals were."""
        return {
            "tokens": [token_text(self.tokenizer, token.id) for token in tokens],
            "token_logprobs": [None if token.logprob is None else logprob(token.logprob) for token in tokens],
            "top_logprobs": [None if token.logprob is None else self.rivals(token) for token in tokens],
            "text_offset": [self.places.push(token.id) for token in tokens],
        }

    def rivals(self, token: Token) -> dict[str, float]:
        """The likeliest tokens of a place, and the one that was taken even where it is not among them."""
        return {token_text(self.tokenizer, i): logprob(value) for i, value in (*token.top, (token.id, token.logprob))}


class ChatText(Text):
    """A text of `/v1/chat/completions`. That of a transcript begins with a space that is no part of what is said."""

    whole, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, engine: Engine, index: int, prompt: Prompt, settings: Settings):
        super().__init__(engine, index, prompt.ids, settings, prompt.media)
        self.trim, self.fresh = Trim(prompt.plain), True

    def choice(self, piece: Piece | Answer, streamed: bool = False) -> dict[str, Any]:
        text = self.trim(piece.text)
        said = {"role": "assistant", "content": text, "refusal": None}
        if streamed and not self.fresh:
            said = {"content": text}
        self.fresh = False
        logprobs = None
        if self.settings.logprobs is not None:
            logprobs = {"content": [self.scored(token) for token in piece.tokens], "refusal": None}
        spelt = {"delta" if streamed else "message": said, "logprobs": logprobs, "finish_reason": finish_reason(piece)}
        return {"index": self.index, **spelt}

    def scored(self, token: Token) -> dict[str, Any]:
        """A token with its log-probability and those of its likeliest rivals."""
        top = [self.spelt(i, value) for i, value in token.top]
        return {**self.spelt(token.id, token.logprob), "top_logprobs": top}

    def spelt(self, i: int, value: float) -> dict[str, Any]:
        raw = self.tokenizer.decode_bytes([i])
        return {"token": token_text(self.tokenizer, i), "logprob": logprob(value), "bytes": list(raw)}


def finish_reason(piece: Piece | Answer) -> str | None:
    """OpenAI's word for how a text ended; one that ran out of time was cut short like one that ran out of tokens."""
    return {"": None, "stop": "stop"}.get(piece.finish_reason, "length")


def token_text(tokenizer: Tokenizer, i: int) -> str:
    """A token as text; bytes that are no character alone are spelt out, as OpenAI does: `bytes:\\xe2\\x82`."""
    raw = tokenizer.decode_bytes([i])
    if i == tokenizer.eot:
        return EOT
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def logprob(value: float) -> float:
    """A log-probability that JSON can hold."""
    return max(value, LEAST_LOGPROB)
