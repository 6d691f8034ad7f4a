"""`POST /v1/score`: how likely a text is to the model, in nats, as a perplexity, and in bits per byte."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from inference.engine import Engine
from inference.request import Settings
from server import answer
from server.auth import Caller, caller
from server.schemas import Scored, ScoreRequest

router = APIRouter()


@router.post("/v1/score", response_model=Scored)
async def score(
    http_request: Request, sent: ScoreRequest, caller: Annotated[Caller, Depends(caller)]
) -> dict[str, Any]:
    """Scores every token of a text. In a text longer than the context, each has at least half a context before it."""
    engine = answer.engine_of(http_request)
    ids = await asyncio.to_thread(scored_ids, engine, sent.text)
    settings, nats = Settings(prompt_logprobs=True, max_new_tokens=0), 0.0
    for start, end, first in windows(len(ids), engine.block_size):
        async with answer.generation(http_request, engine, ids[start:end], settings, caller) as running:
            whole = await answer.whole(http_request, running)
        nats += math.fsum(token.logprob for token in whole.prompt[first - start - 1 :])
    tokens, size = len(ids) - 1, len(sent.text.encode())
    return {
        "log_likelihood": answer.finite(nats),
        "perplexity": answer.finite(math.exp(-nats / tokens) if -nats / tokens < 700 else math.inf),
        "bits_per_byte": answer.finite(-nats / math.log(2) / size),
        "tokens": tokens,
        "bytes": size,
        "model": answer.produced(engine),
    }


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
