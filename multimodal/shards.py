"""Samples to files that batches are slices of, once: what `data.py` does for text.

Of each split there are, whatever the tokenizer,

    outlines.jsonl  a line for each row: who says what, with IMAGE and AUDIO where a picture or a sound stands, and the words of each
    pictures.bin    (N, S, S, 3) uint8
    frames.bin      spectrograms, (frames, MELS) float16, and in sounds.npy where each begins
    waves.bin       of the validation rows only, to ask the model about: 16 bits a sample, and in waves.npy where each begins

and for each tokenizer and block a folder with

    rows.npy        one record a row: where its ids, its pictures and its sounds begin, to which part of the data it belongs, and which
                    line of the outlines it is
    ids.bin         token ids, IMAGE and AUDIO once for each picture and sound
    seen.bin        token ids of the words of each picture, and in seen.npy where each begins; in heard.bin and heard.npy of each sound
    learned.bin     which of them the model is to say
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from config import DATA, MediaModelConfig, UserError
from inference.dialogue import ANSWER, NAMES
from multimodal.embedded import DESCRIBE, TRANSCRIBE
from multimodal.encoders import AUDIO, IMAGE, IMAGE_TOKENS, audio_tokens
from multimodal.samples import Part, Picture, Sample, Sound, Turn
from multimodal.spectrogram import MELS, log_mel
from sources import Skipped
from tokenizer import Tokenizer, fingerprint

FORMAT, ROWS_FORMAT = 5, 2  # of all that is made, and of what is made for a tokenizer
LOUDEST = 2**15 - 1  # of 16 bits
ROW = np.dtype([
    ("ids", "i8"), ("length", "i4"), ("places", "i4"),  # `places`: of the row, once pictures and sounds have all of theirs
    ("picture", "i8"), ("pictures", "i4"), ("sound", "i8"), ("sounds", "i4"), ("part", "i4"),
    ("outline", "i8"),  # its line of outlines.jsonl
])  # fmt: skip
Outline = dict  # a sample as JSON: {"part", "turns": [[role, [text, IMAGE or AUDIO, ...]], ...], "text", "seen": [words], "heard": [words]}


class Media:
    """The pictures and sounds of one split on the disk, and the outlines of its rows.

    Attributes:
        pictures: (N, S, S, 3) uint8.
        sounds: (M + 1,) where each sound's frames begin.
    """

    def __init__(self, folder: Path, side: int):
        self.folder = folder
        self.pictures = mapped(folder / "pictures.bin", "uint8").reshape(-1, side, side, 3)
        self.frames = mapped(folder / "frames.bin", "float16").reshape(-1, MELS)
        self.sounds, self.waves = np.load(folder / "sounds.npy"), np.load(folder / "waves.npy")

    def outlines(self) -> Iterator[Outline]:
        with open(self.folder / "outlines.jsonl", encoding="utf-8") as file:
            yield from map(json.loads, file)

    def spectrogram(self, n: int) -> np.ndarray:
        """(frames, MELS) float16."""
        return self.frames[self.sounds[n] : self.sounds[n + 1]]

    def sample(self, outline: Outline, picture: int, sound: int) -> Sample:
        """A row with its media, of which the first picture and the first sound have these numbers."""
        pictures, sounds = itertools.count(picture), itertools.count(sound)

        def shown(part: str | int) -> Part:
            if isinstance(part, str):
                return part
            return Picture(self.pictures[next(pictures)]) if part == IMAGE else Sound(self.wave(next(sounds)))

        turns = tuple(Turn(role, tuple(map(shown, parts))) for role, parts in outline["turns"])
        return Sample(outline["part"], turns, outline["text"])

    def wave(self, n: int) -> np.ndarray:
        """(samples,) float32."""
        whole = mapped(self.folder / "waves.bin", "int16")
        return whole[self.waves[n] : self.waves[n + 1]].astype(np.float32) / LOUDEST


class Shards:
    """One split, ready to draw rows from.

    Attributes:
        rows: (rows,) records of ROW.
        parts: the names that a row's `part` counts.
        skipped: what the block has no room for.
    """

    def __init__(self, media: Media, folder: Path):
        self.media = media
        meta = json.loads((folder / "meta.json").read_text())
        self.parts, self.skipped = meta["parts"], Skipped(**meta["skipped"])
        self.rows = np.load(folder / "rows.npy")
        self.ids, self.learned = mapped(folder / "ids.bin", "int32"), mapped(folder / "learned.bin", "bool")
        self.seen, self.heard = Words(folder, "seen"), Words(folder, "heard")

    def row(self, n: int) -> tuple[np.ndarray, np.ndarray, range, range]:
        """Ids, whether each is learned, and the numbers of the pictures and of the sounds that stand in them."""
        row = self.rows[n]
        span = slice(row["ids"], row["ids"] + row["length"])
        pictures, sounds = (range(row[name], row[name] + row[f"{name}s"]) for name in ("picture", "sound"))
        return self.ids[span], self.learned[span], pictures, sounds

    def some(self, count: int) -> dict[str, list[Sample]]:
        """Up to `count` conversations of each part, evenly spaced; of validation rows only, whose waves are kept."""
        outlines, found = list(self.media.outlines()), {}
        for row in self.rows:
            if outlines[row["outline"]]["turns"]:
                found.setdefault(self.parts[row["part"]], []).append(row)
        for part, rows in found.items():
            chosen = [rows[n] for n in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
            found[part] = [self.media.sample(outlines[row["outline"]], row["picture"], row["sound"]) for row in chosen]
        return found


class Words:
    """The ids of the words of every picture, or of every sound; none where they are not known."""

    def __init__(self, folder: Path, name: str):
        self.ids, self.starts = mapped(folder / f"{name}.bin", "int32"), np.load(folder / f"{name}.npy")

    def __getitem__(self, n: int) -> np.ndarray:
        return self.ids[self.starts[n] : self.starts[n + 1]]

    @staticmethod
    def write(folder: Path, name: str, found: list[list[int]]) -> None:
        np.array(list(itertools.chain.from_iterable(found)), dtype=np.int32).tofile(folder / f"{name}.bin")
        np.save(folder / f"{name}.npy", np.cumsum([0, *map(len, found)]))


def mapped(path: Path, dtype: str) -> np.ndarray:
    """A file as an array; an empty one cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


# ---- a row's text


def outline(sample: Sample) -> Outline:
    """What is said in a sample, and where its pictures and sounds stand."""

    def told(part: Part) -> str | int:
        return part if isinstance(part, str) else IMAGE if isinstance(part, Picture) else AUDIO

    turns = [[turn.role, [told(part) for part in turn.parts]] for turn in sample.turns]
    words = {"seen": words_of(sample, Picture, DESCRIBE), "heard": words_of(sample, Sound, TRANSCRIBE)}
    return {"part": sample.source, "turns": turns, "text": sample.text, **words}


def words_of(sample: Sample, kind: type, errand: str) -> list[str]:
    """The words of each picture or sound (`kind`): what a row says that it holds, or the answer to who asks for that (`errand`)."""
    found = []
    for turn, following in itertools.zip_longest(sample.turns, sample.turns[1:]):
        asked = turn.role == "user" and len(turn.parts) == 2 and turn.parts[1] == errand and following
        answer = "".join(following.parts) if asked else ""
        found += [getattr(part, "said", "") or answer for part in turn.parts if isinstance(part, kind)]
    return found


def encode(outline: Outline, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """A row's ids, and which of them are learned. A conversation is the transcript that the server makes of it
    (`inference/dialogue.py`): each answer is learned, and at the end an end of text. Of a plain text all is."""
    ids, learned = [tokenizer.eot], [False]

    def add(text: str, learn: bool = False) -> None:
        new = tokenizer.encode(text).tolist()
        ids.extend(new)
        learned.extend([learn] * len(new))

    add(outline["text"], learn=True)
    text = ""
    for role, parts in outline["turns"]:
        if role == "assistant":
            add(text + ANSWER)
            said = "".join(parts)
            add(f" {said}" if said else "", learn=True)
            text = "\n"
            continue
        text += NAMES[role]
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            add(text)
            text = ""
            ids.append(part)
            learned.append(False)
        text += "\n"
    return [*ids, tokenizer.eot], [*learned, True]


def texts(outlines: Iterable[Outline]) -> Iterator[str]:
    """All that is said, to learn a vocabulary from."""
    for each in outlines:
        yield each["text"]
        for role, parts in each["turns"]:
            said = "".join(part for part in parts if isinstance(part, str))
            yield f" {said}\n" if role == "assistant" else f"{NAMES[role]}{said}\n{ANSWER}"


# ---- making it


class MediaWriter:
    """Appends samples to the files of a split."""

    def __init__(self, folder: Path, rate: int, keep_waves: bool):
        folder.mkdir(parents=True)
        self.folder, self.rate, self.keep_waves, self.count, self.pictures = folder, rate, keep_waves, 0, 0
        self.sounds, self.waves = [0], [0]
        self.files = {name: open(folder / f"{name}.bin", "wb") for name in ("pictures", "frames", "waves")}
        self.outlines = open(folder / "outlines.jsonl", "w", encoding="utf-8")

    def write(self, sample: Sample) -> None:
        self.count += 1
        self.outlines.write(json.dumps(outline(sample)) + "\n")
        for part in (part for turn in sample.turns for part in turn.parts):
            if isinstance(part, Picture):
                self.files["pictures"].write(part.pixels.tobytes())
                self.pictures += 1
            elif isinstance(part, Sound):
                self.write_sound(part.wave)

    def write_sound(self, wave: np.ndarray) -> None:
        mel = log_mel(torch.from_numpy(wave), self.rate).half().numpy()
        self.files["frames"].write(np.ascontiguousarray(mel).tobytes())
        self.sounds.append(self.sounds[-1] + len(mel))
        if self.keep_waves:
            self.files["waves"].write(np.round(wave * LOUDEST).astype(np.int16).tobytes())
            self.waves.append(self.waves[-1] + len(wave))

    def close(self) -> dict[str, int]:
        """Ends the split; its counts."""
        for file in (*self.files.values(), self.outlines):
            file.close()
        for name, starts in (("sounds", self.sounds), ("waves", self.waves)):
            np.save(self.folder / f"{name}.npy", np.array(starts, dtype=np.int64))
        return {"rows": self.count, "pictures": self.pictures, "sounds": len(self.sounds) - 1}


def prepare_media(
    key: str, samples: Callable[[], Iterator[tuple[str, Sample]]], config: MediaModelConfig, skipped: Skipped, total: int, progress: bool
) -> Path:
    """The folder of some samples' media: from the disk where it was made before, else made now.

    Args:
        key: of what is read.
        samples: each with its split, `train` or `val`.
        total: about how many there are, for the bar; 0 is unknown.

    Raises:
        UserError: when there are none to train or none to validate on.
    """
    recipe = f"{FORMAT}|{key}|{config.kinds}|{config.image_size}|{config.audio_rate}|{config.audio_seconds}"
    folder = DATA / f"media-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"

    def fill(work: Path) -> None:
        writers = {split: MediaWriter(work / split, config.audio_rate, keep_waves=split == "val") for split in ("train", "val")}
        bar = tqdm(total=total or None, unit="row", desc="pictures and sounds", disable=not progress or None, file=sys.stderr)
        with bar:
            for split, sample in samples():
                writers[split].write(sample)
                bar.update()
        counts = {split: writer.close() for split, writer in writers.items()}
        for split, verb in (("train", "train"), ("val", "validate")):
            if not counts[split]["rows"]:
                told = "".join(f"\n{line}" for line in skipped.lines())
                raise UserError(f"there is no row to {verb} on: give more data, or another --val_fraction.{told}")
        (work / "meta.json").write_text(json.dumps({"skipped": skipped.lines(), **counts}, indent=1))

    appear(folder, fill)
    return folder


def prepare_rows(folder: Path, media: Media, tokenizer: Tokenizer, block_size: int) -> Shards:
    """The rows of a split for this tokenizer; those that the block has no room for are left out, and counted."""
    key = hashlib.sha256(f"{fingerprint(tokenizer)}|{block_size}|{ROWS_FORMAT}".encode()).hexdigest()[:8]
    target = folder / f"rows-{media.folder.name}-{key}"

    def fill(work: Path) -> None:
        work.mkdir(parents=True)
        parts: dict[str, int] = {}
        rows, words, skipped = [], {"seen": [], "heard": []}, Skipped()
        start = picture = sound = 0
        with open(work / "ids.bin", "wb") as ids_file, open(work / "learned.bin", "wb") as learned_file:
            for number, each in enumerate(media.outlines()):
                ids, learned = encode(each, tokenizer)
                pictures, sounds = ids.count(IMAGE), ids.count(AUDIO)
                frames = np.diff(media.sounds[sound : sound + sounds + 1])
                places = len(ids) - pictures - sounds + IMAGE_TOKENS * pictures + int(audio_tokens(frames).sum())
                for name, found in words.items():
                    found += [tokenizer.encode(f" {told}").tolist() if told else [] for told in each[name]]
                if places <= block_size + 1:
                    part = parts.setdefault(each["part"], len(parts))
                    rows.append((start, len(ids), places, picture, pictures, sound, sounds, part, number))
                    ids_file.write(np.array(ids, dtype=np.int32).tobytes())
                    learned_file.write(np.array(learned).tobytes())
                    start += len(ids)
                else:
                    skipped.add(f"rows longer than the block_size of {block_size}", f"{places} tokens in {each['part']}")
                picture, sound = picture + pictures, sound + sounds
        if not rows:
            raise UserError(f"no row is left: {skipped.lines()[0]}. Pass a larger --block_size.")
        np.save(work / "rows.npy", np.array(rows, dtype=ROW))
        for name, found in words.items():
            Words.write(work, name, found)
        (work / "meta.json").write_text(json.dumps({"parts": list(parts), "skipped": vars(skipped)}))

    appear(target, fill)
    return Shards(media, target)


def appear(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes a folder that is there whole or not at all; one process makes it while others wait.

    Raises:
        UserError: when there is no room for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "meta.json").exists():
            return
        for killed in (folder, *folder.parent.glob(f"{folder.name}.*.tmp")):  # the lock is ours: nobody is writing there
            shutil.rmtree(killed, ignore_errors=True)
        work = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        try:
            fill(work)
            os.replace(work, folder)
        except OSError as error:
            raise UserError(f"{folder} could not be written ({error.strerror}): make room there.") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
