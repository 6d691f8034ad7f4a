"""Pictures and sounds in a conversation: from base64, as OpenAI's clients send files, to what the model takes in.

Nothing is fetched from elsewhere. What comes may be broken, hostile or merely huge: `multimodal/decode.py` looks before it unpacks.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from inference.dialogue import Message
from inference.engine import Engine
from multimodal.decode import Unreadable, read_picture, read_sound
from server.errors import ApiError
from server.openai_schemas import ChatMessage
from server.schemas import ContentPart, Said

MOST = 32  # pictures and sounds of one request
BASE64 = ";base64"
THREAD = ThreadPoolExecutor(1, "media")  # one for all: a single picture may take a gigabyte while it is unpacked


@dataclass(frozen=True)
class Kind:
    """What a type of part holds: the modality that a model has for it, the word for one, and what reads its file."""

    modality: str
    word: str
    read: Callable[[bytes, Any], Any]


KINDS = {"image_url": Kind("image", "picture", read_picture), "input_audio": Kind("audio", "sound", read_sound)}


def taken(engine: Engine) -> dict[str, Any]:
    """What a model takes in, for the list of models."""
    config = engine.model.config
    seconds = config.audio_seconds if "audio" in modalities(engine) else None
    return {"input_modalities": ["text", *modalities(engine)], "audio_seconds": seconds}


def modalities(engine: Engine) -> tuple[str, ...]:
    """What a model takes in beside text: `image`, `audio`, both or neither."""
    return getattr(engine.model.config, "kinds", ())


async def messages(engine: Engine, said: Sequence[Said | ChatMessage]) -> list[Message]:
    """What was said and shown as the model takes it, decoded off the event loop.

    Raises:
        ApiError: 422 for pictures or sounds that the model does not take, or that cannot be read, or that are too many.
    """
    parts = [each.parts() for each in said]
    shown = [part for each in parts for part in each if isinstance(part, ContentPart)]
    if not shown:
        return [Message(each.role, "".join(texts)) for each, texts in zip(said, parts, strict=True)]
    check(engine, shown)
    work = asyncio.get_running_loop().run_in_executor(THREAD, decoded, parts, engine.model.config)
    return [Message(each.role, content) for each, content in zip(said, await work, strict=True)]


def check(engine: Engine, shown: list[ContentPart]) -> None:
    """Refuses what this model does not take.

    Raises:
        ApiError: 422.
    """
    if len(shown) > MOST:
        message = f"there are {len(shown)} pictures and sounds; this server reads {MOST} in a request: leave out the oldest."
        raise ApiError(422, message, param="messages", code="too_many_media")
    for kind in (KINDS[part.type] for part in shown):
        if kind.modality not in modalities(engine):
            takes = ["text", *(f"{each.word}s" for each in KINDS.values() if each.modality in modalities(engine))]
            message = f"this model takes no {kind.word}s, only {' and '.join(takes)}: leave them out, or ask another model."
            raise ApiError(422, message, param="messages", code="unsupported_modality")


def decoded(messages: list[list[str | ContentPart]], config: Any) -> list[tuple[Any, ...]]:
    """The contents of messages, their files read.

    Raises:
        ApiError: 422, with the reason, for a picture or a sound that cannot be read.
    """
    count: Counter[str] = Counter()  # they have no names: `picture 2` is the second one of the request

    def read(part: str | ContentPart) -> Any:
        if isinstance(part, str):
            return part
        kind = KINDS[part.type]
        count[part.type] += 1
        try:
            return kind.read(file_of(part), config)
        except Unreadable as error:
            message = f"{kind.word} {count[part.type]} {error}."
            raise ApiError(422, message, param="messages", code="unreadable_media") from None

    return [tuple(map(read, parts)) for parts in messages]


def file_of(part: ContentPart) -> bytes:
    """The file that a part holds.

    Raises:
        Unreadable: for an address, and for what is no base64.
    """
    data = part.input_audio.data if part.input_audio else inline(part.image_url.url)
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise Unreadable("is no base64: base64 -w0 FILE makes some", "no base64") from None


def inline(url: str) -> str:
    """The base64 of a data URI.

    Raises:
        Unreadable: for any other address.
    """
    head, _, data = url.partition(",")
    if not head.lower().startswith("data:"):
        raise Unreadable("is an address, and this server fetches nothing: send the file itself, as data:image/png;base64,...", "an address")
    if not head.lower().endswith(BASE64):
        raise Unreadable(f"is a data URI without {BASE64} before its comma: send the file in base64", "no base64")
    return data


def in_words(parts: list[str | ContentPart]) -> str:
    """A message as text: `[picture] what is this?`"""
    words = [part if isinstance(part, str) else f"[{KINDS[part.type].word}]" for part in parts]
    return ("" if words == parts else " ").join(words)
