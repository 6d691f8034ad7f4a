"""OpenAI's API: completions, chats and the list of models, so that its clients work unchanged.

What a text may hold: the prompt has to fit the context, but prompt and `max_tokens` together need not. When the context is full
the model forgets the older half and writes on, so `context_length_exceeded` is said of prompts alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from inference.engine import Engine
from inference.request import Settings
from server import answer, media
from server.auth import Caller, caller
from server.errors import ApiError, validation_error
from server.openai_schemas import MOST_TEXTS, ChatCompletion, Completion
from server.openai_texts import ChatText, CompletionText, Text
from server.openai_writing import openai_statuses, respond

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens


class OpenAIRoute(APIRoute):
    """Statuses as OpenAI's."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        handle = super().get_route_handler()

        async def handle_as_openai(request: Request) -> Response:
            try:
                with openai_statuses():
                    return await handle(request)
            except RequestValidationError as error:
                response = await validation_error(request, error)
                response.status_code = 400
                return response

        return handle_as_openai


router = APIRouter(prefix="/v1", tags=["openai"], route_class=OpenAIRoute)
Known = Annotated[Caller, Depends(caller)]


@router.get("/models")
async def models(request: Request, who: Known) -> dict[str, Any]:
    """The model that answers now, then those before it that can still be asked by name."""
    return {"object": "list", "data": [describe(engine) for engine in answer.engines_of(request)]}


@router.get("/models/{model}")
async def one_model(request: Request, model: str, who: Known) -> dict[str, Any]:
    """The model of this name."""
    return describe(answer.engine_of(request, model))


@router.post("/completions")
async def completions(request: Request, body: Completion, who: Known) -> Response:
    """Texts that go on from prompts."""
    engine = answer.engine_of(request, body.model)
    prompts = several(body.prompt)
    check_number(request, len(prompts), body.choices)
    settings = body.settings(
        engine.tokenizer.vocab_size,
        max_new_tokens=to_write(request, body.max_tokens, COMPLETION_TOKENS),
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )
    texts: list[Text] = []
    for prompt in prompts:
        ids, unsaid = await read(engine, prompt)
        echo = (prompt if isinstance(prompt, str) else engine.tokenizer.decode(ids)) if body.echo else None
        for choice in seeded(settings, body.choices):
            texts.append(CompletionText(engine, len(texts), ids, choice, echo, unsaid))
    return await respond(request, body, who, engine, texts)


@router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatCompletion, who: Known) -> Response:
    """The next thing that the assistant says. `dropped_messages` are those that the context had no room for."""
    engine = answer.engine_of(request, body.model)
    check_number(request, 1, body.choices)
    asked = body.max_completion_tokens or body.max_tokens
    prompt = await answer.chat_prompt(engine, await media.messages(engine, body.messages), asked)
    fitting = max(1, engine.block_size - len(prompt.ids))
    settings = body.settings(
        engine.tokenizer.vocab_size,
        max_new_tokens=to_write(request, asked, fitting),
        logprobs=body.reported,
        more_stops=prompt.stop,
    )
    choices = enumerate(seeded(settings, body.choices))
    texts = [ChatText(engine, index, prompt, choice) for index, choice in choices]
    return await respond(request, body, who, engine, texts, dropped_messages=prompt.dropped)


def check_number(request: Request, prompts: int, choices: int) -> None:
    """Refuses more texts than an empty queue holds: they would find it full however often they came.

    Raises:
        ApiError: 400, which blames n where a single prompt has too many choices.
    """
    most = max(1, min(MOST_TEXTS, request.app.state.config.max_waiting))
    if prompts * choices > most:
        message = f"{prompts * choices} texts are asked for, and this server writes {most} at most for one request."
        raise ApiError(400, message, param="n" if choices > most else "prompt")


def describe(engine: Engine) -> dict[str, Any]:
    """A model as OpenAI lists it, and what we know beside that. A checkpoint knows no date of its own, so `created` is 0."""
    told = {"id": engine.model_id, "object": "model", "created": 0, "owned_by": "local"}
    more = {"parameters": engine.parameters, "eot_id": engine.tokenizer.eot}
    chat = {"chat_template": bool(engine.provenance.get("chat_template")), **media.taken(engine)}
    return {**told, "max_model_len": engine.block_size, **more, **chat, "provenance": answer.produced(engine)}


def several(prompt: str | list | None) -> list[str | list[int]]:
    """The prompts of a request, which may be one or many, texts or tokens.

    Raises:
        ApiError: 400, when there is none.
    """
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    prompts = [prompt] if prompt and isinstance(prompt[0], int) else prompt
    if not all(isinstance(each, str) or each for each in prompts) or not prompts:
        raise ApiError(400, "a prompt of tokens needs one at least.", param="prompt")
    return prompts


async def read(engine: Engine, prompt: str | list[int]) -> tuple[list[int], bool]:
    """The tokens of a prompt, and whether the first one stands for none of its text.

    Raises:
        ApiError: for tokens that the model does not have, or more than its context.
    """
    if isinstance(prompt, str):
        ids = await answer.prompt_ids(engine, prompt)
        return ids, ids[0] == engine.tokenizer.eot or not prompt
    if max(prompt) >= engine.tokenizer.vocab_size:
        raise ApiError(400, f"the model has {engine.tokenizer.vocab_size} tokens, and none beyond.", param="prompt")
    answer.check_length(engine, len(prompt))
    return prompt, False


def to_write(request: Request, asked: int | None, default: int) -> int:
    """How many tokens a text may have.

    Raises:
        ApiError: 400, for more than the server writes at once.
    """
    most = request.app.state.config.max_new_tokens
    if asked is not None and asked > most:
        raise ApiError(400, f"this server writes {most} tokens at most.", param="max_tokens")
    return min(default, most) if asked is None else asked


def seeded(settings: Settings, choices: int) -> list[Settings]:
    """Settings of each choice: with a seed, the next one has the next seed."""
    if settings.seed is None:
        return [settings] * choices
    return [dataclasses.replace(settings, seed=settings.seed + number) for number in range(choices)]
