"""`/v1/sessions`: the caller's sessions; reading one page by page, copying it, and deleting it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field

from server.auth import Caller, caller
from server.errors import ApiError, ErrorBody
from server.limits import later
from server.schemas import Strict
from server.sessions import SESSION_ID, Sessions, is_locked

T = TypeVar("T")
router = APIRouter()
log = logging.getLogger("server")

LAST = 2**62  # a number above that of any turn
Name = Annotated[str, Path(description="the name that the session was given", max_length=128)]


class Turn(BaseModel):
    """One prompt, and what was written after it."""

    number: int
    created: float
    model: str
    prompt: str
    text: str


class Page(BaseModel):
    """A part of a session; `next` is the `after` of the next page, or null at the end."""

    session_id: str
    created: float
    used: float
    turns: list[Turn]
    next: int | None


class Summary(BaseModel):
    """A session as the list has it; `prompt` and `text` are how its first turn begins, null where nothing was written yet."""

    session_id: str
    created: float
    used: float
    turns: int
    prompt: str | None
    text: str | None


class Listed(BaseModel):
    """A part of the list; `next` is the `before` of the next one, or null at the end."""

    sessions: list[Summary]
    next: float | None


class Fork(Strict):
    """What a copy is called, and how far it goes."""

    session_id: str = Field(pattern=SESSION_ID, description="the name of the new session")
    last: int = Field(LAST, ge=0, le=LAST, description="number of the last turn to copy; all, if left out")


class Forked(BaseModel):
    """A session that was copied, and the new one."""

    session_id: str
    copied_from: str


class Deleted(BaseModel):
    """A session that is gone."""

    session_id: str
    deleted: bool


@router.get("/v1/sessions", response_model=Listed)
async def recent(
    request: Request,
    caller: Annotated[Caller, Depends(caller)],
    before: Annotated[float, Query(ge=0, description="sessions used before this instant, in seconds")] = 1e12,
    limit: Annotated[int, Query(ge=1, le=200, description="sessions of a part")] = 50,
) -> dict[str, Any]:
    """The caller's sessions, the one used last first."""
    found = await ask(request, Sessions.recent, caller.name, before, limit + 1)
    listed = found[:limit]
    return {"sessions": listed, "next": listed[-1]["used"] if len(found) > limit else None}


@router.get("/v1/sessions/{session_id}", response_model=Page)
async def read(
    request: Request,
    session_id: Name,
    caller: Annotated[Caller, Depends(caller)],
    after: Annotated[int, Query(ge=0, le=LAST, description="the number of the turn before the page")] = 0,
    limit: Annotated[int, Query(ge=1, le=200, description="turns of a page")] = 50,
) -> dict[str, Any]:
    """The turns of one of the caller's sessions, oldest first."""
    page = await ask(request, Sessions.page, caller.name, session_id, after, limit)
    if page is None:
        raise unknown(session_id)
    return page


@router.post("/v1/sessions/{session_id}/fork", response_model=Forked, responses={409: {"model": ErrorBody}})
async def fork(
    request: Request, session_id: Name, sent: Fork, caller: Annotated[Caller, Depends(caller)]
) -> dict[str, Any]:
    """Copies one of the caller's sessions, whole or its first turns, so that it can go on in two ways."""
    made = await ask(request, Sessions.fork, caller.name, session_id, sent.session_id, sent.last)
    if made is None:
        raise unknown(session_id)
    if not made:
        message = "you have a session of that name already: choose another."
        raise ApiError(409, message, param="session_id", code="session_exists")
    return {"session_id": sent.session_id, "copied_from": session_id}


@router.delete("/v1/sessions/{session_id}", response_model=Deleted)
async def delete(request: Request, session_id: Name, caller: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
    """Deletes one of the caller's sessions with all its text."""
    if not await ask(request, Sessions.delete, caller.name, session_id):
        raise unknown(session_id)
    return {"session_id": session_id, "deleted": True}


async def ask(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """A method of the sessions, called off the event loop.

    Raises:
        ApiError: 503, when the file is locked, read-only, damaged, or the disk is full.
    """
    sessions = request.app.state.sessions
    try:
        return await asyncio.get_running_loop().run_in_executor(sessions.threads, work, sessions, *arguments)
    except sqlite3.Error as error:
        if is_locked(error):
            message, code = "the sessions are busy: come back in a moment.", "sessions_busy"
        else:
            log.exception("the sessions' file fails")
            message, code = (
                "the sessions cannot be kept now; without a session_id the server still answers.",
                "sessions_failed",
            )
        raise ApiError(503, message, "server_error", code=code, headers=later(1)) from None


def unknown(session_id: str) -> ApiError:
    return ApiError(404, "you have no such session.", "not_found_error", param="session_id", code="session_not_found")
