"""The page of training without a model to serve: `train_cli.py watch`."""

from __future__ import annotations

import contextlib

import uvicorn
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.middleware import Middleware

from config import ServeConfig
from server import errors, greeting, login, logs, pages, training_page
from server.auth import Gate
from server.limits import BodyLimit
from server.listening import UVICORN, bind

PATIENCE = 2  # seconds that answers have to go out when the server is stopped


def create(config: ServeConfig) -> FastAPI:
    """The application: the page, what it asks for, and where users get their tokens.

    Raises:
        UserError: for settings that must not be served with.
    """
    limit = Middleware(BodyLimit, most=config.max_body_bytes, seconds=config.body_timeout)
    tracing = Middleware(logs.Tracing, count=lambda *_: None)
    app = FastAPI(title="Training", openapi_url=None, middleware=[tracing, Middleware(errors.Guard), limit])
    app.state.config, app.state.gate = config, Gate(config)
    app.state.runs = training_page.Runs(config.log_dir)
    errors.install(app)
    app.add_api_route("/", lambda: RedirectResponse("/training"))
    for room in (training_page, pages, login):
        app.include_router(room.router)
    return app


def run(config: ServeConfig) -> None:
    """Serves until Ctrl-C.

    Raises:
        UserError: when the port cannot be had, or settings must not be served with.
    """
    with bind(config.host, config.port) as listening:
        logs.configure("WARNING", readable=True)
        app = create(config)
        print(f"{greeting.address(config, listening.getsockname()[1])}/training shows the runs in {app.state.runs.log_dir}")
        print(*filter(None, [app.state.gate.notice]), "Ctrl-C ends it; training goes on.", sep="\n", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, **UVICORN, timeout_graceful_shutdown=PATIENCE))
        with contextlib.suppress(KeyboardInterrupt):  # how this command is meant to end
            server.run(sockets=[listening])
