"""What bounds a stranger: requests a minute, the size of a body, and the time it may take to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError

LINGER = 2.0  # seconds of an oversized body that are still read, so that its sender gets to see the refusal


MINUTE = 60.0


class RateLimit:
    """At most `per_minute` requests of one caller in any 60 seconds; 0 is no limit."""

    def __init__(self, per_minute: int):
        self.limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self.storage, self.looked = MemoryStorage(), time.time()
        self.window = MovingWindowRateLimiter(self.storage)

    def hit(self, name: str) -> dict[str, str]:
        """Counts a request, and gives the headers that its answer carries.

        Raises:
            ApiError: 429, with when to come back.
        """
        if not self.limit:
            return {}
        if time.time() - self.looked > MINUTE:
            self.forget()
        allowed = self.window.hit(self.limit, name)
        stats = self.window.get_window_stats(self.limit, name)
        seconds = max(0.001, stats.reset_time - time.time())  # until the oldest request leaves the window
        headers = {
            "x-ratelimit-limit-requests": str(self.limit.amount),
            "x-ratelimit-remaining-requests": str(max(0, stats.remaining)),
            "x-ratelimit-reset-requests": duration(seconds),
        }
        if allowed:
            return headers
        message = f"more than {self.limit.amount} requests in a minute: come back in {math.ceil(seconds)} s."
        raise ApiError(429, message, "rate_limit_error", code="rate_limit_exceeded", headers=headers | later(seconds))


    def forget(self) -> None:
        """Drops those who have not come for a minute. The storage empties their lists and keeps their names, which strangers choose."""
        self.looked = time.time()
        for name, entries in list(self.storage.events.items()):
            with self.storage.locks[name]:
                if not entries or entries[0].expiry < self.looked:  # the newest comes first
                    self.storage.clear(name)


def later(seconds: float) -> dict[str, str]:
    """The headers that tell a client when to come back; OpenAI's reads the finer one."""
    return {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, math.ceil(1000 * seconds)))}


def duration(seconds: float) -> str:
    """As OpenAI writes it: 12ms, 59s."""
    return f"{math.ceil(1000 * seconds)}ms" if seconds < 1 else f"{math.ceil(seconds)}s"


class BodyLimit:
    """Takes in the whole body before the app is asked: one that is too large is 413, one that comes too slowly 408.

    Args:
        most: bytes.
        seconds: for the whole body.
        more: bytes beyond those that a request may have; what it raises is the answer.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float, more: Callable[[Scope], int] = lambda _: 0):
        self.app, self.most, self.seconds, self.more = app, most, seconds, more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            most = await self.limit(scope, receive)
            body = await self.take(receive, most)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        if body is not None:  # None: the client has left
            await self.app(scope, replay(body, receive), send)

    async def limit(self, scope: Scope, receive: Receive) -> int:
        """How many bytes this request may have.

        Raises:
            ApiError: when it announces more, or is refused already.
        """
        headers = dict(scope["headers"])
        length = announced(headers)
        try:
            most = self.most + self.more(scope)
            if length > most:
                raise too_large(most)
        except ApiError:
            if length and headers.get(b"expect", b"").lower() != b"100-continue":
                await discard(receive)
            raise
        return most

    async def take(self, receive: Receive, most: int) -> bytes | None:
        """The body; None when the client left.

        Raises:
            ApiError: 413 or 408.
        """
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.seconds):
                while more and len(body) <= most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body")
        except TimeoutError:
            message = f"the body did not arrive within {self.seconds:g} seconds."
            raise ApiError(408, message, code="body_timeout", headers={"Connection": "close"}) from None
        if len(body) <= most:
            return bytes(body)
        if more:
            await discard(receive)
        raise too_large(most)


def too_large(most: int) -> ApiError:
    message = f"the body is larger than {most:,} bytes: send less."
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})


def announced(headers: dict[bytes, bytes]) -> int:
    """The length that the client announces, in bytes; 0 for none."""
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() and len(length) < 20 else 0


async def discard(receive: Receive) -> None:
    """Reads what still comes of a body, for a moment: a connection closed on a sender who is still sending loses our answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while (await receive()).get("more_body"):
                pass


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, and then whatever comes after it: the client's leaving."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
