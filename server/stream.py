"""Server-sent events: pieces of a text as they are written, `data: {...}` each, and `data: [DONE]` at the end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import ApiError

DONE = b"data: [DONE]\n\n"
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # ASCII: some clients end a line at U+2028 too
STALLED = 60.0  # seconds for which a client may take nothing
log = logging.getLogger("server")


class Stalled(Exception):
    """A client that stopped reading. It would keep its model in memory, though another took its place."""


class EventStream(Response):
    """Sends what a generator yields, until it ends or the client leaves; then the generator is closed.

    The answer begins with the first event, so that what is refused before it has a status of its own. A failure after it
    comes as the last event: `data: {"error": ...}`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[dict[str, Any], None]):
        self.events, self.status_code, self.background = events, 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})  # nginx passes each event on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self.send_all(send))
        leaving = asyncio.create_task(departure(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.wait({sending, leaving})

    async def send_all(self, send: Send) -> None:
        async with aclosing(self.events):
            first = await anext(self.events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await put(send, line(first))
                async for event in self.events:
                    await put(send, line(event))
                await put(send, DONE)
            except ApiError as error:
                await put(send, line(error.body()))
            except Stalled:
                log.info("a client stopped reading its stream")
                return  # which closes the connection
            except Exception:
                log.exception("a stream failed")
                await put(send, line(ApiError(500, "the server failed; its log says why.", "server_error").body()))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def put(send: Send, data: bytes) -> None:
    """Sends some of the body.

    Raises:
        Stalled: when the client takes nothing for too long.
    """
    try:
        async with asyncio.timeout(STALLED):
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except TimeoutError as error:
        raise Stalled from error


def line(event: dict[str, Any]) -> bytes:
    """One event, as it goes over the wire."""
    return f"data: {encode(event)}\n\n".encode()


async def departure(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
