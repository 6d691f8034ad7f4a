"""The data of a run with pictures and sounds: embedded parts, a person's own rows, text, in one mixture."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import tokenizer as tokenizers
from config import MediaModelConfig, TrainConfig, UserError
from data import Corpus, learn_tokenizer, prepare
from multimodal import embedded
from multimodal.embedded import HELD_OUT, PARTS, STORIES, STORIES_SHARE
from multimodal.rows import Rows, find_rows
from multimodal.samples import Sample
from multimodal.shards import Media, Shards, prepare_media, prepare_rows, texts
from sources import Skipped, find_source
from tokenizer import Tokenizer

ALL = "multimodal"  # every embedded part that the model takes
GOLDEN = (5**0.5 - 1) / 2  # its multiples lie evenly between whole numbers, and never in step with rows that come in turns
TINY = 1e-9  # 10 × 0.1 is to be 1, and 3 × (1 / 3) as well


@dataclass
class MediaCorpus:
    """What a model that sees and hears is trained on.

    Attributes:
        shares: how often a row of each part is drawn, the text's among them.
        text: plain text, or None.
        data_hash: names this content with this tokenizer.
        meta: what is told of it, as of a `data.Corpus`.
    """

    tokenizer: Tokenizer
    train: Shards
    val: Shards
    shares: dict[str, float]
    text: Corpus | None
    data_hash: str
    meta: dict


def named(config: TrainConfig, model: MediaModelConfig) -> list[str]:
    """The parts that --data names, `multimodal` for every embedded one that this model takes in.

    Raises:
        UserError: for an embedded part that it does not take in, or with sounds that are longer than it hears.
    """
    names = [name.strip() for name in config.data.split(",") if name.strip()]
    able = [name for name, part in PARTS.items() if part.needs <= set(model.kinds)]
    found = list(itertools.chain.from_iterable([*able, STORIES] if name == ALL else [name] for name in names))
    for name in found:
        if name in PARTS and name not in able:
            wanted = ",".join(sorted(PARTS[name].needs))
            raise UserError(f"the data {name!r} needs a model that takes {wanted}: pass --modalities {wanted}, or leave it out of --data.")
    longest = max((name for name in found if name in PARTS), key=lambda name: PARTS[name].seconds, default="")
    if longest and PARTS[longest].seconds > model.audio_seconds:
        told = f"{PARTS[longest].seconds:g}"
        raise UserError(
            f"the data {longest!r} has sounds of {told} s, and the model hears {model.audio_seconds:g} s (audio_seconds) at most: "
            f"pass --audio_seconds {told}, or leave it out of --data."
        )
    return list(dict.fromkeys(found))


def open_corpus(
    config: TrainConfig, model: MediaModelConfig, wanted: int, ready: Tokenizer | None, progress: bool = True
) -> MediaCorpus:
    """The data that `config.data` names, made ready for this model.

    Args:
        wanted: size of a vocabulary that is learned here; 0 chooses by the text.
        ready: a tokenizer to use as it is.

    Raises:
        UserError: for data that is not there or has no usable rows, or a mixture of parts that there are not.
    """
    names = named(config, model)
    made = [name for name in names if name in PARTS]
    own = [find_rows(name, model, config) for name in names if name not in PARTS and name != STORIES]
    skipped = Skipped()
    key = "|".join([embedded.fingerprint() if made else "", *made, *(rows.key for rows in own), str(config.val_fraction)])

    def samples() -> Iterator[tuple[str, Sample]]:
        yield from embedded.rows(made, model.image_size, model.audio_rate)
        for rows in own:
            yield from split_rows(rows, config.val_fraction)
            skipped.take(rows.skipped)

    total = sum(PARTS[name].rows + 2 * embedded.VALIDATE for name in made) if not own else 0
    folder = prepare_media(key, samples, model, skipped, total, progress)
    meta = json.loads((folder / "meta.json").read_text())
    if config.strict and meta["skipped"]:  # by an earlier run, without --strict
        raise UserError(f"{meta['skipped'][0]}: mend it, or leave out --strict to go on without it.")
    media = {split: Media(folder / split, model.image_size) for split in ("train", "val")}
    source = find_source(replace(config, data=STORIES)) if STORIES in names else None
    tokenizer = ready or make_tokenizer(config, wanted, media["train"], source)
    shards = {split: prepare_rows(folder, each, tokenizer, model.block_size) for split, each in media.items()}
    long = Skipped()
    for each in shards.values():
        long.take(each.skipped)
    if config.strict and long.counts:
        raise UserError(f"{long.lines()[0]}: pass a larger --block_size, or leave out --strict to go on without it.")
    shares = {name: PARTS[name].share if name in PARTS else STORIES_SHARE if name == STORIES else 1.0 for name in names}
    return MediaCorpus(
        tokenizer=tokenizer,
        train=shards["train"],
        val=shards["val"],
        shares=drawn(mixed(shares, config.mix), [*shards["train"].parts, STORIES], model.block_size),
        text=prepare(replace(config, data=STORIES), source, 0, tokenizer, progress) if source else None,
        data_hash=hashlib.sha256(f"{folder.name}|{tokenizers.fingerprint(tokenizer)}|{source and source.key}".encode()).hexdigest()[:16],
        meta={
            "source": ",".join(names),
            "entropy": None,
            "skipped": [*meta["skipped"], *long.lines()],
            "train": meta["train"],
            "val": meta["val"],
        },
    )


def split_rows(rows: Rows, fraction: float) -> Iterator[tuple[str, Sample]]:
    """A person's rows with their splits: the corpus's own, or some taken for validation, in blocks of neighbours.

    Rows beside each other are often alike (a speaker, a scene, the frames of a film), and what is like a row that was learned tells
    nothing of what was understood.
    """
    if rows.val:
        yield from (("train", sample) for sample in rows.train())
        yield from (("val", sample) for sample in rows.val())
        return
    for number, sample in enumerate(rows.train()):
        yield "val" if held_back(number // rows.block, fraction) else "train", sample


def held_back(block: int, fraction: float) -> bool:
    """Whether a block is to validate on: one of each 1 / fraction of them, each time at another place among these."""
    if not fraction:
        return False
    turn = int(block * fraction + TINY)
    first, after = (math.ceil(each / fraction - TINY) for each in (turn, turn + 1))
    return block == first + int(turn * GOLDEN % 1 * (after - first))


def make_tokenizer(config: TrainConfig, wanted: int, media: Media, source) -> Tokenizer:
    """The tokenizer that --tokenizer names, learned from what is said in the rows and from the text beside them."""
    if config.tokenizer == "gpt2":
        return tokenizers.load_gpt2()
    if config.tokenizer == "byte":
        return tokenizers.ByteTokenizer()
    plain = (text for text, _ in source.train()) if source else ()
    return learn_tokenizer(config.tokenizer, wanted, itertools.chain(texts(media.outlines()), plain))


def mixed(shares: dict[str, float], mix: str) -> dict[str, float]:
    """The shares of the parts, with those that --mix names.

    Raises:
        UserError: for a part that the data does not have, or a share that is none.
    """
    shares = dict(shares)
    for each in filter(None, (each.strip() for each in mix.split(","))):
        name, _, number = each.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if name not in shares:
            near = difflib.get_close_matches(name, shares, 1, 0.5)
            raise UserError(f"mix names {name!r}{f'; did you mean {near[0]}?' if near else '.'} The parts of --data are {', '.join(shares)}.")
        if not 0 <= share < float("inf"):
            raise UserError(f"mix gives {name} the share {number!r}; write a number, such as --mix {name}=2.")
        shares[name] = share
    if not any(shares.values()):
        raise UserError(f"mix {mix!r} leaves nothing to train on: give one part a share above 0.")
    return shares


def drawn(shares: dict[str, float], parts: Iterable[str], block_size: int) -> dict[str, float]:
    """The shares of those parts that have rows to train on.

    Raises:
        UserError: when nothing is drawn of any of them.
    """
    found = {name: share for name, share in shares.items() if name in parts}
    if not any(found.values()):
        gone = ", ".join(name for name, share in shares.items() if share)
        raise UserError(
            f"there is nothing to train on: of {gone} there is no row to train on that the block_size of {block_size} has room for. "
            "Pass a larger --block_size, or give another part a share above 0 with --mix."
        )
    return found


def is_held_out(part: str) -> bool:
    return part.endswith(HELD_OUT)
