"""From an HTTP request to the engine and back: what the native and OpenAI's endpoints share.

    engine = answer.engine_of(http_request)
    ids = await answer.prompt_ids(engine, text)
    async with answer.generation(http_request, engine, ids, settings, caller) as generation:
        whole = await answer.whole(http_request, generation)        # or: async for piece in answer.pieces(http_request, generation)

Leaving the `async with` frees the slot, whatever happened; so does a client that goes away.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request

import inference.request
from config import UserError
from inference.dialogue import Chat, Message, Prompt
from inference.engine import Engine
from inference.request import Busy, NotReady, Piece, Settings, Token
from inference.sampling import start_ids
from server.auth import Caller
from server.bridge import Generation
from server.errors import ApiError
from server.limits import later
from server.logs import LEFT, trace_of
from server.stream import departure

DEFAULT = "default"  # the name of whatever model answers now
LEAST_LOGPROB = -9999.0  # OpenAI's for a token that is next to impossible; JSON has no infinity
NOT_READY = 2.0  # seconds after which a model may have loaded
log = logging.getLogger("server")


@dataclass(frozen=True)
class Answer:
    """A text that is done: what was written, and how it ended.

    Attributes:
        prompt: with `prompt_logprobs`, the prompt's tokens from the second on.
        stop: the stop string or id that ended it.
    """

    text: str
    tokens: tuple[Token, ...]
    prompt: tuple[Token, ...]
    finish_reason: str
    stop: str | int | None
    usage: dict[str, Any]


def engines_of(request: Request) -> list[Engine]:
    """The engine that answers now, and those before it that can still be asked by name.

    Raises:
        ApiError: 503 with the reason, while there is none.
    """
    try:
        return request.app.state.host.engines()
    except NotReady as error:
        raise not_ready(error) from None


def engine_of(request: Request, name: str | None = None) -> Engine:
    """The engine of this name; without one, or called `default`, the one that answers now. It is there until the answer is out.

    Raises:
        ApiError: 503 with the reason, while there is none; 404 for a model that is not here.
    """
    try:
        return request.state.leases.enter_context(request.app.state.host.lease(None if name == DEFAULT else name))
    except NotReady as error:
        raise not_ready(error) from None
    except KeyError:
        engines = engines_of(request)
    here = [f"{engines[0].model_id}, which is {DEFAULT} as well", *(engine.model_id for engine in engines[1:])]
    message = f"there is no such model; this server has {'; '.join(here)}."
    raise ApiError(404, message, param="model", code="model_not_found")


def not_ready(error: NotReady) -> ApiError:
    return ApiError(503, str(error), "server_error", code="not_ready", headers=later(NOT_READY))


async def prompt_ids(engine: Engine, text: str, documents_prefix: bool = True) -> list[int]:
    """The tokens of a prompt, cut off the event loop.

    Args:
        documents_prefix: begin with the end-of-text token where the corpus had documents, as its texts did.

    Raises:
        ApiError: 422, when they are more than the context.
    """
    documents = documents_prefix and bool(engine.provenance.get("documents"))
    ids = await asyncio.to_thread(start_ids, engine.tokenizer, text, documents)
    check_length(engine, len(ids))
    return ids


def chat_of(engine: Engine) -> Chat:
    """How the model is talked to."""
    told = engine.provenance
    return Chat(engine.tokenizer, told.get("chat_template") or "", bool(told.get("documents")), engine.places)


async def chat_prompt(engine: Engine, messages: list[Message], asked: int | None) -> Prompt:
    """A conversation as a prompt, made off the event loop.

    Args:
        asked: tokens that the answer may have; None is as many as fit.

    Raises:
        ApiError: 422, when the template refuses it, or the last message alone is longer than the context.
    """
    try:
        prompt = await asyncio.to_thread(chat_of(engine).prompt, messages, engine.block_size, asked)
    except UserError as error:
        raise ApiError(422, str(error), param="messages") from None
    if len(prompt.ids) > engine.block_size:
        message = f"the last message takes {len(prompt.ids)} tokens; the context of this model is {engine.block_size}."
        raise ApiError(422, message, param="messages", code="context_length_exceeded")
    return prompt


def check_length(engine: Engine, tokens: int) -> None:
    """Refuses a prompt that the context cannot hold.

    Raises:
        ApiError: 422.
    """
    if tokens > engine.block_size:
        message = (
            f"the prompt has {tokens} tokens, and the context of this model is {engine.block_size}: send less text."
        )
        raise ApiError(422, message, param="prompt", code="context_length_exceeded")


@asynccontextmanager
async def generation(
    http_request: Request, engine: Engine, ids: list[int], settings: Settings, caller: Caller, media: Sequence[Any] = ()
) -> AsyncIterator[Generation]:
    """A text that is being written. It is given up after LLM_REQUEST_TIMEOUT seconds.

    Args:
        media: the pictures and sounds whose places are in the ids.

    Raises:
        ApiError: 429 when the queue is full, 503 while the engine drains; both say when to come back. 422 for a prompt that the
            engine cannot go on from.
    """
    state = http_request.app.state
    running = Generation(engine, ids, settings, caller.name, state.config.request_timeout, media)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(running)
        except Busy as error:
            headers = later(error.retry_after)
            raise ApiError(429, str(error), "rate_limit_error", code="queue_full", headers=headers) from None
        except NotReady as error:
            raise not_ready(error) from None
        except UserError as error:
            raise ApiError(422, str(error), param="messages" if media else "prompt") from None
        try:
            yield running
        finally:
            state.metrics.observe(engine, running.request)
            note(http_request, running.request)


def note(http_request: Request, request: inference.request.Request) -> None:
    """Adds a request's tokens to the log line of the HTTP request."""
    trace = trace_of(http_request)
    trace.prompt_tokens += request.prompt_length
    trace.completion_tokens += request.written
    trace.finish_reason = request.finish_reason or "cancelled"


async def pieces(http_request: Request, running: Generation) -> AsyncIterator[Piece]:
    """The pieces as they come, timed for the metrics; what fails is an ApiError.

    Raises:
        ApiError: when the model failed, or the server gave the request up before it wrote anything.
    """
    request = running.request
    async for piece in http_request.app.state.metrics.timed(running):
        if piece.finish_reason == "error":
            log.error("the model failed", extra={"told": {"error": piece.error}})
            raise ApiError(500, "the model failed on this request; the server's log says why.", "server_error")
        if piece.finish_reason == "cancelled":
            raise ApiError(
                503, "the server is shutting down.", "server_error", code="not_ready", headers=later(NOT_READY)
            )
        if piece.finish_reason == "deadline" and not request.written:
            message = "the request waited longer than the server's limit: come back when it is less busy."
            raise ApiError(503, message, "server_error", code="deadline", headers=later(NOT_READY))
        yield piece


async def whole(http_request: Request, running: Generation) -> Answer:
    """Waits for the whole text; a client that leaves while it waits ends it.

    Raises:
        ApiError: when the client left, and as `pieces` does.
    """
    collecting = asyncio.create_task(collect(http_request, running))
    leaving = asyncio.create_task(departure(http_request.receive))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            raise ApiError(LEFT, "the client left.")  # nobody reads it, but the log
        return collecting.result()
    finally:
        collecting.cancel()
        leaving.cancel()


async def collect(http_request: Request, running: Generation) -> Answer:
    got = [piece async for piece in pieces(http_request, running)]
    return Answer(
        text="".join(piece.text for piece in got),
        tokens=tuple(token for piece in got for token in piece.tokens),
        prompt=tuple(token for piece in got for token in piece.prompt),
        finish_reason=got[-1].finish_reason,
        stop=got[-1].stop,
        usage=usage(running.request),
    )


def usage(request: inference.request.Request) -> dict[str, Any]:
    """Tokens read and written, as OpenAI counts them."""
    return {
        "prompt_tokens": request.prompt_length,
        "completion_tokens": request.written,
        "total_tokens": request.prompt_length + request.written,
        "prompt_tokens_details": {"cached_tokens": request.cached},
    }


def produced(engine: Engine) -> dict[str, Any]:
    """What wrote an answer: run, step and validation loss of its checkpoint."""
    told = engine.provenance
    return {
        "id": engine.model_id,
        "run": told.get("run"),
        "step": told.get("step"),
        "val_loss": finite(told.get("val_loss")),
    }


def finite(value: float | None) -> float | None:
    """A number that JSON can hold, or none."""
    return value if value is not None and math.isfinite(value) else None
