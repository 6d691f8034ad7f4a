"""Between asyncio and the engine's thread: requests go over as they are, pieces come back, some steps' worth at a time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from inference.engine import Engine
from inference.request import Piece, Request, Settings

PACE, SLOWEST = 0.03, 0.1  # seconds between two pieces of a text: smooth to the eye, and a fraction of the work of one piece a token
PIECES = 220  # a second, for all texts together, as long as SLOWEST allows: each takes the interpreter from the engine, and so time from all


class Generation:
    """The pieces of one request, as they come. Leaving the `async with` gives its slot back, finished or not.

        async with Generation(engine, ids, settings, scope=caller.name) as generation:
            async for came in generation: piece = joined(came)

    The first piece and the last come at once; between them, those of `pace` seconds travel together.

    Raises, on entering:
        Busy: when the queue is full.
        NotReady: when the engine is draining.
        UserError: for a prompt that the engine cannot go on from.
    """

    def __init__(
        self,
        engine: Engine,
        ids: list[int],
        settings: Settings,
        scope: str,
        seconds: float = float("inf"),
        media: Sequence[Any] = (),
    ):
        self.engine, self.came, self.rung = engine, deque(), False
        self.bell, self.over = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def sink(piece: Piece) -> None:  # called on the engine's thread
            self.came.append(piece)
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                if piece.finish_reason:
                    loop.call_soon_threadsafe(self.over.set)
                if not self.rung:  # to wake the loop costs more than what it is woken for
                    self.rung = True
                    loop.call_soon_threadsafe(self.bell.set)

        deadline = loop.time() + seconds  # the loop's clock is time.monotonic
        self.request = Request(ids, settings, sink, scope, deadline, media)

    async def __aenter__(self) -> Generation:
        self.engine.submit(self.request)
        return self

    async def __aexit__(self, *_unused) -> None:
        if not self.request.finish_reason:
            self.engine.cancel(self.request)

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        while True:
            await self.bell.wait()
            self.bell.clear()
            self.rung = False  # before the look at what came: what comes after it rings again
            came = [self.came.popleft() for _ in range(len(self.came))]
            if not came:  # the last look took a piece that rang only after it
                continue
            yield came
            if came[-1].finish_reason:
                return
            # The texts of all clients go out on the same beat: the loop wakes once for them. The end is not kept waiting.
            beat = pace(len(self.engine.scheduler.running))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), beat - time.monotonic() % beat)


def pace(texts: int) -> float:
    """Seconds between two pieces of each of so many texts."""
    return min(SLOWEST, max(PACE, texts / PIECES))


def joined(pieces: list[Piece]) -> Piece:
    """Pieces that follow each other, as one."""
    if len(pieces) == 1:
        return pieces[0]
    return dataclasses.replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        prompt=tuple(token for piece in pieces for token in piece.prompt),
    )
