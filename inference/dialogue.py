"""A conversation as the text that a model goes on from.

A checkpoint that was taught to chat brings its own template. A base model knows none: it gets a transcript, which it
continues as it would continue any dialogue in a book.
"""

from __future__ import annotations

import bisect
import functools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from config import UserError
from inference.chat_template import fill
from tokenizer import Tokenizer

NAMES = {"user": "User: ", "assistant": "Assistant: ", "system": "", "developer": ""}  # as a transcript has them
ANSWER = "Assistant:"  # the model goes on from here
NEXT_TURN = "\nUser:"  # where a transcript's answer ends
FOR_ANSWER = 4  # a quarter of a full block is left for the answer


@dataclass(frozen=True)
class Message:
    """One thing that was said: by `system`, `developer`, `user` or `assistant`.

    Attributes:
        content: text, or text, pictures and sounds in the order in which they were given.
    """

    role: str
    content: str | tuple[Any, ...]

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def media(self) -> list[Any]:
        """Its pictures and sounds."""
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass(frozen=True)
class Prompt:
    """What the engine is given for a conversation.

    Attributes:
        ids: the tokens.
        stop: texts that end the answer, beside those that the request names.
        plain: a transcript, so that the answer begins with the space after `Assistant:`.
        dropped: how many of the oldest messages did not fit.
        media: the pictures and sounds whose places are in the ids, in order.
    """

    ids: list[int]
    stop: tuple[str, ...]
    plain: bool
    dropped: int
    media: tuple[Any, ...] = ()


class Chat:
    """How one model is talked to.

    Args:
        template: the checkpoint's own, in jinja2; none for a base model.
        documents: every text of the corpus began after an end-of-text token, and so does a transcript.
        places: the ids that stand for a picture or a sound, of a model that takes them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str = "",
        documents: bool = False,
        places: Callable[[Any], list[int]] | None = None,
    ):
        self.tokenizer, self.template, self.documents, self.places = tokenizer, template, documents, places

    def prompt(self, messages: list[Message], block_size: int, answer: int | None = None) -> Prompt:
        """The conversation, less the oldest turns where it would leave too little of the block to the answer.

        What the system says first and the last turn always stay, so the result may still be longer than the block.

        Args:
            answer: tokens that the answer may have; None is as many as fit.

        Raises:
            UserError: when the template does not take these messages.
        """
        head, turns = split(messages)
        share = block_size // FOR_ANSWER
        room = block_size - (share if answer is None else min(answer, share))

        def kept(dropped: int) -> list[Message]:
            return head + [message for turn in turns[dropped:] for message in turn]

        @functools.cache
        def without(dropped: int) -> list[int]:
            return self.ids(kept(dropped))

        def fits(dropped: int) -> bool:
            return len(without(dropped)) <= room

        last = max(0, len(turns) - 1)
        first = 0 if fits(0) else min(last, bisect.bisect_left(range(last), True, lo=1, key=fits))
        dropped = sum(map(len, turns[:first]))
        media = tuple(medium for message in kept(first) for medium in message.media)
        return Prompt(without(first), () if self.template else (NEXT_TURN,), not self.template, dropped, media)

    def ids(self, messages: list[Message]) -> list[int]:
        """The tokens of these messages, up to where the assistant speaks next.

        Raises:
            UserError: when the template does not take these messages, or not what they show.
        """
        mark = secrets.token_hex(16)  # where a picture or a sound stands, until the text is cut into tokens
        said = [
            {"role": message.role, "content": "".join(part if isinstance(part, str) else mark for part in message.parts)}
            for message in messages
        ]
        pieces = fill(self.template, said, self.tokenizer) if self.template else [transcript(said)]
        shown = [medium for message in messages for medium in message.media]
        if sum(piece.count(mark) for piece in pieces) != len(shown):
            raise UserError("the checkpoint's chat template leaves messages out, or repeats them: it takes no pictures or sounds there.")
        media, named = iter(shown), {name: i for i, name in self.tokenizer.names.items()}
        ids = self.encode(pieces[0], mark, media)
        for name, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            ids += [named[name], *self.encode(piece, mark, media)]
        starts = self.documents and not self.template  # a template says itself how a chat begins
        return [self.tokenizer.eot, *ids] if starts or not ids else ids

    def encode(self, text: str, mark: str, media: Iterator[Any]) -> list[int]:
        """The tokens of a text, the next picture's or sound's places wherever the mark stands."""
        first, *others = text.split(mark)
        ids = self.tokenizer.encode(first).tolist()
        for other in others:
            ids += [*self.places(next(media)), *self.tokenizer.encode(other).tolist()]
        return ids


def split(messages: list[Message]) -> tuple[list[Message], list[list[Message]]]:
    """What is said before the conversation, and its turns: each a user's message with the answers to it."""
    start = next((n for n, message in enumerate(messages) if message.role in ("user", "assistant")), len(messages))
    turns: list[list[Message]] = []
    for message in messages[start:]:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return messages[:start], turns


def transcript(messages: list[dict[str, str]]) -> str:
    """The conversation (`role` and `content` of each message) as a dialogue that waits for the assistant's line."""
    return "".join(f"{NAMES[message['role']]}{message['content']}\n" for message in messages) + ANSWER


class Trim:
    """Takes the white space off the beginning of a text that comes in pieces.

    Args:
        on: False leaves the text as it is.
    """

    def __init__(self, on: bool):
        self.on = on

    def __call__(self, piece: str) -> str:
        piece = piece.lstrip() if self.on else piece
        self.on = self.on and not piece
        return piece
