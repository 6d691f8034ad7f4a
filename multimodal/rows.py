"""A person's own rows: conversations with media in them, plain rows of a picture or a sound and a text, folders of media by class.

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}, {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": "A cat."}]}
    {"image": "x.png", "question": "What is it?", "text": "A cat."}
    {"audio": "x.wav", "text": "what is said"}
    cat/x.png

They come from .jsonl and .parquet files and from the Hugging Face Hub, found as `sources.py` finds text. A row that cannot be used
is left out and counted, or under --strict the end of the run.
"""

from __future__ import annotations

import base64
import hashlib
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from config import MediaModelConfig, TrainConfig, UserError
from multimodal.decode import Unreadable, read_picture, read_sound
from multimodal.embedded import DESCRIBE, TRANSCRIBE
from multimodal.samples import Part, Picture, Sample, Sound, Turn
from sources import (
    SPLITS,
    Skipped,
    arriving,
    below,
    digest,
    hub_dataset,
    json_rows,
    leave_out,
    missing_field,
    named_files,
    own_split,
    parquet_rows,
    split_of,
)

ROWS = {".jsonl", ".parquet"}
PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aif", ".aiff"}
QUESTION = "question"  # the field of plain rows that holds what is asked
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
KINDS = {"image": "picture", "audio": "sound"}
MOST_BYTES = 2**28  # of one media file
AT_ONCE = 4  # rows of a parquet file that are made objects of together: their media may be large
LONGEST_PATH = 4096
NEIGHBOURS = 20  # rows that stay on one side where nobody says how many there are

Fetch = Callable[[str], bytes]  # the content of what a row names by its path
Row = tuple[dict, str, Fetch]  # with its place, for the person


@dataclass
class Rows:
    """A person's rows.

    Attributes:
        key: changes when the content does.
        train: reads the samples, from the start at each call.
        val: reads those of the data's own validation split, where it has one.
        skipped: what the readings left out.
        block: so many neighbours stay on one side, where rows to validate on are taken from those to train on.
    """

    key: str
    train: Callable[[], Iterator[Sample]]
    val: Callable[[], Iterator[Sample]] | None
    skipped: Skipped
    block: int = 1


class Strict(Skipped):
    """Lets nothing be left out."""

    def add(self, reason: str, where: str) -> None:
        raise UserError(f"{where}: {reason}. Mend it, or leave out --strict to go on without it.")


class Unusable(Exception):
    """Why a row is left out: a reason that many rows share, and what is this row's alone."""

    def __init__(self, reason: str, particular: str = ""):
        super().__init__(reason)
        self.particular = f" ({particular[:200]})" if particular else ""


def find_rows(name: str, model: MediaModelConfig, config: TrainConfig) -> Rows:
    """The rows of a file, a folder, a glob or a dataset of the Hub.

    Raises:
        UserError: when there is no such thing, naming what else can be passed.
    """
    reader = Reader(name, model, config)
    if name.startswith("hf:"):
        return hub_rows(reader)
    files = named_files(name, ROWS)
    if not files and Path(name).expanduser().is_dir():
        return class_rows(reader)
    if not files:
        raise UserError(
            f"there is nothing at {name!r}: give --data a file of rows ({' '.join(sorted(ROWS))}), a folder or a glob of such files, "
            "a folder of pictures or sounds by class, or hf:OWNER/NAME."
        )
    for file in files:
        if file.suffix.lower() in PICTURES | SOUNDS:
            raise UserError(f"{file} is no file of rows. {reader.written(file)}")
        if file.suffix.lower() not in ROWS:
            raise UserError(f"{file} has the ending {file.suffix!r}; rows are read from {' '.join(sorted(ROWS))}. {reader.written(None)}")
    return file_rows(reader, files)


# ---- a row to a sample


class Reader:
    """Makes samples of rows.

    Attributes:
        skipped: what cannot be used.
    """

    def __init__(self, name: str, model: MediaModelConfig, config: TrainConfig):
        self.name, self.model, self.config = name, model, config
        self.media = {"image": config.image_field, "audio": config.audio_field}
        self.fields = [*self.media.values(), QUESTION, config.text_field]
        self.skipped = Strict() if config.strict else Skipped()

    def written(self, file: Path | None) -> str:
        """How a row is written, as a sentence."""
        sound = file and file.suffix.lower() in SOUNDS
        field = self.media["audio" if sound else "image"]
        row = f'{{"{field}": "{file.name if file else "x.png"}", "{self.config.text_field}": "what is to be answered"}}'
        return f"Write a .jsonl file with a row such as {row} for each, and pass its path with --data."

    def samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        """One sample a row that can be used.

        Raises:
            UserError: when there is none, or when media are in a field of another name.
        """
        used, seen, fields, misnamed = 0, 0, [], ""
        for row, where, fetch in rows:
            fields = fields or list(row)
            try:
                sample = self.sample(row, fetch)
            except Unusable as error:
                self.skipped.add(f"row with {error}", where + error.particular)
                continue
            used, seen = used + 1, seen + bool(sample.media)
            misnamed = misnamed or (self.misnamed(row) if "messages" not in row else "")
            yield sample
        if misnamed and not seen:
            raise self.other_field(misnamed)
        if not used:
            told = "".join(f"\n{line}" for line in self.skipped.lines())
            named = ", ".join(map(repr, fields)) or "none"
            raise UserError(
                f"{self.name} has no row that can be used. The fields of its first row are {named}; what is read is 'messages', or "
                f"{', '.join(map(repr, self.fields))} (--image_field, --audio_field and --text_field name others).{told}"
            )

    def sample(self, row: dict, fetch: Fetch) -> Sample:
        """What a row in either form says.

        Raises:
            Unusable: when nothing can be learned from it.
        """
        sample = self.conversation(row["messages"], fetch) if row.get("messages") is not None else self.plain(row, fetch)
        heard = any(isinstance(part, Sound) for part in sample.media)
        answers = ["".join(turn.parts) for turn in sample.turns if turn.role == "assistant"] or [sample.text]
        if not heard and not all(answer.strip() for answer in answers):  # to a silence, nothing is the answer
            raise Unusable("an empty answer" if sample.turns else "an empty text")
        return sample

    def conversation(self, messages: Any, fetch: Fetch) -> Sample:
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise Unusable("messages that are no list of objects")
        roles = [message.get("role") for message in messages]
        if strangers := [role for role in roles if not isinstance(role, str) or role not in ROLES]:
            raise Unusable("a role that is none of system, user and assistant", repr(strangers[0]))
        if "assistant" not in roles:
            raise Unusable("no answer of the assistant")
        last = len(roles) - roles[::-1].index("assistant")  # nothing is learned from what comes after
        return Sample(self.name, tuple(self.turn(message, fetch) for message in messages[:last]))

    def turn(self, message: dict, fetch: Fetch) -> Turn:
        role, content = ROLES[message["role"]], message.get("content")
        if not isinstance(content, (str, list)):
            raise Unusable(f"content of type {type(content).__name__}")
        parts = (content,) if isinstance(content, str) else tuple(self.part(part, fetch) for part in content)
        if role == "assistant" and not all(isinstance(part, str) for part in parts):
            raise Unusable("a picture or a sound in the answer of the assistant")
        return Turn(role, parts)

    def part(self, part: Any, fetch: Fetch) -> Part:
        """One part of a message's content, as OpenAI's API has them, or with the path of a file."""
        if not isinstance(part, dict):
            raise Unusable(f"a part of content of type {type(part).__name__}")
        match part.get("type"):
            case "text":
                return text_of(part.get("text"), "text")
            case "image_url":
                return self.medium("image", inner(part, "image_url", "url"), fetch)
            case "input_audio":
                return self.medium("audio", from_base64(inner(part, "input_audio", "data")), fetch)
            case "image" | "audio" as kind:
                return self.medium(kind, part.get(kind), fetch)
        raise Unusable("a part of content of an unknown type", repr(part.get("type")))

    def plain(self, row: dict, fetch: Fetch) -> Sample:
        """Pictures, then sounds, then the question; a row with nothing but a text is all learned."""
        if not any(row.get(field) is not None for field in self.fields):
            raise Unusable(f"none of the fields 'messages', {', '.join(map(repr, self.fields))}")
        answer = text_of(row.get(self.config.text_field), self.config.text_field)
        asked = row.get(QUESTION)
        shown = {kind: listed(row.get(field)) for kind, field in self.media.items()}
        if asked is None and not any(shown.values()):
            return Sample(self.name, text=answer)
        if asked is None and not all(shown.values()):  # with both, the sound is the question, as in the embedded data
            asked = DESCRIBE if shown["image"] else TRANSCRIBE
        parts = [self.medium(kind, value, fetch) for kind, values in shown.items() for value in values]
        parts += [text_of(asked, QUESTION)] if asked is not None else []
        return Sample(self.name, (Turn("user", tuple(parts)), Turn("assistant", (answer,))))

    def medium(self, kind: str, value: Any, fetch: Fetch) -> Picture | Sound:
        """A picture or a sound from its bytes, its path, a data: URI, or the structure of bytes and path that `datasets` stores."""
        if kind not in self.model.kinds:
            raise Unusable(f"a {KINDS[kind]}, which a model of --modalities {self.model.modalities or 'none'} does not take")
        called = "it"
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str):
            called = value if len(value) < 100 else "it"
            value = from_data_uri(value) if value[:5].lower() == "data:" else fetch(value)
        if not isinstance(value, bytes):
            raise Unusable(f"a {KINDS[kind]} of type {type(value).__name__}")
        try:
            return read_picture(value, self.model) if kind == "image" else read_sound(value, self.model)
        except Unreadable as error:
            raise Unusable(error.kind, f"{called} {error}") from error

    def misnamed(self, row: dict) -> str:
        """A field beside those that are read which seems to hold media."""
        return next((field for field, value in row.items() if field not in self.fields and seems_medium(value)), "")

    def other_field(self, field: str) -> UserError:
        fields = " or ".join(map(repr, self.media.values()))
        return UserError(
            f"no row of {self.name} has a field {fields}, but {field!r} seems to hold pictures or sounds: "
            f"pass --image_field {field} or --audio_field {field}."
        )


def listed(value: Any) -> list:
    """One medium or several, as several."""
    return [] if value is None else value if isinstance(value, list) else [value]


def text_of(value: Any, field: str) -> str:
    if value is None:
        raise Unusable(f"no {field!r}")
    if not isinstance(value, str):
        raise Unusable(f"{field!r} of type {type(value).__name__}")
    return value


def inner(part: dict, outer: str, name: str) -> str:
    """A text in an object in a part."""
    found = part.get(outer)
    return text_of(found.get(name) if isinstance(found, dict) else None, f"{outer}.{name}")


def from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise Unusable("data that are no base64") from error


def from_data_uri(uri: str) -> bytes:
    head, _, body = uri.partition(",")
    if not head.lower().endswith(";base64"):
        raise Unusable("a data: URI that is not ;base64,", head[:40])
    return from_base64(body)


def seems_medium(value: Any) -> bool:
    if isinstance(value, dict):
        return "bytes" in value or "path" in value
    if isinstance(value, str) and value.startswith(("data:image/", "data:audio/")):
        return True
    return isinstance(value, bytes) or any(paths([value]))


# ---- files


def beside(folder: Path) -> Fetch:
    """Reads the files that rows in this folder name."""
    return lambda path: read_file(located(path, folder))


def located(path: str, folder: Path) -> Path:
    """Where a path leads that is written in a file of this folder.

    Raises:
        Unusable: for an address on another machine.
    """
    if path[:7].lower() == "file://":
        return folder / unquote(path[7:])
    if re.match(r"\w+://", path):
        raise Unusable("a remote address, which is not fetched", path)
    return folder / path


def read_file(path: Path) -> bytes:
    """The bytes of a file, if it is one: a pipe or a device might never end."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise Unusable("a path that leads to no file", str(path))
        if about.st_size > MOST_BYTES:
            raise Unusable(f"a media file of more than {MOST_BYTES >> 20} MiB", str(path))
        with open(path, "rb") as file:
            content = file.read(about.st_size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unusable("a missing media file", str(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise Unusable("a media file that cannot be read", f"{path}: {getattr(error, 'strerror', error)}") from error
    if not content:
        raise Unusable("an empty media file", str(path))
    return content


def file_rows(reader: Reader, files: list[Path]) -> Rows:
    """The rows of .jsonl and .parquet files."""
    place = Path(reader.name).expanduser()
    train, val, other = own_split(files, place)
    marks, count = hashlib.sha256(repr((reader.name, reader.fields)).encode()), 0
    for file in files:
        marks.update(f"{below(file, place)}|{digest(file)}".encode())
        for row in glimpsed(file):
            count += 1
            marks.update("".join(mark(path, file.parent) for path in paths([row])).encode(errors="replace"))

    def read(some: list[Path]) -> Iterator[Sample]:
        return reader.samples((*row, beside(file.parent)) for file in some for row in rows_of(file, reader))

    def read_train() -> Iterator[Sample]:
        leave_out(other, reader.skipped)
        return read(train)

    return Rows(
        key=marks.hexdigest(),
        train=read_train,
        val=(lambda: read(val)) if val else None,
        skipped=reader.skipped,
        block=block_of(count, reader.config.val_fraction, 40),  # many, for rows that may be sorted by what they show
    )


def rows_of(file: Path, reader: Reader) -> Iterator[tuple[dict, str]]:
    """The rows of a file with their places."""
    if file.suffix.lower() == ".jsonl":
        return json_rows(file, reader.skipped, "row")

    def columns(table) -> list[str]:
        """Those that are read; where there are no media among them, all, to see whether they have another name."""
        names = table.schema_arrow.names
        if not {"messages", reader.config.text_field} & set(names):
            raise missing_field(reader.config.text_field, str(file), names)
        media = {"messages", *reader.media.values()} & set(names)
        return [name for name in names if name in ("messages", *reader.fields)] if media else names

    return ((row, f"{file} row {number}") for number, row in enumerate(parquet_rows(file, columns, AT_ONCE), 1))


def glimpsed(file: Path) -> Iterator[dict]:
    """The rows of a file, of parquet without the bytes in them."""

    def texts(table) -> list[str]:
        columns = (table.schema.column(number) for number in range(len(table.schema)))
        return [column.path for column in columns if column.logical_type.type == "STRING"]

    if file.suffix.lower() == ".parquet":
        return parquet_rows(file, texts, 1024)
    return (row for row, _ in json_rows(file, Skipped(), "row"))


def paths(values: list) -> Iterator[str]:
    """What seems to be the path of a media file, anywhere in these values."""
    values, endings = list(values), tuple(PICTURES | SOUNDS)
    while values:
        value = values.pop()
        if isinstance(value, (dict, list)):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and len(value) < LONGEST_PATH and value.lower().endswith(endings):
            yield value


def mark(path: str, folder: Path) -> str:
    """Changes when a file does, as far as can be told without reading it."""
    try:
        about = located(path, folder).stat()
    except (OSError, ValueError, Unusable):
        return f"{path}|"
    return f"{path}|{about.st_size}|{about.st_mtime_ns}"


def block_of(count: int, fraction: float, blocks: int) -> int:
    """How long a block is, if so many of them are to be that fraction of the rows."""
    return max(1, int(count * fraction / blocks))


# ---- folders by class


def class_rows(reader: Reader) -> Rows:
    """Media in folders that say what they show: FOLDER/cat/1.png, or FOLDER/train/cat/1.png and FOLDER/val/cat/2.png.

    Files are ordered by name, whatever their class: neighbours were often made together, by one person, say. Were they split, a model
    that knows the person would pass. So validation takes few, long blocks, which part neighbours only at their ends.

    Raises:
        UserError: when there are no media in such folders.
    """
    folder = Path(reader.name).expanduser()
    found = [file for file in folder.rglob("*") if file.is_file()]
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    files = sorted((file for file in found if file.suffix.lower() in PICTURES | SOUNDS), key=made)
    if not files:
        raise UserError(
            f"{folder} holds neither rows ({' '.join(sorted(ROWS))}) nor pictures or sounds: give --data another folder. {reader.written(None)}"
        )
    tops = {file.relative_to(folder).parts[0].lower() for file in files}
    split = "train" in tops and tops <= set(SPLITS)
    deep = 3 if split else 2
    if not any(len(file.relative_to(folder).parts) == deep for file in files):
        raise UserError(
            f"{folder} has no file of rows ({' '.join(sorted(ROWS))}), and its media, such as {files[0]}, are not in folders by class "
            f"(FOLDER/CLASS/FILE). {reader.written(files[0])}"
        )

    others = sorted(set(found) - set(files))
    others = [file for file in others if len(file.relative_to(folder).parts) == deep]  # in folders of classes: not a README above them

    def of(name: str, some: list[Path]) -> list[Path]:
        return [file for file in some if split_of(Path(file.relative_to(folder).parts[0])) == name] if split else some

    def rows(name: str) -> Iterator[Row]:
        for file in of(name, others):
            reader.skipped.add("file that is neither picture nor sound", str(file))
        for file in of(name, files):
            if len(file.relative_to(folder).parts) != deep:
                reader.skipped.add("media file that is not in the folder of a class (FOLDER/CLASS/FILE)", str(file))
                continue
            kind = "image" if file.suffix.lower() in PICTURES else "audio"
            yield {reader.media[kind]: str(file), reader.config.text_field: file.parent.name}, str(file), lambda path: read_file(Path(path))

    marks = "".join(mark(str(file.relative_to(folder)), folder) for file in [*files, *others])
    return Rows(
        key=hashlib.sha256(f"{reader.name}|{marks}".encode(errors="replace")).hexdigest(),
        train=lambda: reader.samples(rows("train")),
        val=(lambda: reader.samples(rows("val"))) if split and of("val", files) else None,
        skipped=reader.skipped,
        block=block_of(len(of("train", files)), reader.config.val_fraction, 4),
    )


def made(file: Path) -> tuple[list[str], Path]:
    """Sorts files by the words and numbers in their names, less those of their class: cat/cat_9.png, dog/dog_9.png, cat/cat_10.png."""
    words, label = (re.findall(r"\d+|[^\W\d_]+", name.lower()) for name in (file.stem, file.parent.name))
    return [word.zfill(20) if word.isdigit() else word for word in words if word not in label], file


# ---- the Hub


def hub_rows(reader: Reader) -> Rows:
    """The rows of a dataset of the Hub. Its pictures and sounds come as they were stored: it would decode them with FFmpeg. How many rows
    there are many datasets say; to count those of another, all of it would have to be read.

    Raises:
        UserError: when the hub cannot be reached, has no such dataset, or none of the fields in it.
    """
    name, _, configuration = reader.name[3:].partition(":")
    loaded = hub_dataset(name, configuration)
    text_field = reader.config.text_field
    fields = loaded["train"].features or {}
    if fields and "messages" not in fields:
        if text_field not in fields:
            raise missing_field(text_field, name, list(fields))
        media = [field for field, feature in fields.items() if type(feature).__name__ in ("Image", "Audio")]
        if media and not set(reader.media.values()) & set(fields):
            raise reader.other_field(media[0])
    classes = getattr(fields.get(text_field), "names", None)
    info, validates = loaded["train"].info, "validation" in loaded
    count = info.splits["train"].num_examples if "train" in (info.splits or {}) else 0
    block = block_of(count, reader.config.val_fraction, 40) if count else NEIGHBOURS

    def rows(split: str) -> Iterator[Row]:
        data = loaded[split] if hasattr(loaded[split], "decode") else loaded[split].to_iterable_dataset()
        data = data.decode(False) if data.features else data
        for number, row in enumerate(arriving(data, name), 1):
            if classes and isinstance(row[text_field], int) and row[text_field] >= 0:
                row[text_field] = classes[row[text_field]]
            yield row, f"{name} {split} row {number}", from_hub(name)

    return Rows(
        key=f"{reader.name}|{reader.fields}|{getattr(info, 'dataset_size', 0) or 0}{'' if validates else f'|{block}'}",
        train=lambda: reader.samples(rows("train")),
        val=(lambda: reader.samples(rows("validation"))) if validates else None,
        skipped=reader.skipped,
        block=block,
    )


def from_hub(name: str) -> Fetch:
    """Reads the files that a dataset's own rows name: in its repository, or where `datasets` has put them on this machine."""

    def streamed(path: str) -> Iterator[bytes]:
        import fsspec

        with fsspec.open(path, "rb") as file:
            yield file.read(MOST_BYTES)

    def fetch(path: str) -> bytes:
        if re.fullmatch(r"(zip://[^:]*::)?hf://datasets/.+", path):
            return b"".join(arriving(streamed(path), name))
        if not Path(path).is_absolute():
            raise Unusable("a path that is not in the dataset", path)
        return read_file(Path(path))

    return fetch
