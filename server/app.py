"""The application: the rooms of the server, put together."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from config import ServeConfig, UserError
from inference.host import Host
from server import (
    errors,
    greeting,
    login,
    logs,
    media,
    metrics_routes,
    native,
    openai_routes,
    operations,
    pages,
    score,
    session_routes,
    training_page,
)
from server.auth import Gate, bearer_of
from server.limits import BodyLimit
from server.metrics import Metrics
from server.sessions import Sessions

TAKES_MEDIA = ("/v1/generate", "/v1/chat/completions")
LOOK = 1.0  # seconds between two looks at the checkpoint that is followed
log = logging.getLogger("server")


def create(config: ServeConfig, host: Host | None = None) -> FastAPI:
    """The application. Without a host it makes one, and loads the model on a thread once it runs.

    Raises:
        UserError: for settings that must not be served with.
    """
    gate, own = Gate(config), host is None
    host = make_host(config) if own else host
    metrics = Metrics(host)
    app = FastAPI(
        title="Your own GPT",
        description="Text from a checkpoint of the toolkit.",
        openapi_url="/openapi.json" if config.docs else None,
        middleware=middleware(config, metrics, gate, host),
        lifespan=lifespan if own else None,
    )
    app.state.config, app.state.gate, app.state.host, app.state.metrics = config, gate, host, metrics
    app.state.sessions = Sessions(config.session_db, config.session_days, config.session_turns)
    errors.install(app)
    app.state.runs = training_page.Runs(config.log_dir)
    routers = [native, score, session_routes, openai_routes, login, operations, training_page, pages]
    for each in routers if config.metrics_port else [*routers, metrics_routes]:
        app.include_router(each.router, responses=errors.DOCUMENTED)
    return app


def middleware(config: ServeConfig, metrics: Metrics, gate: Gate, host: Host) -> list[Middleware]:
    """What every request passes, outermost first. All of it is plain ASGI: `BaseHTTPMiddleware` hides that a client left."""
    cors = {"allow_origins": config.cors_origins, "allow_methods": ["*"], "allow_headers": ["*"]}
    shown = [
        "x-request-id",
        "retry-after",
        *(f"x-ratelimit-{each}-requests" for each in ("limit", "remaining", "reset")),
    ]
    return [
        Middleware(logs.Tracing, count=metrics.count),
        *([Middleware(CORSMiddleware, **cors, expose_headers=shown)] if config.cors_origins else []),
        Middleware(Leases),
        Middleware(errors.Guard),
        Middleware(BodyLimit, most=config.max_body_bytes, seconds=config.body_timeout, more=room_for_media(config, gate, host)),
    ]


def room_for_media(config: ServeConfig, gate: Gate, host: Host) -> Callable[[Scope], int]:
    """Extra bytes that a body with pictures or sounds may have; 0 where the model takes none. The body is read before any route runs, so
    unknown callers are refused here."""

    def more(scope: Scope) -> int:
        if scope["path"] not in TAKES_MEDIA or (host.current and not media.modalities(host.current)):
            return 0
        headers = Headers(scope=scope)
        gate.identify(headers.get("x-api-key"), bearer_of(headers))
        return config.max_media_bytes

    return more


class Leases:
    """Lets go of the engines that a request held, when its answer is out: one that is to go waits for that."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as stack:
            scope.setdefault("state", {})["leases"] = stack
            await self.app(scope, receive, send)


def make_host(config: ServeConfig) -> Host:
    """Who loads the model, on the device of the configuration."""
    from training import distributed, process

    device = distributed.pick_device(config.device)
    process.tune_process(device)
    line = {"max_waiting": config.max_waiting, "max_waiting_tokens": config.max_waiting_tokens}
    return Host(
        config.checkpoint, device, config.dtype, config.quantize, config.slots, keep_earlier=config.follow, **line
    )


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model while the port is open already, and closes the sessions at the end."""
    host = app.state.host
    threading.Thread(target=load, args=[host], name="loader", daemon=True).start()
    if app.state.config.follow:
        threading.Thread(target=follow, args=[host, host.stamp()], name="follower", daemon=True).start()
    yield
    app.state.sessions.close()


def load(host: Host) -> None:
    """Loads the checkpoint, for the first time or again, and says what came of it."""
    from training import process

    try:
        host.load()
        process.return_freed_memory()  # what loading took, and the models that went after the loads before
        print(greeting.model_line(host.engine), flush=True)
    except UserError as error:
        log.error("the model was not loaded: %s", error)
    except Exception:
        log.exception("the model was not loaded")


def follow(host: Host, seen: tuple | None) -> None:
    """Loads the checkpoint whenever another one lies at its place, until the server stops.

    Args:
        seen: the stamp of the one that was there at first.
    """
    while not host.draining:
        time.sleep(LOOK)
        now = host.stamp()
        if now and now != seen:
            seen = now
            loader = threading.Thread(target=load, args=[host], name="loader", daemon=True)
            loader.start()
            loader.join()
