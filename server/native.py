"""`POST /v1/generate`: a prompt, and the text that goes on from it, whole or as it is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from inference.engine import Engine
from inference.request import Piece, Settings, Token
from inference.sampling import start_ids
from server import answer
from server.auth import Caller, caller
from server.bridge import Generation
from server.errors import ApiError
from server.schemas import Generated, GenerateRequest
from server.session_routes import ask
from server.sessions import Sessions
from server.stream import EventStream

CHARACTERS = 32  # a token, on average, in no text: so many times the context are enough of a session's text
router = APIRouter()


@dataclass
class Job:
    """One text to write, and for whom.

    Attributes:
        history_tokens: how many of the ids are the session's.
    """

    http_request: Request
    engine: Engine
    caller: Caller
    sent: GenerateRequest
    settings: Settings
    ids: list[int]
    history_tokens: int

    def start(self):
        return answer.generation(self.http_request, self.engine, self.ids, self.settings, self.caller)

    async def remember(self, text: str) -> None:
        """Adds the turn to the session, if there is one."""
        if self.sent.session_id:
            turn = (self.caller.name, self.sent.session_id, self.sent.prompt, text, self.engine.model_id)
            await ask(self.http_request, Sessions.append, *turn)

    def told(self, running: Generation, piece: Piece | answer.Answer) -> dict[str, Any]:
        """What the answer says beside the text."""
        return {
            "finish_reason": piece.finish_reason,
            "stop": piece.stop,
            "usage": answer.usage(running.request),
            "session_id": self.sent.session_id,
            "history_tokens": self.history_tokens,
            "seed": running.request.seed,
            "model": answer.produced(self.engine),
        }

    def tokens(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        """The tokens with their log-probabilities, where they were asked for."""
        return {} if self.sent.logprobs is None else {"tokens": [written(self.engine, token) for token in tokens]}


@router.post("/v1/generate", response_model=Generated, response_model_exclude_unset=True)
async def generate(http_request: Request, sent: GenerateRequest, caller: Annotated[Caller, Depends(caller)]) -> Any:
    """Goes on from a prompt. With `stream` the pieces come as server-sent events, the last with what the whole answer has."""
    job = await prepare(http_request, sent, caller)
    if sent.stream:
        return EventStream(events(job))
    async with job.start() as running:
        whole = await answer.whole(http_request, running)
    await job.remember(whole.text)
    return {"text": whole.text, **job.told(running, whole), **job.tokens(whole.tokens)}


async def events(job: Job) -> AsyncGenerator[dict[str, Any], None]:
    """The pieces as a stream has them."""
    text = []
    async with job.start() as running:
        async for piece in answer.pieces(job.http_request, running):
            text.append(piece.text)
            if piece.finish_reason:
                await job.remember("".join(text))
                yield {"text": piece.text, **job.told(running, piece), **job.tokens(piece.tokens)}
            elif piece.text or (piece.tokens and job.sent.logprobs is not None):
                yield {"text": piece.text, **job.tokens(piece.tokens)}


async def prepare(http_request: Request, sent: GenerateRequest, caller: Caller) -> Job:
    """Checks what only the server and its model can judge, and fetches the session's text.

    Raises:
        ApiError: 422 for what the model cannot do, 503 while there is none or the sessions fail.
    """
    engine, settings = answer.engine_of(http_request), sent.settings()
    most = http_request.app.state.config.max_new_tokens
    if settings.max_new_tokens > most:
        raise ApiError(
            422,
            f"max_new_tokens is {settings.max_new_tokens}; this server writes up to {most}.",
            param="max_new_tokens",
        )
    for name, ids in (("logit_bias", settings.logit_bias), ("stop_ids", settings.stop_ids)):
        if strange := [i for i in ids if i >= engine.tokenizer.vocab_size]:
            last = engine.tokenizer.vocab_size - 1
            raise ApiError(422, f"{name} names the token {strange[0]}; this model has 0 to {last}.", param=name)
    ids, history_tokens = await answer.prompt_ids(engine, sent.prompt), 0
    if sent.session_id:
        most = engine.block_size * CHARACTERS
        history = await ask(http_request, Sessions.begin, caller.name, sent.session_id, most)
        if history:
            ids, history_tokens = await asyncio.to_thread(joined, engine, history, sent.prompt, settings.max_new_tokens)
    return Job(http_request, engine, caller, sent, settings, ids, history_tokens)


def joined(engine: Engine, history: str, prompt: str, new: int) -> tuple[list[int], int]:
    """The ids of a session's text with a prompt behind it, and how many of them are the session's.

    The oldest tokens are dropped, so that what will be written has room too, up to half the context. The prompt stays whole.
    """
    own, documents = len(engine.tokenizer.encode(prompt)), bool(engine.provenance.get("documents"))
    ids = start_ids(engine.tokenizer, history + prompt, documents)
    kept = ids[-max(own, engine.block_size - min(new, engine.block_size // 2)) :]
    return kept, max(0, min(len(kept), len(ids) - documents) - own)


def written(engine: Engine, token: Token) -> dict[str, Any]:
    """A token as the answer shows it. Bytes that are no whole character show as U+FFFD."""

    def likely(i: int, logprob: float) -> dict[str, Any]:
        return {"id": i, "text": engine.tokenizer.decode([i]), "logprob": max(logprob, answer.LEAST_LOGPROB)}

    return likely(token.id, token.logprob) | {"top": [likely(*pair) for pair in token.top]}
