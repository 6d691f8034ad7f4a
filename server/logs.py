"""The log: one JSON object a line, or a readable line while developing. Never a prompt, a password or a key."""

from __future__ import annotations

import contextvars
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# asked often, and nothing to learn from: logged at DEBUG
QUIET = {"/healthz", "/readyz", "/metrics", "/static/{name}", "/training/runs", "/training/runs/{name}"}
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
LEFT = 499  # nginx's status for a client that went before its answer came
log = logging.getLogger("server.requests")
current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("current", default=None)


@dataclass
class Trace:
    """One HTTP request while it is answered: what its log line will say.

    Attributes:
        headers: sent with the answer, whatever it will be.
        finish_reason: how the text ended.
    """

    id: str
    status: int = LEFT
    caller: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def trace_of(request: Request) -> Trace:
    """The trace of a request that `Tracing` let in."""
    return request.scope["state"]["trace"]


class Tracing:
    """Gives each request an id, returns it as `x-request-id`, and logs one line when the answer is out.

    The id is the client's where it sent a sane one. `count(route, method, status)` is called as well.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str, str, int], None]):
        self.app, self.count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        trace, t0 = Trace(request_id(scope)), time.perf_counter()
        scope.setdefault("state", {})["trace"] = trace
        current.set(trace)

        async def traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                MutableHeaders(scope=message).update({"x-request-id": trace.id, **trace.headers})
            await send(message)

        try:
            await self.app(scope, receive, traced)
        finally:
            self.tell(scope, trace, time.perf_counter() - t0)

    def tell(self, scope: Scope, trace: Trace, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")  # a template: it names no session
        self.count(route or "unknown", scope["method"], trace.status)
        told = {"method": scope["method"], "path": route or scope["path"][:200], "status": trace.status}
        told |= {"ms": round(1000 * seconds, 1), "caller": trace.caller}
        if trace.prompt_tokens:
            told |= {"prompt_tokens": trace.prompt_tokens, "completion_tokens": trace.completion_tokens}
            told |= {"finish_reason": trace.finish_reason}
        log.log(logging.DEBUG if route in QUIET else logging.INFO, "request", extra={"told": told})


def request_id(scope: Scope) -> str:
    """The id that the client chose, or a new one."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return given if SANE_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, request id, and what the record brings along."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(content_of(record) | trouble_of(self, record), default=str)


class Readable(logging.Formatter):
    """The same for people; control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        content = content_of(record)
        moment, level, event = content.pop("time")[11:19], content.pop("level"), content.pop("event")
        told = " ".join(f"{name}={value}" for name, value in content.items() if value != "")
        line = f"{moment} {level:7} {event} {told}".rstrip().encode("unicode_escape").decode()
        return "\n".join([line, *trouble_of(self, record).values()])


def content_of(record: logging.LogRecord) -> dict:
    """What a record says, as plain values."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
    content = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
    trace = current.get()
    return content | ({"request_id": trace.id} if trace else {}) | getattr(record, "told", {})


def trouble_of(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    return {"error": formatter.formatException(record.exc_info)} if record.exc_info else {}


def configure(level: str, readable: bool) -> None:
    """Sends the log of the whole process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Readable() if readable else JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "asyncio", "torch"):  # torch tells of its caches when it is stopped in the middle of its import
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
