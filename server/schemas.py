"""What our own endpoints are sent, and what they answer. Strict: a wrong type or an unknown field is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from config import SamplingConfig
from inference.request import MOST_LOGPROBS, Settings
from server.sessions import SESSION_ID

MOST_ENTRIES = 1000  # of a JSON object: more of them are counted, not looked at
FIELDS = {item.name: item for item in dataclasses.fields(SamplingConfig)}


def whole(text: str) -> str:
    """A text that UTF-8 can hold: JSON can spell half a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("surrogate", "Holds half a surrogate pair, which is no character") from None
    return text


def listed(kind: Any) -> Any:
    """A list that is refused at its first mistake. Told of each one, a long list that is wrong throughout holds up the server."""
    return Annotated[list[kind], Field(fail_fast=True)]


def few(given: Any) -> Any:
    """Refuses an object of very many entries before any of them is looked at."""
    if isinstance(given, dict) and len(given) > MOST_ENTRIES:
        limits = {"max_length": MOST_ENTRIES, "actual_length": len(given)}
        raise PydanticCustomError("too_long", "Should have {max_length} items at most, not {actual_length}", limits)
    return given


Text = Annotated[str, AfterValidator(whole)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenIds = Annotated[listed(TokenId), Field(max_length=10**5)]
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Biases = Annotated[dict[BiasKey, Bias], BeforeValidator(few)]


class Strict(BaseModel):
    """No conversions, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def has_few_fields(cls, sent: Any) -> Any:
        return few(sent)


def sampling(name: str, **limits: float) -> Any:
    """A field of SamplingConfig, with its default and its words."""
    return Field(FIELDS[name].default, description=FIELDS[name].metadata["help"], **limits)


ModelName = Annotated[str | None, Field(description="the model's id; null is the one that answers now")]


class ImageUrl(Strict):
    """A picture."""

    url: str = Field(description="the file itself, as data:image/png;base64,...")
    detail: str | None = Field(None, description="taken and ignored: the model sees every picture in one size")


class InputAudio(Strict):
    """A sound."""

    data: str = Field(description="the file, in base64")
    format: Literal["wav", "mp3", "flac", "ogg"]


class ContentPart(Strict):
    """A part of a message, in the field that its type names."""

    type: Literal["text", "image_url", "input_audio"]
    text: Text | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None

    @model_validator(mode="after")
    def holds_what_it_says(self) -> ContentPart:
        given = {name for name in ("text", "image_url", "input_audio") if getattr(self, name) is not None}
        if given != {self.type}:
            raise PydanticCustomError("part", "Holds the field that its type names, and neither of the others")
        return self


def content_of(part: type[ContentPart]) -> Any:
    """The type of a message's content, a text or parts. It looks which of both was meant, so that a mistake is told once."""
    text, parts = Annotated[Text, Tag("[text]")], Annotated[listed(part), Tag("[parts]")]
    return Annotated[text | parts, Discriminator(lambda sent: "[parts]" if isinstance(sent, list) else "[text]")]


Content = content_of(ContentPart)


def parts_of(content: str | list[ContentPart]) -> list[str | ContentPart]:
    """What a message holds: its texts as such, its pictures and sounds as they were sent."""
    if isinstance(content, str):
        return [content]
    return [part.text if part.type == "text" else part for part in content]


class Said(Strict):
    """What one side of a conversation said, and showed."""

    role: Literal["system", "user", "assistant"]
    content: Content

    def parts(self) -> list[str | ContentPart]:
        return parts_of(self.content)


class GenerateRequest(Strict):
    """A prompt or a conversation, and how to go on from it."""

    prompt: Text | None = Field(None, description="the text to go on from; may be empty")
    messages: Annotated[listed(Said), Field(min_length=1, max_length=10**4)] | None = Field(
        None, description="a conversation to answer, in place of a prompt"
    )
    prefix_ids: TokenIds = Field([], description="token ids that the text begins with")
    max_new_tokens: int = sampling("max_new_tokens", ge=0, le=10**9)
    temperature: float = sampling("temperature", ge=0, le=100)
    top_k: int = sampling("top_k", ge=0, le=10**9)
    top_p: float = sampling("top_p", ge=0, le=1)
    min_p: float = sampling("min_p", ge=0, le=1)
    repetition_penalty: float = sampling("repetition_penalty", ge=0.01, le=100)
    presence_penalty: float = sampling("presence_penalty", ge=-2, le=2)
    frequency_penalty: float = sampling("frequency_penalty", ge=-2, le=2)
    logit_bias: Biases = Field({}, description="added to the logits of these token ids")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = Field([], description="texts to end before")
    stop_ids: list[TokenId] = Field([], max_length=64, description="token ids to end before")
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed gives the same text; null draws one")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, description="likeliest tokens to report at each place")
    session_id: str | None = Field(
        None, pattern=SESSION_ID, description="go on after this session's text, and add to it"
    )
    stream: bool = Field(False, description="send the text as it is written")
    ignore_eos: bool = Field(False, description="go on where the model ends its text")
    deterministic: bool = Field(False, description="the same bits whatever else is running; slower under load")
    model: ModelName = None

    def settings(self) -> Settings:
        """As the engine wants it."""
        same = {name: getattr(self, name) for name in (*FIELDS, "seed", "logprobs", "ignore_eos", "deterministic")}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        bias = {int(token): value for token, value in self.logit_bias.items()}
        ids = {"stop_ids": tuple(self.stop_ids), "prefix_ids": tuple(self.prefix_ids)}
        return Settings(**{**same, **ids, "stop": stop, "logit_bias": bias})


class ScoreRequest(Strict):
    """A text to be judged."""

    text: Text = Field(min_length=1)
    logprobs: int | None = Field(
        None, ge=0, le=MOST_LOGPROBS, description="report each token, and so many likeliest ones at its place"
    )
    model: ModelName = None


class Cached(BaseModel):
    """Of the prompt's tokens, those that were in the cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Cached


class Produced(BaseModel):
    """The checkpoint that answered."""

    id: str
    run: str | None
    step: int | None
    val_loss: float | None


class Likely(BaseModel):
    """A token, and its log-probability in nats."""

    id: int
    text: str
    logprob: float
    bytes: list[int] | None = Field(None, description="only of a token that is no whole character")


class Written(Likely):
    """A token of the text, with the likeliest ones at its place."""

    offset: int = Field(description="where it begins in the text, in characters")
    top: list[Likely]


class Generated(BaseModel):
    """What was written, and by what. `finish_reason` is `stop`, `length` or `deadline`."""

    text: str
    finish_reason: str
    stop: str | int | None = Field(description="the stop text or id that ended it")
    usage: Usage
    session_id: str | None
    history_tokens: int = Field(description="tokens of the session's text that the model saw")
    dropped_messages: int | None = Field(
        None, description="with messages only: how many of the oldest, the session's too, the context had no room for"
    )
    seed: int
    model: Produced
    tokens: list[Written] | None = Field(None, description="with logprobs only")


class Scored(BaseModel):
    """How likely a text is. Null where the number is too large to be one."""

    log_likelihood: float | None = Field(description="of the whole text, in nats")
    perplexity: float | None = Field(description="e to the loss per token")
    bits_per_byte: float | None
    tokens: int
    bytes: int
    scored: list[Written] | None = Field(None, description="the tokens, with logprobs only")
    model: Produced
