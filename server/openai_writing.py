"""From texts that were asked for to the answer: all of them at once, or a stream of what comes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from inference.engine import Engine
from inference.request import Piece
from server import answer
from server.auth import Caller
from server.bridge import Generation
from server.errors import ApiError
from server.openai_schemas import Options
from server.openai_texts import Text
from server.stream import EventStream

MOST_REPORTED = 2**17  # log-probabilities in the texts of one request


@dataclass
class Envelope:
    """What stands around the choices, the same in every chunk of a stream.

    Args:
        text: one of the texts, which knows the kind of answer.
        more: further fields of the answer, or of the last chunks of a stream.
    """

    engine: Engine
    text: Text
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.more = {**self.more, "provenance": answer.produced(self.engine)}
        name = self.engine.model_id
        self.id, self.created = f"{self.text.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.head = {"id": self.id, "created": self.created, "model": name, "system_fingerprint": name}

    def answer(self, choices: list[dict], usage: dict) -> dict[str, Any]:
        return {**self.head, "object": self.text.whole, "choices": choices, "usage": usage, **self.more}

    def chunk(self, choices: list[dict], last: bool, **usage: dict | None) -> dict[str, Any]:
        more = self.more if last else {}
        return {**self.head, "object": self.text.part, "choices": choices, **usage, **more}


async def respond(
    request: Request, body: Options, who: Caller, engine: Engine, texts: list[Text], **more: Any
) -> Response:
    """Writes the texts side by side, and answers with all of them or with a stream.

    Raises:
        ApiError: when the queue is full or the model fails, before anything was answered.
    """
    check_room(engine, [len(text.ids) for text in texts])
    check_report(texts)
    envelope, prompts = Envelope(engine, texts[0], more), len(texts) // body.choices
    if body.stream:
        return EventStream(events(request, envelope, texts, who, prompts if body.include_usage else 0))
    async with writing(request, engine, texts, who) as running:
        answers = await asyncio.gather(*(answer.whole(request, each) for each in running))
    choices = await asyncio.to_thread(lambda: [text.choice(each) for text, each in zip(texts, answers, strict=True)])
    return JSONResponse(envelope.answer(choices, total((each.usage for each in answers), prompts)))


def check_room(engine: Engine, lengths: list[int]) -> None:
    """Refuses prompts of these lengths where an idle server would have no room for them either: they would be told to come again for ever.

    Raises:
        ApiError: 400.
    """
    in_line = lengths[engine.stats().slots :]
    if len(in_line) > 1 and sum(in_line) > engine.scheduler.max_waiting_tokens:
        message = f"{len(lengths)} texts with prompts of {sum(lengths)} tokens are more than this server takes at once: send them one by one."
        raise ApiError(400, message, param="prompt")


@contextmanager
def openai_statuses() -> Iterator[None]:
    """OpenAI says 400 where the rest of this server says 422, and its clients raise their errors by the status."""
    try:
        yield
    except ApiError as error:
        error.status = 400 if error.status == 422 else error.status
        raise


def check_report(texts: list[Text]) -> None:
    """Refuses more log-probabilities than may be put together while others wait.

    Raises:
        ApiError: 400.
    """
    told = [(each.settings, len(each.ids)) for each in texts if each.settings.logprobs is not None]
    places = sum(settings.max_new_tokens + settings.prompt_logprobs * prompt for settings, prompt in told)
    if len(told) > 1 and places * (1 + told[0][0].logprobs) > MOST_REPORTED:
        message = f"{len(texts)} texts with {places} tokens and so many log-probabilities at each are more than this server reports at once"
        raise ApiError(400, f"{message}: ask for fewer texts, or lower max_tokens.", param="logprobs")


@asynccontextmanager
async def writing(request: Request, engine: Engine, texts: list[Text], who: Caller) -> AsyncIterator[list[Generation]]:
    """All the texts on their way; if one is refused, none is written."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        with openai_statuses():  # a stream is refused when its answer begins, out of its route's reach
            running = [await enter(answer.generation(request, engine, text.ids, text.settings, who, text.media)) for text in texts]
        yield running


async def events(
    request: Request, envelope: Envelope, texts: list[Text], who: Caller, prompts: int
) -> AsyncGenerator[dict[str, Any], None]:
    """The texts piece by piece.

    Args:
        prompts: how many there were, for the usage at the end; 0 leaves it out.
    """
    usage = {"usage": None} if prompts else {}
    async with writing(request, envelope.engine, texts, who) as running:
        streams = [answer.pieces(request, each) for each in running]
        async with aclosing(side_by_side(streams)) as pieces:
            async for index, piece in pieces:
                if texts[index].told(piece):
                    choice = texts[index].choice(piece, streamed=True)
                    yield envelope.chunk([choice], bool(piece.finish_reason), **usage)
        if prompts:
            used = total((answer.usage(each.request) for each in running), prompts)
            yield envelope.chunk([], True, usage=used)


async def side_by_side(streams: list[AsyncIterator[Piece]]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of several streams as they come, each with the number of its stream."""
    came: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

    async def listen(index: int, pieces: AsyncIterator[Piece]) -> None:
        try:
            async for piece in pieces:
                came.put_nowait((index, piece))
            came.put_nowait((index, None))
        except Exception as error:
            came.put_nowait((index, error))

    listeners = [asyncio.create_task(listen(*each)) for each in enumerate(streams)]
    left = len(streams)
    try:
        while left:
            index, got = await came.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                left -= 1
            else:
                yield index, got
    finally:
        for listener in listeners:
            listener.cancel()


def total(usages: Iterable[dict[str, Any]], prompts: int) -> dict[str, Any]:
    """Several usages as one. Choices of one prompt come one after another, and the prompt counts once.

    Args:
        prompts: how many there were.
    """
    usages = list(usages)
    first = usages[:: len(usages) // prompts]
    read = sum(usage["prompt_tokens"] for usage in first)
    written = sum(usage["completion_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in first)
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written, **details}
