"""The checkpoints of a model in shards: folders, which all ranks write and read at once.

Such a folder, `last_00000500.dcp` for one, holds

    content.pt       what is no shard: an ordinary sealed file, with the SHA-256 of each other file in the folder
    __0_0.distcp     the shards of the first rank, as torch.distributed.checkpoint writes them; and so on
    .metadata        which piece of which tensor lies where

It is read by any number of ranks; `consolidate` makes an ordinary file of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import socket
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.tensor import DTensor, Shard, empty

import checkpoint
from checkpoint import CorruptCheckpoint
from config import UserError
from model import build
from training import calibrate
from training.build import hollow
from training.distributed import Ranks, is_sharded
from training.files import SHARDS, Files, Say, step_and_loss
from training.sharding import mesh_of

PLAIN, INDEX = "content.pt", ".metadata"
MARK = "shard of"  # stands in content.pt where a shard was


# ---- a content in two: shards, and the rest


def split(tree: Any, path: str = "") -> tuple[dict[str, DTensor], Any]:
    """The shards of a nested content by their paths, and the content with marks in their places."""
    if is_sharded(tree):
        return {path: tree}, {MARK: path}
    if not isinstance(tree, dict | list | tuple):
        return {}, tree
    found, rest = {}, {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        inside, rest[key] = split(value, f"{path}.{key}" if path else str(key))
        found |= inside
    return found, rest if isinstance(tree, dict) else type(tree)(rest.values())


def marks(tree: Any) -> list[str]:
    """The paths of the shards that are missing in a content."""
    if isinstance(tree, dict) and tree.keys() == {MARK}:
        return [tree[MARK]]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [path for value in values for path in marks(value)]


def join(tree: Any, found: dict[str, Tensor]) -> Any:
    """A content with its tensors back in their places."""
    if isinstance(tree, dict):
        return found[tree[MARK]] if tree.keys() == {MARK} else {key: join(value, found) for key, value in tree.items()}
    return type(tree)(join(value, found) for value in tree) if isinstance(tree, list | tuple) else tree


# ---- one folder


DESCRIBES = {  # by module, all that an index may name
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "StorageMeta", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64"},
    "pathlib": {"PosixPath"}, "pathlib._local": {"PosixPath"},
}  # fmt: skip


class Index(pickle.Unpickler):
    """Reads `.metadata`, and makes nothing but what describes tensors: any other pickle could run a stranger's code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in DESCRIBES.get(module, ()):
            raise CorruptCheckpoint(f"a {INDEX} names {module}.{name}, which describes no tensor: it is refused.")
        return super().find_class(module, name)


class Reader(dcp.FileSystemReader):
    """torch's reader, but for how it reads the index."""

    def read_metadata(self, *_unused: Any, **_also: Any) -> Metadata:
        with open(Path(self.path) / INDEX, "rb") as file:
            found = Index(file).load()
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


def digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def damaged(path: Path, files: dict[str, str]) -> list[str]:
    """Those of a folder's files that are not what was written."""
    return [name for name, was in files.items() if not (path / name).is_file() or digest(path / name) != was]


def read(content: Any, path: Path, make: Callable[[torch.Size, torch.dtype], Tensor], alone: bool = False) -> Any:
    """A content with its tensors from the folder at `path`; `make(shape, dtype)` is where each is read into.

    Raises:
        CorruptCheckpoint: where the folder's index does not describe them.
    """
    reader = Reader(path)
    known = reader.read_metadata().state_dict_metadata
    found = {}
    for key in marks(content):
        if not isinstance(known.get(key), TensorStorageMetadata):
            raise CorruptCheckpoint(f"{path} lacks the tensor {key}: use another copy of it.")
        found[key] = make(known[key].size, known[key].properties.dtype)
    if found:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what `alone` asks for
            dcp.load(found, storage_reader=reader, no_dist=alone)
    return join(content, found)


def remove(path: Path) -> None:
    """Deletes a folder so that it is never seen half."""
    doomed = path.with_name(f"{path.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def saved(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of a kind (`last`, `best`, `step`) in a run's folder, oldest first."""
    return sorted(path for path in folder.glob(f"{kind}_*{SHARDS}") if (path / PLAIN).exists())


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name: `last_00000500.dcp`, or `last_00000500-1a2b3c4d.dcp` where it was set aside."""
    return int(path.name.removesuffix(SHARDS).split("_")[1].split("-")[0])


def resumable(folder: Path) -> list[Path]:
    """The checkpoints of a run that resuming may use, newest first."""
    return [path for kind in ("last", "step") for path in reversed(saved(folder, kind))]


def steps_done(folder: Path) -> int:
    """How far the run in a folder is, without a look at its shards."""
    for path in resumable(folder):
        with contextlib.suppress(CorruptCheckpoint):
            return checkpoint.load(path / PLAIN)["provenance"]["step"]
    return 0


# ---- the files of a run


class Folders(Files):
    """Folders, which all ranks write and read at once: they must all see the same `--out_dir`."""

    def __init__(self, folder: Path, ranks: Ranks):
        super().__init__(folder, ranks)
        self.passed_over: set[Path] = set()  # damaged: none of these is kept in the place of a whole one

    def save_last(self, content: dict[str, Any]) -> None:
        self.save("last", content, keep=2)

    def save_best(self, content: dict[str, Any]) -> None:
        self.save("best", content, keep=1)

    def save_numbered(self, step: int, content: dict[str, Any], keep: int) -> None:
        self.save("step", content, keep)

    def save(self, kind: str, content: dict[str, Any], keep: int) -> None:
        """Writes a checkpoint beside the others of its kind, of which the newest `keep` stay once it is whole.

        Raises:
            UserError: on every rank, when one could not write; what was there is untouched.
        """
        path = self.folder / f"{kind}_{content['provenance']['step']:08d}{SHARDS}"
        fresh = path.with_name(f"{path.name}.tmp")
        shards, rest = split(content)
        try:
            self.together(path, lambda: self.ranks.first and empty_folder(fresh))
            written = self.together(path, lambda: self.write_shards(fresh, shards))
            rest["files"] = {name: hashed for part in written for name, hashed in part.items()}
            self.together(path, lambda: self.ranks.first and self.finish(fresh, path, rest, keep))
        finally:
            if self.ranks.first:
                shutil.rmtree(fresh, ignore_errors=True)

    def write_shards(self, fresh: Path, shards: dict[str, DTensor]) -> dict[str, str]:
        """This rank's files, synced to the disk, with their SHA-256."""
        dcp.save(shards, storage_writer=dcp.FileSystemWriter(fresh))
        mine = list(fresh.glob(f"__{self.ranks.rank}_*"))
        if self.ranks.first:
            mine.append(fresh / INDEX)
        return {file.name: digest(file) for file in mine}

    def finish(self, fresh: Path, path: Path, rest: dict[str, Any], keep: int) -> None:
        """Gives a whole folder its name, and takes the old ones away."""
        checkpoint.write(fresh / PLAIN, rest)
        if path.exists():  # the same step, after a resume or a rewind; it sorts before the new one
            os.replace(path, path.with_name(f"{path.name.removesuffix(SHARDS)}-{uuid.uuid4().hex[:8]}{SHARDS}"))
        os.replace(fresh, path)
        checkpoint.sync_folder(self.folder)
        self.passed_over.discard(path)
        others = [each for each in saved(self.folder, path.name.split("_")[0]) if each != path]
        older = {step_of(each): each for each in others if each not in self.passed_over}  # one of each step
        steps = sorted(step for step in older if step < step_of(path))  # what is newer was undone by a rewind or a resume
        for each in set(others) - {older[step] for step in steps[max(0, len(steps) - keep + 1) :]}:
            remove(each)

    def together(self, path: Path, work: Callable[[], Any]) -> list[Any]:
        """Each rank's result of some work on files, in order of rank.

        Raises:
            UserError: on every rank, when one failed.
        """
        result, failure = None, ""
        try:
            result = work()
        except UserError as error:
            failure = str(error)
        except (OSError, RuntimeError, dcp.CheckpointException) as error:
            failure = (
                f"{path} could not be written ({reason(error)}): make room or choose another --out_dir. "
                "The checkpoint before it is intact."
            )
        told = self.ranks.gather((result, failure))
        for _, failure in told:
            if failure:
                raise UserError(failure)
        return [result for result, _ in told]

    def newest(self, say: Say) -> tuple[dict[str, Any], Path]:
        for path in self.ranks.broadcast(lambda: resumable(self.folder)):
            try:
                return self.verified(path), path
            except CorruptCheckpoint as error:
                self.passed_over.add(path)
                say(f"{error} Going on from the one before it.")
        raise UserError(f"{self.folder} holds no checkpoint to resume from: start the run without --resume.")

    def verified(self, path: Path) -> dict[str, Any]:
        """The plain part of a checkpoint, whose files are as they were written; the ranks share the work of looking.

        Raises:
            CorruptCheckpoint: on every rank, naming the folder and a file.
        """
        content = self.ranks.broadcast(lambda: checkpoint.load(path / PLAIN))
        share = list(content["files"].items())[self.ranks.rank :: self.ranks.world]
        found = [name for part in self.ranks.gather(damaged(path, dict(share))) for name in part]
        if found:
            raise CorruptCheckpoint(f"{path} is damaged: its {found[0]} does not match its checksum.")
        return content

    def fill(self, content: dict[str, Any], path: Path) -> dict[str, Any]:
        mesh = mesh_of(self.ranks)
        return read(content, path, lambda size, dtype: empty(size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)]))

    def last_two(self) -> tuple[dict[str, Any], dict[str, Any]]:
        paths = self.ranks.broadcast(lambda: saved(self.folder, "last")[-2:])
        if len(paths) < 2:
            raise UserError(f"{self.folder} holds no two states to compare: train on and try again.")
        return tuple(self.fill(self.verified(path), path) for path in paths)

    def best(self) -> dict[str, Tensor] | None:
        paths = self.ranks.broadcast(lambda: saved(self.folder, "best")[-1:])
        if not paths:
            return None
        weights = {"model": self.verified(paths[0])["model"]}
        return self.fill(weights, paths[0])["model"]

    def best_so_far(self) -> tuple[int, float] | None:
        return self.ranks.broadcast(lambda: next((step_and_loss(path / PLAIN) for path in saved(self.folder, "best")[-1:]), None))


def empty_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def reason(error: BaseException) -> str:
    """Why something could not be written, in a few words; of the ranks' errors the first."""
    if isinstance(error, dcp.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]


def require_one_folder(folder: Path, ranks: Ranks) -> None:
    """Makes sure that the ranks write into one folder, and not each host into one of its own.

    Raises:
        UserError: on every rank, naming the hosts that see another.
    """
    sign = ranks.broadcast(lambda: f".seen-{uuid.uuid4().hex}.tmp")
    if ranks.first:
        (folder / sign).touch()
    ranks.barrier()
    seen = ranks.gather((socket.gethostname(), (folder / sign).exists()))
    if ranks.first:
        (folder / sign).unlink()
    apart = sorted({host for host, sees in seen if not sees})
    if apart:
        raise UserError(
            f"{', '.join(apart)} and {seen[0][0]} do not see the same {folder}: with --fsdp every host writes its shards, "
            "so pass an --out_dir that all of them share."
        )


# ---- back to a single file


def consolidate(path: Path, out: Path) -> None:
    """Writes the weights of a checkpoint in shards as an ordinary one, which can be used, but not resumed.

    Raises:
        CorruptCheckpoint: for a folder that is not what was written.
        UserError: when this machine's memory does not hold the weights.
    """
    content = checkpoint.load(path / PLAIN)
    if found := damaged(path, content["files"]):
        raise CorruptCheckpoint(f"{path} is damaged: its {found[0]} does not match its checksum. Use another copy of it.")
    content = {name: content[name] for name in ("model", "config", "tokenizer", "provenance")}
    require_memory(path, content)
    content = read(content, path, lambda size, dtype: torch.empty(size, dtype=dtype), alone=True)
    with hollow():
        model = build(content["config"])
    found = model.load_state_dict(content["model"], strict=False, assign=True)  # a tied head has no file of its own
    if found.unexpected_keys or any(param.is_meta for param in model.parameters()):
        raise CorruptCheckpoint(f"{path} holds other weights than its model has: use another copy of it.")
    checkpoint.write(out, {**content, "model": model.state_dict()})


def require_memory(path: Path, content: dict[str, Any]) -> None:
    """Raises a UserError where the weights of a checkpoint are larger than what is free."""
    known = Reader(path).read_metadata().state_dict_metadata
    needed = sum(known[key].size.numel() * known[key].properties.dtype.itemsize for key in marks(content))
    free = calibrate.free_memory(torch.device("cpu"))
    if needed > 0.9 * free:
        raise UserError(
            f"{path} holds {needed / 2**30:.1f} GiB of weights and this machine has {free / 2**30:.1f} GiB of memory free: "
            f"run python train_cli.py consolidate {path.parent} where there is more."
        )


def consolidate_run(folder: Path, numbered: bool = False) -> list[Path]:
    """Writes best_model.pt and last.pt of a run from its newest shards; with `numbered`, step_N.pt as well.

    Raises:
        UserError: when there are none, and as `consolidate` does.
    """
    newest = {checkpoint.BEST: saved(folder, "best")[-1:], checkpoint.LAST: saved(folder, "last")[-1:]}
    pairs = [(path, name) for name, paths in newest.items() for path in paths]
    pairs += [(path, f"{path.stem}.pt") for path in saved(folder, "step") if numbered]
    for path, name in pairs:
        consolidate(path, folder / name)
    if not pairs:
        raise UserError(f"{folder} holds no checkpoint in shards: train one with --fsdp, or pass another path.")
    return [folder / name for _, name in pairs]
