"""Checkpoints: one file that rebuilds its own model, written whole or not at all, and verified before it is used.

A file is what `torch.save` writes, a zip archive, with a SHA-256 of everything before it in the archive's comment. It holds plain
values and tensors only and is read with `weights_only=True`, so that a file from a stranger cannot run code.

    model        the weights
    config       what `model.build` needs
    tokenizer    what `tokenizer.from_dict` needs
    provenance   run, step, losses, data hash, versions
    training     optimizer, random states, position: what resuming needs (not in best_model.pt)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tokenizer as tokenizers
from config import ROOT, UserError
from model import build, describe
from tokenizer import Tokenizer

FORMAT = 1
MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes of the comment
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best_model.pt"


class CorruptCheckpoint(UserError):
    """A file that is not what was written."""


class OtherVersion(UserError):
    """A whole file of this toolkit, in a format that this version does not read."""


# ---- one file


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint: to a temporary file beside it, synced, then renamed, so that `path` is always a whole file.

    Raises:
        UserError: when there is no room or no permission; what stood at `path` is untouched, and nothing is left behind.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
        seal(fresh)
        os.replace(fresh, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise UserError(
            f"{path} could not be written ({reason(error, path.parent)}): make room or choose another --out_dir. The checkpoint before it is intact."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def reason(error: Exception, folder: Path) -> str:
    """Why a file could not be written. torch, numpy and safetensors have words of their own for a full disk."""
    if told := getattr(error, "strerror", None):
        return told
    full = shutil.disk_usage(folder).free < 2**20
    return "No space left on device" if full else str(error).splitlines()[0]


def seal(path: Path) -> None:
    """Puts the SHA-256 of a zip archive into its comment, and syncs it to the disk."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)  # the archive ends with the length of its comment, which is 0
        file.write(struct.pack("<H", COMMENT))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(MARK + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def verify(path: Path) -> None:
    """Compares a file with its checksum.

    Raises:
        CorruptCheckpoint: naming the file.
        UserError: when there is no such file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            hasher = hashlib.sha256()
            left = size - COMMENT
            while left > 0 and (block := file.read(min(left, 2**20))):
                hasher.update(block)
                left -= len(block)
            comment = file.read()
    except FileNotFoundError as error:
        mend = "train one with python train_cli.py --preset quick, or pass another path."
        if any(path.parent.glob("*.dcp")):
            mend = f"python train_cli.py consolidate {path.parent} makes it from the shards there."
        raise UserError(f"there is no checkpoint at {path}: {mend}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if comment != MARK + hasher.hexdigest().encode():
        raise CorruptCheckpoint(
            f"{path} is damaged or no checkpoint of this toolkit: its {size} bytes do not match their checksum. Use another copy of it."
        )


def load(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a verified checkpoint.

    Raises:
        CorruptCheckpoint: for a file that is damaged, or from another program.
        OtherVersion: for one of another format.
    """
    path = Path(path)
    verify(path)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whole, but not ours: pickle, zip and key errors of many kinds
        raise CorruptCheckpoint(
            f"{path} holds something else than plain weights ({type(error).__name__}): it is refused."
        ) from error
    written = content.get("format") if isinstance(content, dict) else None
    if not isinstance(written, int):
        raise CorruptCheckpoint(f"{path} names no checkpoint format, so it is no checkpoint of this toolkit: it is refused.")
    if written != FORMAT:
        raise OtherVersion(
            f"{path} has checkpoint format {written}; this version reads {FORMAT}: use the version of the toolkit that wrote it."
        )
    return content


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[nn.Module, Tokenizer, dict]:
    """A model ready to evaluate, its tokenizer, and its provenance.

    Raises:
        UserError: also for a model that another version of the toolkit made, and this one cannot.
    """
    content = load(resolve(path), device)
    model = build(content["config"]).to(device)
    model.load_state_dict(content["model"])
    return model.eval(), tokenizers.from_dict(content["tokenizer"]), content["provenance"]


def content_of(
    model: nn.Module, tokenizer: Tokenizer, provenance: dict, training: dict | None = None, weights: dict | None = None
) -> dict[str, Any]:
    """What goes into a file; without `training` it can be used, but not resumed. `weights` are others than the model's own."""
    content = {
        "model": model.state_dict() if weights is None else weights,
        "config": describe(model),
        "tokenizer": tokenizer.to_dict(),
        "provenance": {**provenance, "code": code_version(), "torch": str(torch.__version__)},
    }
    return content if training is None else {**content, "training": training}


@functools.cache
def code_version() -> str:
    """The commit of this checkout, or `unknown`."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


# ---- the files of a run


def save_last(folder: Path, content: dict[str, Any]) -> None:
    """Writes last.pt and keeps the one before as previous.pt, if it is whole. There is a whole checkpoint at every instant."""
    last, previous = folder / LAST, folder / PREVIOUS
    incoming = folder / f"{LAST}.new"
    write(incoming, content)
    if last.exists():
        with contextlib.suppress(CorruptCheckpoint):
            verify(last)
            os.replace(last, previous)
    os.replace(incoming, last)
    sync_folder(folder)


def save_numbered(folder: Path, step: int, content: dict[str, Any], keep: int) -> None:
    """Writes step_N.pt; once it verifies, it and those before it stay, `keep` in all. What is newer was undone by a rewind or a resume."""
    path = folder / f"step_{step:08d}.pt"
    write(path, content)
    verify(path)
    found = numbered(folder)
    behind = found.index(path) + 1
    for other in [*found[: max(0, behind - keep)], *found[behind:]]:
        other.unlink()


def numbered(folder: Path) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*.pt"))


def resumable(folder: Path) -> Iterator[Path]:
    """The files of a run that resuming may use, newest first. A save that was killed between its renames counts."""
    for name in (f"{LAST}.new", LAST, PREVIOUS):
        if (folder / name).exists():
            yield folder / name
    yield from reversed(numbered(folder))


def load_newest(folder: Path, warn=print) -> tuple[dict[str, Any], Path]:
    """The newest checkpoint of a run that verifies; damaged ones are named and passed over.

    Raises:
        UserError: when none is left.
        OtherVersion: where the newest is of another format; the one before it would lose what that version trained.
    """
    for path in resumable(folder):
        try:
            content = load(path)
            if "training" in content:
                # the first files did not say what size of vocabulary was asked for: they asked for the one they have
                content["provenance"].setdefault("asked_vocab_size", content["config"]["vocab_size"])
                return content, path
        except CorruptCheckpoint as error:
            warn(f"{error} Going on from the one before it.")
    raise UserError(f"{folder} holds no checkpoint to resume from: start the run without --resume.")


def clean_temporaries(folder: Path) -> list[Path]:
    """Removes what a killed save left behind. Only call it while holding the run's lock."""
    left = list(folder.glob("*.tmp"))
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return left


def publish(folder: Path) -> None:
    """Points best_model.pt and last.pt of the folder above at this run: relative links, or copies where links fail."""
    for name in (BEST, LAST):
        target, link = folder / name, folder.parent / name
        if not target.exists():
            continue
        fresh = link.with_name(f"{name}.{os.getpid()}.link")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        try:
            fresh.symlink_to(Path(folder.name) / name)
        except (OSError, NotImplementedError):
            shutil.copyfile(target, fresh)
        os.replace(fresh, link)


def resolve(path: Path | str) -> Path:
    """The file that a path means: itself, or the best (else the last) of a run's folder. A default path hangs on ROOT."""
    path = Path(path).expanduser()
    if not path.is_absolute() and not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    if path.is_dir():
        return path / BEST if (path / BEST).exists() else path / LAST
    return path


def average(paths: list[Path]) -> dict[str, Any]:
    """The mean of several checkpoints' weights (Izmailov et al. 2018, arXiv:1803.05407), with the newest one's everything else.

    Raises:
        UserError: when they are not of one model.
    """
    contents = [weights_of(path) for path in paths]
    newest = max(contents, key=lambda content: content["provenance"]["step"])
    for path, content in zip(paths, contents, strict=True):
        if content["config"] != newest["config"] or content["tokenizer"] != newest["tokenizer"]:
            raise UserError(
                f"{path} is another model than the newest of those to average: average checkpoints of one run."
            )
    newest["model"] = {
        name: torch.stack([content["model"][name].double() for content in contents]).mean(0).to(weight.dtype)
        for name, weight in newest["model"].items()
    }
    newest["provenance"] |= {
        "averaged": [content["provenance"]["step"] for content in contents], "val_loss": None, "val_bpb": None,  # nobody scored this one
    }  # fmt: skip
    return newest


def weights_of(path: Path) -> dict[str, Any]:
    """A checkpoint without what only training needs, which is twice the weights again."""
    content = load(path)
    content.pop("training", None)
    return content


def sync_folder(folder: Path) -> None:
    """Makes a rename durable, where the system can sync folders (Windows cannot)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
