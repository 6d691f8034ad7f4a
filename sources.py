"""Where text comes from: the embedded stories, files of several kinds, the Hugging Face Hub. Knows nothing of tokens.

`find_source` turns what `--data` says into a `Source`, whose documents are read one piece at a time, so that a corpus may be
larger than memory. Rows that cannot be used are skipped and counted with the place of the first one.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from config import DATA, TrainConfig, UserError
from tokenizer import unfinished

Piece = tuple[str, bool]  # some text, and whether its document ends here
PIECE = 2**20  # characters of a long text file read at a time

TEXT = {".txt", ".md", ".tokens", ".raw"}
KINDS = {*TEXT, ".jsonl", ".parquet"}
WIKITEXT = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-103": "wikitext-103-raw-v1"}
WIKITEXT_FILE = re.compile(r"wiki\.(train|valid|test)\.(tokens|raw)")  # as it was published
SPLITS = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
}  # fmt: skip


@dataclass
class Skipped:
    """What was left out, by reason: how often, and where first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def take(self, other: Skipped) -> None:
        """Counts what another left out too."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, other.first[reason])

    def lines(self) -> list[str]:
        return [f"skipped {n} {reason} (first: {self.first[reason]})" for reason, n in self.counts.items()]


@dataclass
class Source:
    """A corpus of text.

    Attributes:
        name: what it is called in logs.
        key: changes when the content does; shards are kept under it.
        n_bytes: about how much text there is, 0 when unknown.
        train: reads the documents, from the start at each call.
        val: reads those of the corpus's own validation split, where it has one.
        entropy: the true entropy of the validation text in bits per byte, where it is known.
        skipped: what the last reading left out.
        why: a sentence for the person, where a choice was made for them.
    """

    name: str
    key: str
    n_bytes: int
    train: Callable[[], Iterator[Piece]]
    val: Callable[[], Iterator[Piece]] | None = None
    entropy: Callable[[], float] | None = None
    skipped: Skipped = field(default_factory=Skipped)
    why: str = ""


def find_source(config: TrainConfig) -> Source:
    """The corpus that `config.data` names.

    Raises:
        UserError: when there is no such thing, naming what was looked for and what else can be passed.
    """
    data = config.data
    if data == "auto":
        return automatic(config)
    if data == "stories":
        return stories_source(config.n_stories)
    if data in WIKITEXT:
        return local_copy(data, config.text_field) or hub_source(
            config.dataset_name if "/" in config.dataset_name else "Salesforce/wikitext",
            WIKITEXT[data],
            config.text_field,
        )
    if data.startswith("hf:"):
        name, _, configuration = data[3:].partition(":")
        return hub_source(name, configuration, config.text_field)
    return files_source(data, config.text_field)


def automatic(config: TrainConfig) -> Source:
    """The Hub dataset of the configuration (WikiText-2) where it is on disk or can be downloaded, the stories otherwise."""
    name = next((short for short, long in WIKITEXT.items() if long == config.dataset_config), "")
    source = local_copy(name, config.text_field) if name else None
    if source:
        source.why = f"data auto: {name} from {DATA / name}"
        return source
    try:
        source = hub_source(config.dataset_name, config.dataset_config, config.text_field)
        source.why = f"data auto: {source.name} through datasets"
        return source
    except UserError as error:
        source = stories_source(config.n_stories)
        source.why = f"data auto: the embedded stories, because {str(error).splitlines()[0]}"
        return source


# ---- the embedded corpus


def stories_source(count: int) -> Source:
    """The generated stories: `count` to train on, a twentieth of that (at most 2,000) from another seed to validate."""
    from corpora import stories

    n_val = min(2000, max(10, count // 20))
    code = b"".join(path.read_bytes() for path in sorted(Path(stories.__file__).parent.glob("stor*.py")))

    def read(n: int, seed: int) -> Iterator[Piece]:
        return ((story.text, True) for story in stories.stories(n, seed=seed))

    def entropy() -> float:
        told = list(stories.stories(n_val, seed=1))
        return sum(story.bits for story in told) / sum(len(story.text.encode()) for story in told)

    return Source(
        name="stories",
        key=f"stories-{count}-{hashlib.sha256(code).hexdigest()[:12]}",
        n_bytes=450 * count,
        train=lambda: read(count, seed=0),
        val=lambda: read(n_val, seed=1),
        entropy=entropy,
    )


# ---- files


def files_source(data: str, text_field: str) -> Source:
    """A file, a folder or a glob. Where names say train, valid or test, of files or of folders, that is the corpus's own split.

    Raises:
        UserError: when nothing readable is there.
    """
    files = named_files(data, KINDS)
    if not files:
        raise UserError(
            f"no text found at {data!r}: give --data a file ({' '.join(sorted(KINDS))}), a folder or a glob of such files, "
            "stories, wikitext-2, or hf:OWNER/NAME."
        )
    for file in files:
        if file.suffix.lower() not in KINDS:
            raise UserError(
                f"{file} has the ending {file.suffix!r}; --data reads {' '.join(sorted(KINDS))}. Rename it to .txt if it is plain text."
            )
    sizes = {file: file.stat().st_size for file in files}
    if not any(sizes.values()):
        raise UserError(f"{files[0]} is empty (0 bytes): point --data at a file with text in it.")
    place, skipped = Path(data).expanduser(), Skipped()
    train, val, other = own_split(files, place)
    wikitext = Path(data).name in WIKITEXT  # a row there is a line

    def read_train() -> Iterator[Piece]:
        leave_out(other, skipped)
        return read_files(train, text_field, skipped, wikitext)

    source = Source(
        name=str(data),
        key=hashlib.sha256(repr([(str(below(f, place)), digest(f)) for f in files] + [text_field, wikitext]).encode()).hexdigest(),
        n_bytes=sum(sizes[file] for file in train),
        train=read_train,
        skipped=skipped,
    )
    if val:
        source.val = lambda: read_files(val, text_field, skipped, wikitext)
    return source


def named_files(data: str, kinds: set[str]) -> list[Path]:
    """The files that a path or a glob names, in order; of a folder those of these kinds."""
    path = Path(data).expanduser()
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in kinds and p.is_file())
    if path.is_file():
        return [path]
    return sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())


def own_split(files: list[Path], place: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The files to train on, those to validate on, and those of neither kind, where names say so; else all of them, and none.

    A split is named by the file, or by the folder right below `place`. Where some train and none validates, a part of the text does:
    what is for testing is never learned.
    """
    splits = {file: split_of(file) or split_of(Path(below(file, place).parts[0])) for file in files}
    if "train" not in splits.values() or not {"val", "test"} & set(splits.values()):
        return files, [], []
    train, val = ([file for file in files if splits[file] == split] for split in ("train", "val"))
    return train, val, [file for file in files if splits[file] not in ("train", "val")]


def leave_out(files: list[Path], skipped: Skipped) -> None:
    """Counts the files that a split of its own has no use for."""
    for file in files:
        skipped.add("file beside those whose names say train", str(file))


def below(file: Path, place: Path) -> Path:
    """A file's way from a folder, or its name where it does not lie in it."""
    return file.relative_to(place) if file.is_relative_to(place) and file != place else Path(file.name)


def local_copy(name: str, text_field: str) -> Source | None:
    """A dataset kept as a folder of its own files under `data/`."""
    folder = DATA / name
    if not folder.is_dir() or not any(p.suffix.lower() in KINDS for p in folder.rglob("*")):
        return None
    return files_source(str(folder), text_field)


def split_of(path: Path) -> str:
    """Which split a name says it is, as a whole word at its beginning: train, val, test, or nothing."""
    word = re.match("[a-z]*", path.name.lower().removeprefix("wiki."))[0]
    return SPLITS.get(word, "")


def read_files(files: list[Path], text_field: str, skipped: Skipped, wikitext: bool = False) -> Iterator[Piece]:
    """The documents of some files; `wikitext` joins what they hold to articles."""
    for file in files:
        suffix = file.suffix.lower()
        by_line = wikitext or bool(WIKITEXT_FILE.fullmatch(file.name))  # a row is a line there, no document
        if suffix == ".jsonl":
            pieces = clean(read_jsonl(file, text_field, skipped), skipped, empty=by_line)
        elif suffix == ".parquet":
            pieces = clean(read_parquet(file, text_field), skipped, empty=by_line)
        else:
            pieces = read_text(file, skipped)
        yield from articles(pieces) if by_line else pieces


def read_text(file: Path, skipped: Skipped) -> Iterator[Piece]:
    """A text file is one document, read in pieces that end at a line's end where there is one.

    Raises:
        UserError: when it is no UTF-8 text at all, naming the first line that is not.
    """
    number, bad, first_bad, held = 0, 0, 0, []
    size, any_text, new_line = 0, False, True
    with open(file, "rb") as lines:
        if (mark := lines.read(3)).startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{file} is UTF-16: convert it with iconv -f UTF-16 -t UTF-8 {file.name}.")
        if mark != b"\xef\xbb\xbf":
            lines.seek(0)
        while raw := lines.readline(4 * PIECE):
            for _ in range(3):  # a piece of a long line must not cut a character
                raw += lines.read(1) if unfinished(raw) else b""
            number += new_line
            new_line = raw.endswith(b"\n")
            try:
                line = raw.decode()
            except UnicodeDecodeError:
                line = raw.decode(errors="replace")
                bad, first_bad = bad + 1, first_bad or number
                skipped.add("line's bytes that are no UTF-8, replaced by U+FFFD", f"{file} line {number}")
                if bad > max(20, number // 50):
                    raise UserError(
                        f"{file} is not UTF-8 text: line {first_bad} and {bad - 1} more of the first {number} are not. "
                        f"Convert it, with iconv -f LATIN1 -t UTF-8 {file.name} for example."
                    ) from None
            held.append(line)
            size += len(line)
            if size >= PIECE:
                yield "".join(held), False
                held, size, any_text = [], 0, True
    if held or any_text:
        yield "".join(held), True
    else:
        skipped.add("empty file", str(file))


def read_jsonl(file: Path, text_field: str, skipped: Skipped) -> Iterator[tuple[object, str]]:
    """One JSON object a line.

    Raises:
        UserError: when no row has such a field, naming the fields they have.
    """
    found, fields = False, []
    for row, where in json_rows(file, skipped, "line"):
        if text_field in row:
            found = True
            yield row[text_field], where
        else:
            fields = fields or list(row)
            skipped.add(f"row without the field {text_field!r}", where)
    if not found and fields:
        raise missing_field(text_field, str(file), fields)


def json_rows(file: Path, skipped: Skipped, unit: str) -> Iterator[tuple[dict, str]]:
    """The objects of a file that has one a line, each with its place, such as `a.jsonl line 3`; what is none is counted."""
    with open(file, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{file} {unit} {number}"
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except (ValueError, RecursionError):  # bad UTF-8 is a ValueError too
                skipped.add("row that is no JSON", where)
                continue
            if isinstance(row, dict):
                yield row, where
            else:
                skipped.add("row that is no JSON object", where)


def read_parquet(file: Path, text_field: str) -> Iterator[tuple[object, str]]:
    """The rows of one column.

    Raises:
        UserError: for a file that is no parquet, or has no such column.
    """

    def column(table) -> list[str]:
        if text_field not in table.schema_arrow.names:
            raise missing_field(text_field, str(file), table.schema_arrow.names)
        return [text_field]

    for number, row in enumerate(parquet_rows(file, column, 1024), 1):
        yield row[text_field], f"{file} row {number}"


def parquet_rows(file: Path, columns: Callable, at_once: int) -> Iterator[dict]:
    """The rows of a file.

    Args:
        columns: which are read of this `ParquetFile`.
        at_once: rows that are made objects of together; Arrow holds their row group.

    Raises:
        UserError: for a file that is no parquet.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(file)
        for batch in table.iter_batches(batch_size=at_once, columns=columns(table)):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as parquet ({error}): copy it again.") from error


def missing_field(text_field: str, where: str, fields: list[str]) -> UserError:
    names = ", ".join(map(repr, fields)) or "none"
    return UserError(f"{where} has no field {text_field!r}; its fields are {names}: choose one with --text_field.")


def clean(rows: Iterator[tuple[object, str]], skipped: Skipped, empty: bool = False) -> Iterator[Piece]:
    """The rows that are text, each a document; the others are counted. With `empty`, empty rows are text too."""
    for value, where in rows:
        if value is None:
            skipped.add("null row", where)
        elif not isinstance(value, str):
            skipped.add(f"row of type {type(value).__name__}, not text", where)
        elif not (empty or value.strip()):
            skipped.add("empty row", where)
        else:
            yield value, True


def articles(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Joins WikiText's lines to its articles, which begin at ` = Title = `."""
    held: list[str] = []
    for text, _ in pieces:
        for line in text.splitlines(keepends=True):
            title = line.startswith(" = ") and not line.startswith(" = = ") and line.rstrip().endswith(" =")
            if title and any(part.strip() for part in held):
                yield "".join(held), True
                held = []
            held.append(line)
    if any(part.strip() for part in held):
        yield "".join(held), True


def digest(file: Path) -> str:
    """SHA-256 of a file's content, remembered by its path, size and time."""
    stat = file.stat()
    mark = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known_file = DATA / "digests.json"
    try:
        known = json.loads(known_file.read_text())
    except (OSError, ValueError):
        known = {}
    if mark not in known:
        try:
            with open(file, "rb") as content:
                known[mark] = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions.") from error
        known_file.parent.mkdir(parents=True, exist_ok=True)
        fresh = known_file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(known))
        os.replace(fresh, known_file)
    return known[mark]


# ---- the Hub


def hub_source(name: str, configuration: str, text_field: str) -> Source:
    """A dataset of the Hub as text.

    Raises:
        UserError: when the hub cannot be reached, has no such dataset, or not this field in it.
    """
    loaded = hub_dataset(name, configuration)
    fields = loaded["train"].features
    if fields is not None and text_field not in fields:
        raise missing_field(text_field, name, list(fields))
    skipped = Skipped()

    def read(split: str) -> Iterator[Piece]:
        arrived = enumerate(arriving(loaded[split], name), 1)
        rows = ((row.get(text_field), f"{name} {split} row {n}") for n, row in arrived)
        wikitext = "wikitext" in name
        pieces = clean(rows, skipped, empty=wikitext)
        return articles(pieces) if wikitext else pieces

    size = getattr(loaded["train"].info, "dataset_size", 0) or 0
    return Source(
        name=f"{name}:{configuration}" if configuration else name,
        key=f"hf:{name}:{configuration}:{text_field}:{size}",
        n_bytes=size,
        train=lambda: read("train"),
        val=(lambda: read("validation")) if "validation" in loaded else None,
        skipped=skipped,
    )


def hub_dataset(name: str, configuration: str):
    """The splits of a dataset of the Hugging Face Hub, streamed; honours HF_ENDPOINT, HF_HUB_OFFLINE and the local cache.

    Raises:
        UserError: when the hub cannot be reached, has no such dataset, or none to train on.
    """
    if not name:
        raise UserError("--data hf: names no dataset: write hf:OWNER/NAME or hf:OWNER/NAME:CONFIG.")
    offline = (
        os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        or os.environ.get("HF_DATASETS_OFFLINE", "") == "1"
    )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    online = not offline and answers(endpoint)
    if not online and not cached(name):
        state = "HF_HUB_OFFLINE is set" if offline else f"{endpoint} does not answer"
        raise UserError(
            f"{name} is not on this machine and {state}.\nPut the dataset's own files (parquet, txt) into a folder and pass --data FOLDER "
            "(data/wikitext-2 is found by itself), point HF_ENDPOINT at a mirror, or pass --data stories."
        )
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, configuration or None, streaming=online)
    except Exception as error:  # the library raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the dataset {name}{':' + configuration if configuration else ''} could not be loaded: {reason}\n"
            "Check the name with --data hf:OWNER/NAME[:CONFIG]."
        ) from error
    if "train" not in loaded:
        raise UserError(f"{name} has no split 'train', only {', '.join(loaded)}: choose another dataset with --data.")
    return loaded


def arriving(rows: Iterator, name: str) -> Iterator:
    """What comes of a dataset of the Hub.

    Raises:
        UserError: for the network's failures, and those of damaged files.
    """
    try:
        yield from rows
    except Exception as error:
        raise UserError(
            f"{name} could not be read to its end ({type(error).__name__}: {str(error)[:200]}): start again, or download "
            "the dataset's own files into a folder and pass --data FOLDER."
        ) from error


def cached(name: str) -> bool:
    """Whether `datasets` or the hub's cache has something of this dataset."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    datasets_cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    hub_cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (datasets_cache / name.replace("/", "___")).exists() or (
        hub_cache / f"datasets--{name.replace('/', '--')}"
    ).exists()


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether a server takes a connection within two seconds, or the proxy that leads to it."""
    parts = urlparse(url)
    proxy = getproxies().get(parts.scheme, "")
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    try:
        with socket.create_connection(
            (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), timeout=seconds
        ):
            return True
    except OSError:
        return False
