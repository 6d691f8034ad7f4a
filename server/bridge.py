"""Between asyncio and the engine's thread: requests go over as they are, pieces come back a step at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from inference.engine import Engine
from inference.request import Piece, Request, Settings


class Generation:
    """The pieces of one request, as they come. Leaving the `async with` gives its slot back, finished or not.

        async with Generation(engine, ids, settings, scope=caller.name) as generation:
            async for piece in generation: ...

    Raises, on entering:
        Busy: when the queue is full.
        NotReady: when the engine is draining.
    """

    def __init__(self, engine: Engine, ids: list[int], settings: Settings, scope: str, seconds: float = float("inf")):
        self.engine, self.pieces = engine, asyncio.Queue()
        deliver, loop = self.pieces.put_nowait, asyncio.get_running_loop()
        deadline = asyncio.get_running_loop().time() + seconds  # the loop's clock is time.monotonic

        def sink(piece: Piece) -> None:  # called on the engine's thread
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(deliver, piece)

        self.request = Request(ids, settings, sink, scope, deadline)

    async def __aenter__(self) -> Generation:
        self.engine.submit(self.request)
        return self

    async def __aexit__(self, *_unused) -> None:
        if not self.request.finish_reason:
            self.engine.cancel(self.request)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            piece = await self.pieces.get()
            yield piece
            if piece.finish_reason:
                return
