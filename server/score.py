"""`POST /v1/score`: how likely a text is to the model, in nats, as a perplexity, and in bits per byte."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from inference.engine import Engine
from inference.request import Settings, Token
from server import answer
from server.auth import Caller, caller
from server.errors import ApiError
from server.limits import later
from server.schemas import Scored, ScoreRequest
from server.spelling import Places, spelt

PATIENCE = 0.5  # seconds until a window asks again for a place in a line that was full
router = APIRouter()


@router.post("/v1/score", response_model=Scored, response_model_exclude_unset=True)
async def score(
    http_request: Request, sent: ScoreRequest, caller: Annotated[Caller, Depends(caller)]
) -> dict[str, Any]:
    """Scores every token of a text. In a text longer than the context, each has at least half a context before it."""
    engine = answer.engine_of(http_request, sent.model)
    ids = await asyncio.to_thread(scored_ids, engine, sent.text)
    check_report(http_request, sent, len(ids) - 1)
    scored: list[Token] = []
    limit = http_request.app.state.config.request_timeout
    try:
        async with asyncio.timeout(limit):
            for start, end, first in windows(len(ids), engine.block_size):
                window = await score_window(http_request, engine, ids[start:end], caller, sent.logprobs, patient=start > 0)
                scored += window[first - start - 1 :]
    except TimeoutError:
        message = f"the text takes longer than the {limit:g} seconds a request may: send it in parts."
        raise ApiError(503, message, "server_error", code="deadline", headers=later(1)) from None
    nats, tokens, size = math.fsum(token.logprob for token in scored), len(scored), len(sent.text.encode())
    places = Places(engine.tokenizer)
    reported = {} if sent.logprobs is None else {"scored": [spelt(engine.tokenizer, token, places) for token in scored]}
    return {
        "log_likelihood": answer.finite(nats),
        "perplexity": answer.finite(math.exp(-nats / tokens) if -nats / tokens < 700 else math.inf),
        "bits_per_byte": answer.finite(-nats / math.log(2) / size),
        "tokens": tokens,
        "bytes": size,
        **reported,
        "model": answer.produced(engine),
    }


async def score_window(
    http_request: Request, engine: Engine, ids: list[int], caller: Caller, logprobs: int | None, patient: bool
) -> tuple[Token, ...]:
    """The tokens of one window from the second on, with their log-probabilities.

    A full queue refuses the first window of a text; later ones wait for room, since the work before them would be lost.
    """
    settings = Settings(prompt_logprobs=True, max_new_tokens=0, logprobs=logprobs)
    while True:
        try:
            async with answer.generation(http_request, engine, ids, settings, caller) as running:
                return (await answer.whole(http_request, running)).prompt
        except ApiError as error:
            if not patient or error.code != "queue_full":
                raise
            await asyncio.sleep(PATIENCE)


def check_report(http_request: Request, sent: ScoreRequest, tokens: int) -> None:
    """Refuses to report each token of a text that is longer than this server would write one.

    Raises:
        ApiError: 422.
    """
    most = http_request.app.state.config.max_new_tokens
    if sent.logprobs is not None and tokens > most:
        message = f"the text has {tokens} tokens, and this server reports up to {most}: send less, or leave out logprobs."
        raise ApiError(422, message, param="logprobs")


def scored_ids(engine: Engine, text: str) -> list[int]:
    """The tokens of a text behind one that it begins after: the end of another text, or of a line."""
    tokenizer = engine.tokenizer
    before = [tokenizer.eot] if engine.provenance.get("documents") else tokenizer.encode("\n").tolist()[-1:]
    return before + tokenizer.encode(text).tolist()


def windows(length: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Start and end of each window over a text, and the first place in it that was not scored before."""
    start, first = 0, 1
    while first < length:
        end = min(start + block, length)
        yield start, end, first
        first = end
        start = end - block // 2
