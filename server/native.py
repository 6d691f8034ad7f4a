"""`POST /v1/generate`: a prompt or a conversation, and the text that goes on from it, whole or as it is written."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from inference.dialogue import Message, Trim
from inference.engine import Engine
from inference.request import Piece, Settings, Token
from inference.sampling import start_ids
from server import answer, media
from server.auth import Caller, caller
from server.bridge import Generation
from server.errors import ApiError
from server.schemas import Generated, GenerateRequest, Said
from server.session_routes import ask
from server.sessions import Sessions
from server.spelling import Places, spelt
from server.stream import EventStream
from tokenizer import StreamDecoder

CHARACTERS = 32  # no text averages more a token, so that 32 times the context is enough of a session
Turns = list[tuple[str, str]]  # what was asked and what was written, oldest first
router = APIRouter()


@dataclass
class Job:
    """One text to write, and for whom.

    Attributes:
        history_tokens: how many of the ids are the session's.
        media: the pictures and sounds among the ids.
        trimmed: the text is told without the white space at its beginning.
        dropped: how many of a conversation's oldest messages did not fit; None where there is none.
    """

    http_request: Request
    engine: Engine
    caller: Caller
    sent: GenerateRequest
    settings: Settings
    ids: list[int]
    history_tokens: int
    media: tuple[Any, ...] = ()
    trimmed: bool = False
    dropped: int | None = None

    def __post_init__(self) -> None:
        tokenizer, prefix = self.engine.tokenizer, self.settings.prefix_ids
        self.trim, self.places = Trim(self.trimmed), Places(tokenizer, self.trimmed)
        self.begins = self.trim(StreamDecoder(tokenizer).push(*prefix))
        for i in prefix:
            self.places.push(i)

    def start(self):
        return answer.generation(self.http_request, self.engine, self.ids, self.settings, self.caller, self.media)

    async def remember(self, text: str) -> None:
        """Adds the turn to the session, if there is one; of a picture or a sound, that there was one."""
        sent = self.sent
        if sent.session_id:
            asked = media.in_words(sent.messages[-1].parts()) if sent.messages else sent.prompt
            await ask(
                self.http_request, Sessions.append, self.caller.name, sent.session_id, asked, text, self.engine.model_id
            )

    def text(self, piece: str) -> str:
        """A piece of the text, the first one behind what the text begins with."""
        text, self.begins = self.begins + self.trim(piece), ""
        return text

    def told(self, running: Generation, piece: Piece | answer.Answer) -> dict[str, Any]:
        """What the answer says beside the text."""
        return {
            "finish_reason": piece.finish_reason,
            "stop": piece.stop,
            "usage": answer.usage(running.request),
            "session_id": self.sent.session_id,
            "history_tokens": self.history_tokens,
            **({} if self.dropped is None else {"dropped_messages": self.dropped}),
            "seed": running.request.seed,
            "model": answer.produced(self.engine),
        }

    def tokens(self, tokens: tuple[Token, ...]) -> dict[str, Any]:
        """The tokens with their log-probabilities, where they were asked for."""
        if self.sent.logprobs is None:
            return {}
        return {"tokens": [spelt(self.engine.tokenizer, token, self.places) for token in tokens]}


@router.post("/v1/generate", response_model=Generated, response_model_exclude_unset=True)
async def generate(http_request: Request, sent: GenerateRequest, caller: Annotated[Caller, Depends(caller)]) -> Any:
    """Goes on from a prompt, or answers a conversation. With `stream` the pieces come as server-sent events, the last with what
    the whole answer has."""
    job = await prepare(http_request, sent, caller)
    if sent.stream:
        return EventStream(events(job))
    async with job.start() as running:
        whole = await answer.whole(http_request, running)
    text = job.text(whole.text)
    await job.remember(text)
    return {"text": text, **job.told(running, whole), **job.tokens(whole.tokens)}


async def events(job: Job) -> AsyncGenerator[dict[str, Any], None]:
    """The pieces as a stream has them."""
    written = []
    async with job.start() as running:
        async for piece in answer.pieces(job.http_request, running):
            text = job.text(piece.text)
            written.append(text)
            if piece.finish_reason:
                await job.remember("".join(written))
                yield {"text": text, **job.told(running, piece), **job.tokens(piece.tokens)}
            elif text or (piece.tokens and job.sent.logprobs is not None):
                yield {"text": text, **job.tokens(piece.tokens)}


async def prepare(http_request: Request, sent: GenerateRequest, caller: Caller) -> Job:
    """Checks what only the server and its model can judge, and fetches the session's text.

    Raises:
        ApiError: 404 for a model that is not here, 422 for what the model cannot do, 503 while there is none or the sessions fail.
    """
    engine, settings = answer.engine_of(http_request, sent.model), sent.settings()
    check(sent, settings, engine, http_request.app.state.config.max_new_tokens)
    if sent.messages:
        turns = await history(http_request, engine, caller, sent)
        return await conversation(http_request, engine, caller, sent, settings, turns)
    ids, history_tokens = await answer.prompt_ids(engine, sent.prompt), 0
    if turns := await history(http_request, engine, caller, sent):
        new = settings.max_new_tokens + len(settings.prefix_ids)
        ids, history_tokens = await asyncio.to_thread(joined, engine, turns, sent.prompt, new)
    return Job(http_request, engine, caller, sent, settings, ids, history_tokens)


def check(sent: GenerateRequest, settings: Settings, engine: Engine, most: int) -> None:
    """Refuses what this server or its model cannot do.

    Raises:
        ApiError: 422.
    """
    if sent.prompt is None and sent.messages is None:
        raise ApiError(422, "prompt is missing (or messages, for a conversation).", param="prompt")
    if sent.prompt is not None and sent.messages is not None:
        raise ApiError(422, "prompt and messages exclude each other: leave one of them out.", param="messages")
    if sent.messages and sent.session_id and [each.role for each in after_system(sent.messages)] != ["user"]:
        message = "with a session_id, messages holds what is new: one message of the user, and the system's before it."
        raise ApiError(422, message, param="messages")
    if settings.max_new_tokens > most:
        message = f"max_new_tokens is {settings.max_new_tokens}; this server writes up to {most}."
        raise ApiError(422, message, param="max_new_tokens")
    longest = engine.block_size + most
    if len(settings.prefix_ids) > longest:
        message = f"prefix_ids has a length of {len(settings.prefix_ids)}: it must be {longest} at most for this model."
        raise ApiError(422, message, param="prefix_ids")
    for name in ("logit_bias", "stop_ids", "prefix_ids"):
        if strange := [i for i in getattr(settings, name) if i >= engine.tokenizer.vocab_size]:
            last = engine.tokenizer.vocab_size - 1
            raise ApiError(422, f"{name} names the token {strange[0]}; this model has 0 to {last}.", param=name)


async def history(http_request: Request, engine: Engine, caller: Caller, sent: GenerateRequest) -> Turns:
    """The newest turns of the request's session, as much as the context could hold."""
    if not sent.session_id:
        return []
    most = engine.block_size * CHARACTERS
    return await ask(http_request, Sessions.begin, caller.name, sent.session_id, most)


async def conversation(
    http_request: Request, engine: Engine, caller: Caller, sent: GenerateRequest, settings: Settings, turns: Turns
) -> Job:
    """A conversation, the session's turns within it.

    Raises:
        ApiError: 422, when the model or its template refuses it, or the last message is longer than the context.
    """
    new = await media.messages(engine, sent.messages)
    head = len(new) - len(after_system(sent.messages))
    told = [Message(*each) for turn in turns for each in zip(("user", "assistant"), turn, strict=True)]
    prompt = await answer.chat_prompt(engine, new[:head] + told + new[head:], settings.max_new_tokens)
    alone = len(await asyncio.to_thread(answer.chat_of(engine).ids, new)) if turns else len(prompt.ids)
    settings = dataclasses.replace(settings, stop=(*settings.stop, *prompt.stop))
    history_tokens = max(0, len(prompt.ids) - alone)
    return Job(
        http_request, engine, caller, sent, settings, prompt.ids, history_tokens, prompt.media, prompt.plain, prompt.dropped
    )


def after_system(messages: list[Said]) -> list[Said]:
    """A conversation without what the system says first."""
    return messages[len(list(takewhile(lambda each: each.role == "system", messages))) :]


def joined(engine: Engine, turns: Turns, prompt: str, new: int) -> tuple[list[int], int]:
    """The ids of a session's text with a prompt behind it, and how many of them are the session's.

    The oldest tokens are dropped, so that what will be written has room too, up to half the context. The prompt stays whole.
    """
    history = "".join(asked + text for asked, text in turns)[-engine.block_size * CHARACTERS :]
    own, documents = len(engine.tokenizer.encode(prompt)), bool(engine.provenance.get("documents"))
    ids = start_ids(engine.tokenizer, history + prompt, documents)
    kept = ids[-max(own, engine.block_size - min(new, engine.block_size // 2)) :]
    return kept, max(0, min(len(kept), len(ids) - documents) - own)
