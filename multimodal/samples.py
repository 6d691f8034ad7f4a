"""What a model that sees and hears is trained on: conversations whose turns hold text, pictures and sounds, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Picture:
    """A picture as the model sees it.

    Attributes:
        pixels: (image_size, image_size, 3) uint8, red green blue.
        said: what there is to say of it, where that is known and not the answer that it is asked for.
    """

    pixels: np.ndarray
    said: str = ""


@dataclass(frozen=True)
class Sound:
    """A sound as the model hears it.

    Attributes:
        wave: (n,) float32 at audio_rate, one channel, within -1 to 1.
        said: the words in it, where they are known and not the answer that it is asked for.
    """

    wave: np.ndarray
    said: str = ""


Part = str | Picture | Sound


@dataclass(frozen=True)
class Turn:
    """What one side said or showed: `system`, `user` or `assistant`; what the assistant says is what is learned."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sample:
    """One row of data: a conversation, or (without turns) a plain text of which every token is learned.

    Attributes:
        source: the part of the data that it belongs to, such as `captions` or the path that --data named.
    """

    source: str
    turns: tuple[Turn, ...] = ()
    text: str = ""

    @property
    def media(self) -> list[Picture | Sound]:
        """Its pictures and sounds, in the order in which they stand."""
        return [part for turn in self.turns for part in turn.parts if not isinstance(part, str)]
