"""The endurance test of the server judges right: a text that breaks off counts as lost, and what grows is named."""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks import soak
from benchmarks.client import Lost, stream

WHOLE = [{"text": "a"}, {"text": "b", "usage": {"completion_tokens": 2}}]
MIB = 2**20


async def told(events: list[dict], done: bool = True, status: str = "200 OK") -> int:
    """How many events the client sees of a server that sends these for a text of two tokens."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        writer.writelines(f"data: {json.dumps(event)}\n\n".encode() for event in events)
        writer.write(b"data: [DONE]\n\n" if done else b"")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return len([event async for event in stream(port, "Once", 2)])


def test_a_whole_text_is_not_lost():
    assert asyncio.run(told(WHOLE)) == 2


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"events": WHOLE, "done": False}, r"without \[DONE\]"),
        ({"events": WHOLE[:1]}, "None of 2 tokens"),
        ({"events": [{"text": "a", "usage": {"completion_tokens": 1}}]}, "1 of 2 tokens"),
        ({"events": [WHOLE[0], {"error": {"message": "the server failed"}}]}, "the server failed"),
        ({"events": [], "status": "503 Service Unavailable"}, "503"),
        ({"events": [], "done": False}, r"without \[DONE\]"),
    ],
    ids=["cut off", "no usage", "too few tokens", "an error", "refused", "nothing"],
)
def test_a_text_that_did_not_come_as_it_should_is_lost(answer, why):
    with pytest.raises(Lost, match=why):
        asyncio.run(told(**answer))


def test_what_was_lost_or_grew_is_named():
    def figures(*mib: int, opened: int = 10, lost: int = 0) -> dict[str, int]:
        return {"lost_sessions": 0, "failed": lost, **soak.growth(*(soak.Usage(n * MIB, opened if n == mib[-1] else 10) for n in mib))}

    assert soak.broken(figures(400, 420, 440, 520, 530)) == []  # the first half of the load may move memory about
    assert soak.broken(figures(400, 420, 440, 520, 540)) == ["bytes_grown_in_the_second_half is 20,971,520: more than 16,777,216"]
    assert [text.split()[0] for text in soak.broken(figures(400, 440, 480, 490, 491, opened=19, lost=1))] == [
        "failed", "descriptors_grown", "bytes_grown_by_aborts", "bytes_grown_by_sessions"
    ]  # fmt: skip
