"""What the engine is asked, and what it answers: plain values, no tensors."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from config import SamplingConfig, UserError

MOST_LOGPROBS = 20


class Busy(UserError):
    """The queue is full; `retry_after` is when it may have room, in seconds."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(UserError):
    """There is no model that could answer: none was loaded, or the server is draining."""


@dataclass
class Settings(SamplingConfig):
    """How one request is sampled: what the command line has as flags, and what only a program asks for.

    Attributes:
        seed: None draws one; the request says which.
        stop_ids: token ids that end the text; they are no part of it.
        prefix_ids: token ids that the text begins with. They are read like a prompt and not handed out again; what follows is
            drawn and penalised as if they had been written.
        logit_bias: added to the logits of these ids.
        logprobs: how many likeliest tokens to report with each one written, 0 to 20; None reports nothing.
        prompt_logprobs: also report the log-probability of every token of the prompt but the first.
        ignore_eos: go on where the model ends its text.
        deterministic: the same bits whatever else is running, at some cost in speed: its tokens are written alone.
    """

    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_eos: bool = False
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One token, written or of the prompt, with its log-probability in nats where that was asked for.

    `top` holds the likeliest tokens at its place as (id, log-probability), likeliest first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain in one step: text without broken characters and without any of a stop string, and its tokens.

    The last one has a `finish_reason`: `stop` (the model ended, or a stop string or id came), `length`, `cancelled`,
    `deadline`, or `error` (then `error` says what happened). `stop` is the stop string or id that ended it.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] = ()  # with prompt_logprobs, the prompt's tokens from the second on
    finish_reason: str = ""
    stop: str | int | None = None
    error: str = ""
    at: float = 0.0  # time.monotonic() of the step


Sink = Callable[[Piece], None]
_numbers = itertools.count(1)


class Request:
    """One text on its way through the engine. The engine's thread changes it; others may read.

    Attributes:
        ids: the prompt and the settings' prefix, then what was written.
        prompt_length: how many of them were given.
        begun: how many of those are the prefix.
        media: the pictures and sounds of the prompt, whose `places` are the negative ids; `vectors` are what the model made of them.
        scope: whose it is: kept keys and values are reused within a scope only.
        deadline: when it is given up, as time.monotonic(); infinite by default.
        submitted, admitted, first_token, finished: instants of time.monotonic(), 0 until they come.
        cached: tokens of the prompt whose keys and values were there already.
    """

    def __init__(
        self,
        ids: list[int],
        settings: Settings,
        sink: Sink,
        scope: str = "",
        deadline: float = float("inf"),
        media: Sequence[Any] = (),
    ):
        self.number = next(_numbers)
        self.ids, self.begun = [*ids, *settings.prefix_ids], len(settings.prefix_ids)
        self.prompt_length = len(self.ids)
        self.media, self.vectors = media, None
        self.places = sum(i < 0 for i in ids)
        self.settings, self.sink, self.scope, self.deadline = settings, sink, scope, deadline
        self.seed = secrets.randbits(48) if settings.seed is None else settings.seed
        self.submitted = time.monotonic()
        self.admitted = self.first_token = self.finished = 0.0
        self.cached = 0
        self.cancelled = False
        self.finish_reason = ""

    def over(self, now: float) -> str:
        """Why it must end unfinished: `cancelled`, `deadline`, or "" while it may go on."""
        return "cancelled" if self.cancelled else "deadline" if now > self.deadline else ""

    @property
    def written(self) -> int:
        """Tokens written so far."""
        return len(self.ids) - self.prompt_length
