"""Text to batches: documents become token ids in memory-mapped shards, once; a batch is then a few slices of them.

On disk a split is one long stream, `eot document eot document eot ...`, cut into shards of 2^27 tokens. The batch of step k is a
pure function of (seed, k): stopping, resuming and changing the number of GPUs never change what is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

import tokenizer as tokenizers
from config import DATA, TrainConfig, UserError
from model import IGNORE
from sources import Piece, Source
from tokenizer import Tokenizer

SHARD = 2**27  # tokens in a file
VAL_BYTES = 4 * 2**20  # the largest validation text cut from a corpus that has no split of its own
KEPT = 2**26  # bytes of text that are kept in memory rather than read twice
SAMPLE_BYTES = 2**25  # text that a vocabulary is learned from, at most
SAMPLE_BYTES_A_TOKEN = 2**11  # and for each token of one whose size was asked for: a small vocabulary needs less
SAMPLE_LEAST = 2**22  # but no less than this
FEW = 200  # with fewer documents than this the split is balanced by size
PEEK = 100 * FEW  # pieces that are read to see how many documents there are
FORMAT = 1

SplitPiece = tuple[str, str, bool]  # the split, some text, and whether its document ends here


# ---- reading what is on disk


class Tokens:
    """A split's token ids, as one long array over its memory-mapped shards."""

    def __init__(self, folder: Path, split: str, dtype: str):
        files = sorted(folder.glob(f"{split}_*.bin"))
        self.shards = [np.memmap(file, dtype=dtype, mode="r") for file in files]
        self.starts = np.cumsum([0] + [len(shard) for shard in self.shards])
        index = folder / f"{split}.idx"
        self.documents = np.fromfile(index, dtype=np.int64)  # where each document's leading eot stands

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        """A slice, as int64, (stop - start,)."""
        shard = int(np.searchsorted(self.starts, span.start, side="right")) - 1
        parts, start = [], span.start
        while start < span.stop:
            offset = start - self.starts[shard]
            part = self.shards[shard][offset : offset + span.stop - start]
            parts.append(part.astype(np.int64))
            start, shard = start + len(part), shard + 1
        return np.concatenate(parts)


@dataclass
class Corpus:
    """A tokenised corpus: what the loop draws batches from.

    Attributes:
        meta: what was counted when it was made: tokens, bytes and documents of each split, skipped rows, the true entropy.
    """

    folder: Path
    tokenizer: Tokenizer
    meta: dict
    train: Tokens = field(init=False)
    val: Tokens = field(init=False)

    def __post_init__(self) -> None:
        self.train = Tokens(self.folder, "train", self.meta["dtype"])
        self.val = Tokens(self.folder, "val", self.meta["dtype"])

    @property
    def data_hash(self) -> str:
        """Names this content with this tokenizer."""
        return self.folder.name


class Batches:
    """The training batches of a corpus: `batch(k)` is a pure function of (seed, k).

    An epoch's rows are shuffled and drawn without replacement, so that every token is seen before any is seen again.
    A row begins at a document where documents are short; a document cut off at a row's end starts the next row again.
    Long texts are cut into equal rows, at a new offset in each epoch.
    """

    def __init__(self, tokens: Tokens, block_size: int, batch_size: int, seed: int):
        if len(tokens) < block_size + 1:
            raise UserError(
                f"the training text has {len(tokens)} tokens, too few for one row of block_size {block_size} and its target: "
                f"pass --block_size {max(1, len(tokens) - 1)} or less, or more text."
            )
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.starts = row_starts(len(tokens), tokens.documents, block_size)
        n_targets = len(tokens) - 1
        cuts = max(1, (n_targets + 1 - block_size) // block_size)
        self.n_rows = cuts if self.starts is None else len(self.starts)
        self.slack = n_targets - self.n_rows * block_size  # what an epoch's equal cuts leave out, at either end
        self._epoch, self._order, self._offset = -1, np.empty(0, np.int64), 0

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """This rank's share of the batch of a step: (idx, targets), each (batch_size / world, block_size) int64."""
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        rows = np.stack([self.row(n) for n in range(first, first + share)])  # (share, block_size + 1)
        pair = torch.from_numpy(rows)
        return pair[:, :-1], pair[:, 1:]

    def row(self, n: int) -> np.ndarray:
        """Row n of the endless sequence of epochs, (block_size + 1,)."""
        epoch, place = divmod(n, self.n_rows)
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._epoch, self._order = epoch, random.permutation(self.n_rows)
            self._offset = int(random.integers(self.slack + 1)) if self.starts is None else 0
        row = int(self._order[place])
        start = int(self.starts[row]) if self.starts is not None else self._offset + row * self.block_size
        return self.tokens[start : start + self.block_size + 1]


def row_starts(n_tokens: int, documents: np.ndarray, block_size: int) -> np.ndarray | None:
    """Where the rows of a corpus of short documents begin, or None where equal cuts serve as well.

    The next row starts where this one ends, or at the beginning of the document that was cut off there; the last
    row ends with the text.
    """
    if len(documents) < 2 or n_tokens / len(documents) > block_size / 2:
        return None
    starts, start = [], 0
    while start + block_size + 1 <= n_tokens:
        starts.append(start)
        end = start + block_size
        cut = int(documents[np.searchsorted(documents, end, side="right") - 1])
        start = cut if cut > start else end
    if starts and starts[-1] + block_size + 1 < n_tokens:
        starts.append(n_tokens - block_size - 1)
    return np.array(starts, dtype=np.int64)


def val_windows(tokens: Tokens, block_size: int) -> np.ndarray:
    """Windows (start, n) that score every target of a split exactly once, (windows, 2).

    Only whole documents share a window, so that each is read from its beginning; longer ones are cut at the block's end.
    """
    n_targets = len(tokens) - 1
    if len(tokens.documents) < 2:
        starts = np.arange(0, n_targets, block_size)
        return np.stack((starts, np.minimum(block_size, n_targets - starts)), axis=1)
    bounds = np.append(tokens.documents[1:], n_targets)  # where each document's targets end
    windows, start = [], 0
    while start < n_targets:
        at = np.searchsorted(bounds, start + block_size, side="right") - 1
        end = int(bounds[at]) if at >= 0 and bounds[at] > start else min(start + block_size, n_targets)
        windows.append((start, end - start))
        start = end
    return np.array(windows, dtype=np.int64)


def window_batch(tokens: Tokens, windows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Some validation windows as (idx, targets), each (windows, longest window); a shorter one's targets end in IGNORE."""
    width = int(windows[:, 1].max())
    idx = torch.zeros(len(windows), width, dtype=torch.int64)
    targets = torch.full_like(idx, IGNORE)
    for row, (start, n) in enumerate(windows.tolist()):
        ids = torch.from_numpy(tokens[start : start + n + 1])
        idx[row, :n], targets[row, :n] = ids[:-1], ids[1:]
    return idx, targets


# ---- making it


def prepare(
    config: TrainConfig, source: Source, vocab_size: int, tokenizer: Tokenizer | None = None, progress: bool = True
) -> Corpus:
    """The tokenised corpus of a source: from the disk where this content was tokenised before, else made now.

    Args:
        vocab_size: wanted size of a `bpe`; 0 chooses by the corpus.
        tokenizer: one to use as it is (a checkpoint's); without, `config.tokenizer` says which kind.

    Raises:
        UserError: for a corpus without usable text, or one too small to split.
    """
    recipe = (
        tokenizers.fingerprint(tokenizer)
        if tokenizer
        else f"{config.tokenizer}-{vocab_size if config.tokenizer == 'bpe' else ''}"
    )
    key = hashlib.sha256(f"{FORMAT}|{source.key}|{recipe}|{config.val_fraction}".encode()).hexdigest()[:16]
    folder = DATA / f"tokens-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / "meta.json").exists():
        with FileLock(f"{folder}.lock"):  # several ranks, or two runs at once: the first makes it, the others wait
            if not (folder / "meta.json").exists():
                make(folder, source, config, vocab_size, tokenizer, progress)
    return open_corpus(folder)


def holds_shards(folder: Path | str) -> bool:
    """Whether `--data` names token shards, rather than a folder of texts in which somebody keeps a meta.json."""
    return all((Path(folder) / name).exists() for name in ("meta.json", "train.idx"))


def open_corpus(folder: Path) -> Corpus:
    """A folder of token shards.

    Raises:
        UserError: when the folder is not whole.
    """
    mend = "delete the folder and start again" if folder.parent == DATA else "make the shards again, or pass the text as --data"
    try:
        meta = json.loads((folder / "meta.json").read_text())
        corpus = Corpus(folder, tokenizers.from_dict(json.loads((folder / "tokenizer.json").read_text())), meta)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} holds no whole token shards ({error}): {mend}."
        ) from error
    for split in ("train", "val"):
        held, wanted = len(getattr(corpus, split)), meta[split]["tokens"]
        if held != wanted:
            raise UserError(f"{folder} has {held} of {wanted} {split} tokens: {mend}.")
    return corpus


def make(
    folder: Path, source: Source, config: TrainConfig, vocab_size: int, tokenizer: Tokenizer | None, progress: bool
) -> None:
    """Tokenises a source into `folder`, which appears whole or not at all."""
    for killed in (folder, *folder.parent.glob(f"{folder.name}.*.tmp")):  # the lock is ours: nobody is writing there
        shutil.rmtree(killed, ignore_errors=True)
    work = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    work.mkdir(parents=True)
    try:
        read = reader(source, splitter(source, config.val_fraction))
        tokenizer = tokenizer or make_tokenizer(config.tokenizer, vocab_size, source, read)
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        writers = {name: Writer(work, name, dtype, tokenizer) for name in ("train", "val")}
        bar = tqdm(
            total=source.n_bytes or None,
            unit="B",
            unit_scale=True,
            desc="tokenising",
            disable=not progress or None,
            file=sys.stderr,
        )
        with ThreadPoolExecutor(os.cpu_count()) as threads, bar:
            for group, encoded in encoding(grouped(read()), tokenizer, threads):
                for (name, text, ends), ids in zip(group, encoded, strict=True):
                    n_bytes = len(tokenizers.to_bytes(text))
                    writers[name].write(ids, n_bytes, ends)
                    bar.update(n_bytes)
        counts = {name: writer.close() for name, writer in writers.items()}
        check_sizes(counts, source)
        meta = {
            "format": FORMAT,
            "source": source.name,
            "dtype": dtype,
            "entropy": source.entropy() if source.entropy else None,
            "skipped": source.skipped.lines(),
            **counts,
        }
        (work / "tokenizer.json").write_text(json.dumps(tokenizer.to_dict()))
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        os.replace(work, folder)
    except OSError as error:
        raise UserError(
            f"the token shards could not be written to {folder.parent} ({error.strerror}): make room there."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def encoding(
    groups: Iterable[list[SplitPiece]], tokenizer: Tokenizer, threads: ThreadPoolExecutor
) -> Iterator[tuple[list[SplitPiece], Iterator[np.ndarray]]]:
    """Each group with the ids of its pieces, given when the threads are at the next group already: they never wait for who writes."""
    before = None
    for group in groups:
        some = max(1, len(group) // 32)  # short documents share a thread's errand
        errands = [group[at : at + some] for at in range(0, len(group), some)]
        ids = threads.map(lambda pieces: [tokenizer.encode(text) for _, text, _ in pieces], errands)
        if before:
            yield before
        before = group, itertools.chain.from_iterable(ids)
    if before:
        yield before


class Writer:
    """Appends a split's documents to its shards."""

    def __init__(self, folder: Path, split: str, dtype: str, tokenizer: Tokenizer):
        self.folder, self.split, self.dtype, self.eot = folder, split, dtype, tokenizer.eot
        self.tokens = self.bytes = self.documents = 0
        self.inside = False  # in the middle of a document
        self.index = open(folder / f"{split}.idx", "wb")
        self.shard = None

    def write(self, ids: np.ndarray, n_bytes: int, ends: bool) -> None:
        """One piece of a document; the first of a document is led by an eot."""
        if not self.inside:
            self.index.write(np.int64(self.tokens).tobytes())
            self.documents += 1
            self.append(np.array([self.eot]))
        self.append(ids)
        self.bytes += n_bytes
        self.inside = not ends

    def append(self, ids: np.ndarray) -> None:
        while len(ids):
            if self.tokens % SHARD == 0:
                self.next_shard()
            room = SHARD - self.tokens % SHARD
            self.shard.write(ids[:room].astype(self.dtype).tobytes())
            self.tokens += len(ids[:room])
            ids = ids[room:]

    def next_shard(self) -> None:
        if self.shard:
            self.shard.close()
        self.shard = open(self.folder / f"{self.split}_{self.tokens // SHARD:05d}.bin", "wb")

    def close(self) -> dict:
        """Ends the split; its counts."""
        if self.documents > 1:
            self.append(np.array([self.eot]))  # the last document ends like the others
        if self.shard:
            self.shard.close()
        self.index.close()
        return {"tokens": self.tokens, "bytes": self.bytes, "documents": self.documents}


def check_sizes(counts: dict, source: Source) -> None:
    told = "\n".join(source.skipped.lines())
    if counts["train"]["tokens"] < 2 or counts["val"]["tokens"] < 2:
        raise UserError(
            f"{source.name} has too little text to train and validate on ({counts['train']['bytes']} and {counts['val']['bytes']} bytes): "
            f"give more text, or a larger --val_fraction.{chr(10) + told if told else ''}"
        )


def make_tokenizer(kind: str, vocab_size: int, source: Source, split: Callable[[], Iterator]) -> Tokenizer:
    """The tokenizer that `--tokenizer` names, learned from the training text only where it learns."""
    if kind == "gpt2":
        return tokenizers.load_gpt2()
    if kind == "byte":
        return tokenizers.ByteTokenizer()
    return learn_tokenizer(kind, vocab_size, (text for name, text, _ in split() if name == "train"), source.n_bytes)


def learn_tokenizer(kind: str, vocab_size: int, texts: Iterable[str], n_bytes: int = 0) -> Tokenizer:
    """A `char` tokenizer of some texts, or a `bpe` of the beginning of them. With a vocabulary of size 0 it has one that
    suits their bytes, `n_bytes` or more."""
    if kind == "char":
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return tokenizers.CharTokenizer("".join(c for c in seen if not 0xD800 <= ord(c) < 0xE000))
    sample, size = [], 0
    enough = min(SAMPLE_BYTES, max(SAMPLE_LEAST, vocab_size * SAMPLE_BYTES_A_TOKEN)) if vocab_size else SAMPLE_BYTES
    for text in texts:
        sample.append(text)
        size += len(text)
        if size > enough:
            break
    return tokenizers.train_bpe(sample, vocab_size or tokenizers.automatic_vocab_size(max(size, n_bytes)))


def grouped(pieces: Iterator[SplitPiece], characters: int = 2**23) -> Iterator[list[SplitPiece]]:
    """Groups of pieces of about 8 MiB, Python's own bytes for each included: all that is in memory at once."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1]) + 500
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


# ---- training and validation


def splitter(source: Source, fraction: float) -> Callable[[], Iterator[SplitPiece]]:
    """Reads a source as (split, text, ends) in a way that never leaks: no document stands on both sides.

    A corpus with a split of its own keeps it. One document is cut once, at its end; several go whole to one side, chosen by
    their content, so that copies of a document stay together.
    """
    if source.val:
        return lambda: itertools.chain(named("train", source.train()), named("val", source.val()))
    sizes: dict[bytes, int] = {}
    pieces = marked(source.train())
    for mark, piece, _ in itertools.islice(pieces, PEEK):
        sizes[mark] = sizes.get(mark, 0) + len(tokenizers.to_bytes(piece))
        if len(sizes) >= FEW:
            share = min(fraction, VAL_BYTES / source.n_bytes) if source.n_bytes else fraction
            below = threshold(share, itertools.chain(sizes, (mark for mark, _, _ in pieces)))
            return lambda: by_document(source, lambda mark, below=below: int.from_bytes(mark) < below)
    total = sum(sizes.values())
    if len(sizes) == 1:
        read_whole = next(pieces, None) is None
        return lambda: by_position(source, fraction, total if read_whole else source.n_bytes)
    chosen, room = set(), min(fraction * total, VAL_BYTES)
    for mark in sorted(sizes):
        if sizes[mark] <= room:
            chosen.add(mark)
            room -= sizes[mark]
    if fraction and sizes and not chosen:  # all are larger than the share
        chosen.add(min(sizes, key=lambda mark: (sizes[mark], mark)))
    return lambda: by_document(source, chosen.__contains__)


def threshold(share: float, marks: Iterable[bytes]) -> int:
    """The mark below which a document validates. Marks are uniform 64-bit hashes, so `share * 2**64` takes that share of them. If none
    of the first 20 / share documents is below it (odds of e^-20), it is raised to just above their smallest, so that one validates."""
    below, least = int(share * 2**64), 2**64
    for mark in itertools.islice(marks, int(20 / share)) if share else ():
        least = min(least, int.from_bytes(mark))
        if least < below:
            return below
    return least + 1 if share else 0


def reader(source: Source, split: Callable[[], Iterator]) -> Callable[[], Iterator[SplitPiece]]:
    """A source is read twice, for its tokenizer and for its tokens. A small one is kept in memory after the first time: some are made
    as they are read. What was skipped is counted once."""
    kept: list[SplitPiece] = []

    def read() -> Iterator[SplitPiece]:
        if not kept:
            source.skipped.counts.clear()
            if not 0 < source.n_bytes <= KEPT:
                return split()
            kept.extend(split())
        return iter(kept)

    return read


def named(split: str, pieces: Iterator[Piece]) -> Iterator[SplitPiece]:
    return ((split, text, ends) for text, ends in pieces)


def marked(pieces: Iterator[Piece]) -> Iterator[tuple[bytes, str, bool]]:
    """Each piece with its document's mark: a hash of how the document begins, 8 bytes."""
    mark = b""
    for text, ends in pieces:
        mark = mark or hashlib.blake2b(tokenizers.to_bytes(text), digest_size=8).digest()
        yield mark, text, ends
        mark = b"" if ends else mark


def by_document(source: Source, is_val: Callable[[bytes], bool]) -> Iterator[SplitPiece]:
    """Each document on its side. When enough validate, further ones train, but for copies of those that do."""
    validating: set[bytes] = set()
    room = VAL_BYTES
    for mark, text, ends in marked(source.train()):
        if mark in validating or (room > 0 and is_val(mark)):
            validating.add(mark)
            room -= len(tokenizers.to_bytes(text))
            yield "val", text, ends
        else:
            yield "train", text, ends


def by_position(source: Source, fraction: float, total: int) -> Iterator[SplitPiece]:
    """The last share of a single text validates. It is one stream on both sides: no eot at its end."""
    cut = max(int(total * (1 - fraction)), total - VAL_BYTES)
    read = 0
    for text, _ in source.train():
        raw = tokenizers.to_bytes(text)
        if read + len(raw) <= cut:
            yield "train", text, False
        elif read >= cut:
            yield "val", text, False
        else:
            head = raw[: cut - read].decode(errors="ignore")
            yield "train", head, False
            yield "val", raw[len(head.encode()) :].decode(), False
        read += len(raw)
