"""The bridge between the engine's thread and asyncio: every piece comes over, whenever it rings."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from inference.request import Piece, Settings
from server.bridge import PACE, SLOWEST, Generation, pace


def engine(texts: int) -> SimpleNamespace:
    """What a generation asks of an engine in which so many texts run."""
    return SimpleNamespace(scheduler=SimpleNamespace(running=[None] * texts))


def test_a_piece_that_rings_after_it_was_taken_ends_no_text():
    """The engine's thread adds a piece, the loop takes it, and only then the thread gets to ring for it."""

    async def listen() -> list[list[str]]:
        generation = Generation(engine(1), [1], Settings(), "anybody")
        heard = []
        generation.request.sink(Piece("a"))
        async for came in generation:
            heard.append([piece.text for piece in came])
            if came[-1].text == "a":
                generation.bell.set()  # late, with nothing to take
                asyncio.get_running_loop().call_later(0.2, generation.request.sink, Piece("b", finish_reason="length"))
        return heard

    assert asyncio.run(listen()) == [["a"], ["b"]]


def test_the_more_texts_run_the_more_tokens_travel_together():
    """Half a second of a text that gets a token each 5 ms: how many times a client hears of it."""

    async def listen(texts: int) -> int:
        generation = Generation(engine(texts), [1], Settings(), "anybody")

        async def write() -> None:
            for _ in range(100):
                generation.request.sink(Piece("a"))
                await asyncio.sleep(0.005)
            generation.request.sink(Piece("", finish_reason="length"))

        writing = asyncio.create_task(write())
        heard = [came async for came in generation]
        await writing
        assert sum(map(len, heard)) == 101, "every piece comes over"
        return len(heard)

    alone, in_company = asyncio.run(listen(1)), asyncio.run(listen(20))
    assert in_company < 0.6 * alone
    assert pace(0) == pace(1) == PACE < pace(20) < pace(1000) == SLOWEST
