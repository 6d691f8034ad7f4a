"""The bridge between the engine's thread and asyncio: every piece comes over, whenever it rings."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from inference.request import Piece, Settings
from server.bridge import Generation


def test_a_piece_that_rings_after_it_was_taken_ends_no_text():
    """The engine's thread adds a piece, the loop takes it, and only then the thread gets to ring for it."""

    async def listen() -> list[list[str]]:
        generation = Generation(SimpleNamespace(), [1], Settings(), "anybody")
        heard = []
        generation.request.sink(Piece("a"))
        async for came in generation:
            heard.append([piece.text for piece in came])
            if came[-1].text == "a":
                generation.bell.set()  # late, with nothing to take
                asyncio.get_running_loop().call_later(0.2, generation.request.sink, Piece("b", finish_reason="length"))
        return heard

    assert asyncio.run(listen()) == [["a"], ["b"]]
