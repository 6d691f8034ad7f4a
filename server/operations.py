"""For those who run the server: is it alive, is it ready, and load another checkpoint."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Depends, Request

from config import UserError
from server import answer
from server.auth import admin
from server.errors import ApiError
from server.limits import later
from server.session_routes import ask
from server.sessions import Sessions

router = APIRouter()
log = logging.getLogger("server")


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, Any]:
    """Requests will be answered: a model is loaded, and the sessions can be written. Otherwise 503 with the reason."""
    engine = answer.engine_of(request)
    if trouble := await ask(request, Sessions.probe):
        raise ApiError(503, trouble, "server_error", code="sessions_failed", headers=later(10))
    return {"status": "ready", "model": answer.produced(engine)}


@router.post("/v1/admin/reload", dependencies=[Depends(admin)])
async def reload(request: Request) -> dict[str, Any]:
    """Loads the checkpoint again; the one before answers until the new one can, and finishes what it has begun."""
    host = request.app.state.host
    if host.loading.locked():  # to wait for it would take one of the few threads that prompts are cut on
        raise ApiError(409, "a model is being loaded already: try again in a moment.", code="reload_failed", headers=later(1))
    try:
        await asyncio.to_thread(host.load)
    except UserError as error:
        outcome = "the model stays as it is" if host.current else "there is still no model"
        raise ApiError(409, f"{outcome}: {error}", code="reload_failed") from error
    engine = answer.engine_of(request)
    log.info("model loaded", extra={"told": {"model": engine.model_id}})
    return {"model": answer.produced(engine)}
