"""The checkpoints of a run, as the loop sees them: save the last, the best and the numbered ones; find what to go on from.

Here for a model that every rank holds whole: single files, and only the first rank needs to see them. `training/folders.py` has
the same for a model in shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

import checkpoint
from config import UserError
from training.distributed import Ranks

Say = Callable[[str], Any]
SHARDS = ".dcp"  # how the name of a checkpoint in shards ends, which is a folder


def in_shards(folder: Path) -> bool:
    """Whether a run's checkpoints are folders of shards."""
    return any(folder.glob(f"*{SHARDS}"))


def step_and_loss(path: Path) -> tuple[int, float] | None:
    """Of the weights in a file; nothing where it is not there or damaged."""
    with contextlib.suppress(OSError, UserError):
        provenance = checkpoint.load(path)["provenance"]
        return provenance["step"], provenance["val_loss"]
    return None


class Files:
    """Single files, which the first rank writes and reads. Every rank calls every method, at the same time as the others."""

    def __init__(self, folder: Path, ranks: Ranks):
        self.folder, self.ranks = folder, ranks

    def save_last(self, content: dict[str, Any]) -> None:
        if self.ranks.first:
            checkpoint.save_last(self.folder, content)

    def save_best(self, content: dict[str, Any]) -> None:
        if self.ranks.first:
            checkpoint.write(self.folder / checkpoint.BEST, content)

    def save_numbered(self, step: int, content: dict[str, Any], keep: int) -> None:
        if self.ranks.first:
            checkpoint.save_numbered(self.folder, step, content, keep)

    def newest(self, say: Say) -> tuple[dict[str, Any], Path]:
        """What the run goes on from, and where it was found; damaged files are named and passed over.

        Raises:
            UserError: when there is nothing.
        """
        return self.ranks.broadcast(lambda: checkpoint.load_newest(self.folder, say))

    def fill(self, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """The content with its tensors, where `newest` left them on the disk."""
        return content

    def last_two(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The two newest states, the older one first."""
        names = (checkpoint.PREVIOUS, checkpoint.LAST)
        return self.ranks.broadcast(lambda: tuple(checkpoint.load(self.folder / name) for name in names))

    def best(self) -> dict[str, Tensor] | None:
        """The best weights so far, if any were saved."""
        path = self.folder / checkpoint.BEST
        return self.ranks.broadcast(lambda: checkpoint.load(path)["model"] if path.exists() else None)

    def best_so_far(self) -> tuple[int, float] | None:
        """The step of the best weights and their loss; nothing where none were saved, or they cannot be read."""
        return self.ranks.broadcast(lambda: step_and_loss(self.folder / checkpoint.BEST))
