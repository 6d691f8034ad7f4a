"""What OpenAI's clients send, checked.

Fields that cannot change the text (`user`, `store`, `metadata`, whatever comes next year) are taken and ignored; null is the
default. Those that this server would have to disobey are refused by name, for an ignored instruction is worse than an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from config import take
from inference.request import MOST_LOGPROBS, Settings
from server.errors import ApiError
from server.schemas import Biases, ContentPart, Text, TokenId, content_of, listed, parts_of

MOST_CHOICES = 16  # texts for one prompt
MOST_TEXTS = 64  # texts for one HTTP request: prompts times choices
NEUTRAL: dict[str, tuple] = {  # fields that would change the answer, and the values with which they do not
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "suffix": ("",), "best_of": (1,),
    "web_search_options": (), "moderation": (), "reasoning_effort": ("none",), "verbosity": ("medium",),
}  # fmt: skip


Stop = Annotated[Text, Field(max_length=256)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Sent(BaseModel):
    """Strict types, no NaN, and room for fields that we do not know."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    def unknown(self, name: str) -> Any:
        """The value of a field that we do not know, or None."""
        return (self.model_extra or {}).get(name)


class StreamOptions(Sent):
    """How a stream ends."""

    include_usage: bool | None = None


class Options(Sent):
    """What completions and chats have in common; from `top_k` on, what OpenAI's API does not have."""

    model: str
    max_tokens: int | None = Field(None, ge=0, description="tokens to write at most")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, description="how many texts to write for a prompt")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=0, le=10**9)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    ignore_eos: bool | None = None
    deterministic: bool | None = None

    @property
    def choices(self) -> int:
        """How many texts are wanted for a prompt.

        Raises:
            ApiError: 400, beyond the limit.
        """
        if (self.n or 1) > MOST_CHOICES:
            raise ApiError(400, f"n is {self.n}; this server writes {MOST_CHOICES} at most.", param="n")
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def settings(self, vocab_size: int, more_stops: tuple[str, ...] = (), **changes: Any) -> Settings:
        """How the engine is to sample, with OpenAI's defaults.

        Raises:
            ApiError: 400 for a field that this server would have to ignore, or a bias of a token that there is not.
        """
        for name, harmless in NEUTRAL.items():
            if (value := self.unknown(name)) is not None and value not in harmless:
                raise ApiError(400, f"this server does not support {name}.", param=name, code="unsupported_parameter")
        given = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given["stop"] = [*stops, *more_stops]
        given["logit_bias"] = bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        if beyond := [key for key in bias if key >= vocab_size]:
            raise ApiError(400, f"there is no token {beyond[0]}: the model knows {vocab_size}.", param="logit_bias")
        return take(Settings, {"temperature": 1.0, **given, **changes})


class Completion(Options):
    """The body of `POST /v1/completions`."""

    prompt: Text | listed(Text) | listed(TokenId) | listed(listed(TokenId)) | None = None
    echo: bool | None = Field(None, description="begin the text with the prompt")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


class Part(ContentPart, extra="allow"):
    """A part of a message, in the field that its type names."""


Content = content_of(Part)


class ChatMessage(Sent):
    """What one side said, and showed."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None

    def parts(self) -> list[str | ContentPart]:
        """What was said and shown.

        Raises:
            ApiError: 400 for calls of tools, and for nothing at all.
        """
        if self.unknown("tool_calls"):
            raise ApiError(400, "this model calls no tools.", param="messages")
        if self.content is None and self.role != "assistant":
            raise ApiError(400, f"a message of the {self.role} has no content.", param="messages")
        return parts_of(self.content or "")


class ChatCompletion(Options):
    """The body of `POST /v1/chat/completions`."""

    messages: listed(ChatMessage) = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="tokens to write at most")
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @property
    def reported(self) -> int | None:
        """How many likeliest tokens are reported with each one; None reports nothing.

        Raises:
            ApiError: 400, when they are wanted without log-probabilities.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None
