"""Documents to shards to batches: nothing lost, nothing leaked, nothing done twice."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data
from config import TrainConfig, UserError
from data import Batches, Tokens, row_starts, val_windows, window_batch
from model import IGNORE
from tokenizer import ByteTokenizer

ROOT = Path(__file__).resolve().parent.parent
EOT = ByteTokenizer.eot
TEXTS = st.lists(st.text("abc é", min_size=1, max_size=30), min_size=2, max_size=30, unique=True)
DOCUMENTS = st.lists(st.integers(0, 12), min_size=2, max_size=40)  # their lengths, without the eot


def split(source, fraction: float = 0.1) -> dict[str, list[str]]:
    """The pieces of each side."""
    sides: dict[str, list[str]] = {"train": [], "val": []}
    for name, text, _ in data.splitter(source, fraction)():
        sides[name].append(text)
    return sides


class Ids(Tokens):
    """Tokens that never were on a disk: documents of these lengths, each id another number."""

    def __init__(self, lengths: list[int], end: bool = True):
        starts = np.cumsum([0] + [n + 1 for n in lengths])
        self.shards = [np.arange(starts[-1] + end, dtype=np.uint32)]
        self.starts = np.array([0, len(self.shards[0])])
        self.documents = starts[:-1].astype(np.int64)


# ---- the split


@given(texts=TEXTS, copies=st.integers(1, 3), fraction=st.sampled_from([0.05, 0.1, 0.5]))
def test_no_document_stands_on_both_sides_and_none_is_lost(source_of, texts, copies, fraction):
    sides = split(source_of(*texts * copies), fraction)
    assert not set(sides["train"]) & set(sides["val"])
    assert sorted(sides["train"] + sides["val"]) == sorted(texts * copies)
    assert sides["train"]
    assert sides["val"]


def test_many_documents_are_split_by_their_content(source_of):
    texts = [f"document {n}" for n in range(3000)]
    sides = split(source_of(*texts, *texts))
    assert not set(sides["train"]) & set(sides["val"])
    assert len(sides["train"]) + len(sides["val"]) == 6000
    # 300 of 3,000 are expected with a deviation of 16; five deviations are a false alarm in two million
    assert abs(len(set(sides["val"])) - 300) < 5 * 16.4


def test_the_side_of_a_document_does_not_depend_on_its_place(source_of):
    texts = [f"document {n}" for n in range(500)]
    assert set(split(source_of(*texts))["val"]) == set(split(source_of(*reversed(texts)))["val"])


def test_a_large_document_does_not_become_the_validation_text(source_of):
    """A book and a note: the model should learn from the book, whichever hash is smaller."""
    for n in range(8):
        sides = split(source_of(f"book {n} " * 1000, f"note {n}"))
        assert sides == {"train": [f"book {n} " * 1000], "val": [f"note {n}"]}


def test_few_large_documents_do_not_exceed_the_validation_limit(source_of, monkeypatch):
    monkeypatch.setattr(data, "VAL_BYTES", 1000)
    sides = split(source_of(*(f"{n} " * 100 for n in range(10, 100))))
    assert 0 < sum(map(len, sides["val"])) <= 1000


def test_many_large_documents_leave_one_to_validate(source_of, monkeypatch):
    monkeypatch.setattr(data, "VAL_BYTES", 1)
    assert len(split(source_of(*(f"{n} " * 100 for n in range(300))))["val"]) == 1


@pytest.mark.parametrize("known", [True, False], ids=["known size", "unknown size"])
def test_of_a_large_text_no_more_than_the_limit_validates(source_of, monkeypatch, known):
    """Not even where the first documents happen to have large marks, and not where nobody knows how large it is."""
    monkeypatch.setattr(data, "VAL_BYTES", 2000)
    for n in range(5):
        texts = [f"{n} document {m} " * 5 for m in range(4000)]
        source = dataclasses.replace(source_of(*texts, *texts[:2000]), n_bytes=sum(map(len, texts)) if known else 0)
        sides = split(source)
        assert not set(sides["train"]) & set(sides["val"])
        assert 0 < sum(map(len, set(sides["val"]))) <= 2 * 2000
        assert len(sides["train"]) + len(sides["val"]) == 6000


@given(
    text=st.text("ab é日\n", min_size=1, max_size=300), piece=st.integers(1, 40), fraction=st.sampled_from([0.1, 0.3])
)
def test_a_single_text_is_cut_once_at_its_end(text, piece, fraction):
    source = pieces_of(text, piece)
    sides = split(source, fraction)
    assert "".join(sides["train"]) + "".join(sides["val"]) == text
    if text.isascii():
        cut = int(len(text) * (1 - fraction))
        assert "".join(sides["train"]) == text[:cut]


def pieces_of(text: str, size: int) -> data.Source:
    """One document that is read in pieces."""
    cuts = [text[at : at + size] for at in range(0, len(text), size)]
    pieces = [(cut, n == len(cuts) - 1) for n, cut in enumerate(cuts)]
    return data.Source(name="pieces", key=repr((text, size)), n_bytes=len(text.encode()), train=lambda: iter(pieces))


def test_tiny_shakespeare_is_split_as_nanogpt_does(shared_data):
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()
    sides = split(pieces_of(text, 100_000))
    n = len(text)
    assert "".join(sides["train"]) == text[: int(n * 0.9)]
    assert "".join(sides["val"]) == text[int(n * 0.9) :]


def test_the_validation_part_of_a_long_text_is_limited(monkeypatch):
    monkeypatch.setattr(data, "VAL_BYTES", 50)
    assert "".join(split(pieces_of("x" * 10_000, 300))["val"]) == "x" * 50


def test_a_split_of_its_own_is_taken_as_it_is(source_of):
    assert split(source_of("a", "b", val=["a"])) == {"train": ["a", "b"], "val": ["a"]}


# ---- what is on the disk


def stream(*documents: str, end: bool = True) -> list[int]:
    """eot document eot document eot, in bytes."""
    ids = [i for text in documents for i in (EOT, *text.encode())]
    return ids + [EOT] * end


def test_documents_are_led_by_eot_and_the_last_is_ended_by_one(corpus_of):
    corpus = corpus_of("one", "two é", val=["three", "four"])
    assert corpus.train[0 : len(corpus.train)].tolist() == stream("one", "two é")
    assert corpus.val[0 : len(corpus.val)].tolist() == stream("three", "four")
    assert corpus.train.documents.tolist() == [0, 4]


def test_a_single_text_has_one_eot_at_its_start(home):
    corpus = data.prepare(TrainConfig(tokenizer="byte"), pieces_of("0123456789" * 3, 7), 0, progress=False)
    assert corpus.train[0 : len(corpus.train)].tolist() == stream(("0123456789" * 3)[:27], end=False)
    assert corpus.val[0 : len(corpus.val)].tolist() == stream("789", end=False)


@given(texts=st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=8))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_counts_are_those_of_the_text(corpus_of, texts):
    corpus = corpus_of(*texts, val=["held out", "\ud800"])
    n_bytes = sum(len(text.encode()) for text in texts)
    assert corpus.meta["train"] == {"tokens": n_bytes + len(texts) + 1, "bytes": n_bytes, "documents": len(texts)}
    assert corpus.meta["val"]["bytes"] == 8 + len("\ufffd".encode())
    lengths = corpus.tokenizer.byte_lengths()
    assert lengths[corpus.val[0 : len(corpus.val)]].sum() == corpus.meta["val"]["bytes"]


def test_a_large_vocabulary_is_kept_in_wider_numbers(corpus_of, monkeypatch):
    wide = type("Wide", (ByteTokenizer,), {"vocab_size": 70_000, "eot": 69_999})
    monkeypatch.setattr(data, "make_tokenizer", lambda *_: wide())
    corpus = corpus_of("one", "two", val=["three"])
    assert corpus.meta["dtype"] == "uint32"
    assert corpus.train[0:1].tolist() == [69_999]


def test_slices_across_shards(corpus_of, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 10)
    corpus = corpus_of("abcdefghijklmnopqrstuvwxyz", "0123456789", val=["x"])
    whole = stream("abcdefghijklmnopqrstuvwxyz", "0123456789")
    assert len(corpus.train.shards) == 4
    for start in range(len(whole)):
        for stop in range(start + 1, len(whole) + 1):
            assert corpus.train[start:stop].tolist() == whole[start:stop]


def test_a_vocabulary_never_sees_the_validation_text(corpus_of):
    bpe = corpus_of("aaaa bbbb " * 50, val=["xyzzy " * 200], tokenizer="bpe").tokenizer
    assert not any(b"xy" in piece or b"zz" in piece for piece in bpe.ranks)
    char = corpus_of("aaaa bbbb", val=["xyzzy"], tokenizer="char").tokenizer
    assert char.characters == " ab"


def test_a_vocabulary_never_sees_the_end_of_a_single_text(home):
    source = pieces_of("ab" * 900 + "z" * 200, 70)
    for fraction, characters in ((0.1, "ab"), (0.09, "abz")):
        config = TrainConfig(tokenizer="char", val_fraction=fraction)
        assert data.prepare(config, source, 0, progress=False).tokenizer.characters == characters


# ---- made once, whole or not at all


def test_the_second_time_nothing_is_read(home, source_of):
    config, source = TrainConfig(tokenizer="byte"), source_of("one", "two", val=["three"])
    first = data.prepare(config, source, 0, progress=False)
    source.train = source.val = None  # reading them would fail
    again = data.prepare(config, source, 0, progress=False)
    assert again.data_hash == first.data_hash
    assert len(list(home.glob("tokens-*/meta.json"))) == 1


def test_another_content_or_recipe_is_another_corpus(corpus_of):
    made = [corpus_of("one", "two", val=["x"]), corpus_of("one", "two!", val=["x"])]
    made += [corpus_of("one", "two", val=["x"], tokenizer="char"), corpus_of("one", "two", val=["x"], val_fraction=0.2)]
    assert len({corpus.data_hash for corpus in made}) == 4


def test_a_tokenizer_that_is_given_is_used_as_it_is(home, source_of):
    from tokenizer import CharTokenizer

    corpus = data.prepare(TrainConfig(), source_of("abc", "d", val=["e"]), 0, CharTokenizer("ab"), progress=False)
    assert corpus.tokenizer.to_dict() == {"kind": "char", "characters": "ab"}


def test_what_was_skipped_is_told(home, source_of):
    source = source_of("one", "two", val=["three"])
    source.skipped.add("null row", "a.jsonl line 3")
    read = source.train

    def reading():
        source.skipped.add("null row", "a.jsonl line 3")
        return read()

    source.train = reading
    corpus = data.prepare(TrainConfig(tokenizer="byte"), source, 0, progress=False)
    assert corpus.meta["skipped"] == ["skipped 1 null row (first: a.jsonl line 3)"]


def test_an_error_half_way_leaves_nothing(home, source_of):
    source = source_of("one", "two", val=["three"])

    def failing():
        yield "one", True
        raise UserError("the source failed")

    source.train = failing
    with pytest.raises(UserError, match="the source failed"):
        data.prepare(TrainConfig(tokenizer="byte"), source, 0, progress=False)
    assert not list(home.glob("tokens-*[!k]"))  # the lock may stay


ENDLESS = """
import sys, data, sources
from config import TrainConfig
def endless():
    for n in range(10**9):
        if n == 5000:
            print("ready", flush=True)
        yield f"document {n} " * 2000, True
source = sources.Source("endless", "killed", 0, endless, lambda: iter([("x", True)]))
data.prepare(TrainConfig(tokenizer="byte"), source, 0, progress=False)
"""


def test_a_kill_half_way_leaves_nothing_that_is_taken_for_whole(home, source_of):
    env = {**os.environ, "LLM_DATA_DIR": str(home), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", ENDLESS], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    (left,) = home.glob("tokens-*.tmp")
    assert list(left.glob("*.bin"))
    corpus = data.prepare(TrainConfig(tokenizer="byte"), source_of("one", val=["x"], key="killed"), 0, progress=False)
    assert corpus.train[0 : len(corpus.train)].tolist() == stream("one", end=False)
    assert not list(home.glob("tokens-*.tmp")), "what the killed process left is still there"


def test_a_folder_without_its_list_is_made_again(corpus_of):
    folder = corpus_of("one", "two", val=["x"]).folder
    (folder / "meta.json").unlink()
    assert len(corpus_of("one", "two", val=["x"]).train) == 9


def test_two_at_once_make_it_once(home, source_of, monkeypatch):
    made, make = [], data.make
    monkeypatch.setattr(data, "make", lambda *args: (made.append(1), make(*args)))
    source, config, corpora = source_of("one", "two", val=["x"]), TrainConfig(tokenizer="byte"), []
    threads = [
        threading.Thread(target=lambda: corpora.append(data.prepare(config, source, 0, progress=False)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert len(corpora) == 4


@pytest.mark.parametrize("damage", ["shorter", "no tokenizer", "no json"])
def test_damaged_shards_are_refused_by_name(corpus_of, damage):
    folder = corpus_of("one", "two", val=["x"]).folder
    if damage == "shorter":
        os.truncate(folder / "train_00000.bin", 4)
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "meta.json").write_text("{")
    with pytest.raises(UserError, match=folder.name):
        data.open_corpus(folder)


@pytest.mark.parametrize("documents", [[], ["x"], [""]])
def test_too_little_text_is_said(corpus_of, documents):
    with pytest.raises(UserError, match="too little text"):
        corpus_of(*documents)


# ---- batches


@given(lengths=DOCUMENTS, block=st.integers(1, 30), end=st.booleans())
def test_rows_of_documents_cover_every_token(lengths, block, end):
    tokens = Ids(lengths, end)
    starts = row_starts(len(tokens), tokens.documents, block)
    if starts is None or len(tokens) < block + 1:
        return
    assert all(a < b <= a + block for a, b in pairwise(starts))
    assert starts[0] == 0
    assert starts[-1] + block + 1 == len(tokens)
    short = max(lengths) + 1 <= block
    assert not short or all(start in tokens.documents for start in starts[:-1])


@given(lengths=DOCUMENTS, block=st.integers(1, 12), seed=st.integers(0, 9))
def test_an_epoch_draws_every_row_once(lengths, block, seed):
    tokens = Ids(lengths)
    if len(tokens) < block + 1:
        return
    batches = Batches(tokens, block, 1, seed)
    for epoch in range(2):
        first = [int(batches.row(epoch * batches.n_rows + n)[0]) for n in range(batches.n_rows)]
        assert len(set(first)) == batches.n_rows


@given(n=st.integers(2, 200), block=st.integers(1, 60))
def test_equal_cuts_cover_every_token_in_time(n, block):
    """The offset moves from epoch to epoch, so that no token is always left out at the ends."""
    tokens = Ids([n - 1], end=False)
    if n < block + 1:
        return
    batches = Batches(tokens, block, 1, 0)
    targets = set()
    for offset in range(batches.slack + 1):
        batches._epoch, batches._order, batches._offset = 0, np.arange(batches.n_rows), offset
        for row in range(batches.n_rows):
            targets |= set(batches.row(row)[1:].tolist())
    assert targets == set(range(1, n))


def test_a_batch_is_a_function_of_seed_and_step():
    tokens = Ids([9] * 100)
    forwards = [Batches(tokens, 16, 4, 7).batch(k)[0] for k in range(60)]
    batches = Batches(tokens, 16, 4, 7)
    for k in reversed(range(60)):
        assert torch.equal(batches.batch(k)[0], forwards[k])
    assert not torch.equal(Batches(tokens, 16, 4, 8).batch(0)[0], forwards[0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_one_batch_whatever_their_number(world):
    tokens = Ids([9] * 100)
    alone = Batches(tokens, 16, 8, 7)
    for step in (0, 5, 31):
        parts = [Batches(tokens, 16, 8, 7).batch(step, rank, world)[0] for rank in range(world)]
        assert torch.equal(torch.cat(parts), alone.batch(step)[0])


def test_targets_are_the_next_tokens():
    idx, targets = Batches(Ids([9] * 100), 16, 8, 7).batch(3)
    assert idx.shape == targets.shape == (8, 16)
    assert torch.equal(targets, idx + 1)  # the ids count upwards


@pytest.mark.parametrize("lengths", [[9] * 100, [999]])
def test_epochs_differ_in_order(lengths):
    batches = Batches(Ids(lengths), 16, 1, 7)
    epochs = [[int(batches.row(e * batches.n_rows + n)[0]) for n in range(batches.n_rows)] for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_short_documents_are_read_from_their_beginning(corpus_of):
    corpus = corpus_of(*(f"story {n}." for n in range(50)), val=["x"])
    batches = Batches(corpus.train, 32, 1, 0)
    beginnings = [batches.row(n)[0] == EOT for n in range(batches.n_rows)]
    assert sum(not begins for begins in beginnings) <= 1  # the row that ends with the text


def test_a_block_larger_than_the_corpus_is_refused_with_one_that_fits():
    with pytest.raises(UserError, match="--block_size 9 or less"):
        Batches(Ids([9], end=False), 10, 1, 0)
    assert Batches(Ids([9], end=False), 9, 1, 0).n_rows == 1


# ---- validation windows


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=40), block=st.integers(1, 30))
def test_windows_score_every_target_once(lengths, block):
    tokens = Ids(lengths, end=len(lengths) > 1)
    if len(tokens) < 2:
        return
    windows = val_windows(tokens, block)
    scored = [target for start, n in windows.tolist() for target in range(start + 1, start + n + 1)]
    assert scored == list(range(1, len(tokens)))
    assert windows[:, 1].max() <= block


@given(lengths=st.lists(st.integers(0, 12), min_size=2, max_size=40), block=st.integers(13, 40))
def test_documents_that_fit_are_never_cut(lengths, block):
    tokens = Ids(lengths)
    assert set(val_windows(tokens, block)[:, 0]) <= set(tokens.documents.tolist())


def test_a_batch_of_windows_scores_exactly_their_targets():
    tokens = Ids([3, 5, 2])  # ids 0 to 13
    idx, targets = window_batch(tokens, np.array([[0, 4], [4, 6], [10, 3]]))
    assert idx.shape == (3, 6)
    assert [[t for t in row if t != IGNORE] for row in targets.tolist()] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8, 9, 10],
        [11, 12, 13],
    ]
    scored = targets != IGNORE
    assert torch.equal(targets[scored], idx[scored] + 1)


# ---- memory


MEMORY = """
import resource, sys
import data, sources, tokenizer
from config import TrainConfig
source = sources.find_source(TrainConfig(data=sys.argv[1]))
ready = tokenizer.train_bpe(["the cat "] * 99, 300) if sys.argv[2] == "bpe" else tokenizer.ByteTokenizer()
ready.encode("warm up")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = data.prepare(TrainConfig(), source, 0, ready, progress=False)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(corpus.meta["train"]["bytes"] + corpus.meta["val"]["bytes"], (after - before) * 1024)
"""


def grown(home: Path, path: Path, kind: str = "byte") -> tuple[int, int]:
    """How many bytes were tokenised, and by how much the process grew."""
    env = {**os.environ, "LLM_DATA_DIR": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEMORY, str(path), kind]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def write_lines(path: Path, megabytes: int, line: str) -> int:
    with open(path, "w") as file:
        for _ in range(megabytes):
            file.write(line * (2**20 // len(line)))
    return path.stat().st_size


@given(sizes=st.lists(st.integers(1, 50), max_size=60))
def test_only_a_group_of_pieces_is_in_memory(sizes):
    pieces = [("train", "x" * size, True) for size in sizes]
    groups = list(data.grouped(iter(pieces), characters=2000))
    assert [piece for group in groups for piece in group] == pieces
    assert all(len(group) <= 4 for group in groups)  # however short they are


@given(texts=st.lists(TEXTS, max_size=5))
def test_each_piece_gets_its_own_ids_whichever_thread_made_them(texts):
    groups = [[("train", text, True) for text in group] for group in texts]
    tokenizer = ByteTokenizer()
    with ThreadPoolExecutor(3) as threads:
        made = list(data.encoding(groups, tokenizer, threads))  # all of them are under way before the first is looked at
        assert [[tokenizer.decode(ids) for ids in encoded] for _, encoded in made] == texts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_a_text_larger_than_the_limit_is_tokenised_within_it(home, tmp_path):
    size = write_lines(tmp_path / "a.txt", 200, "the cat sat on the mat\n")
    done, growth = grown(home, tmp_path / "a.txt")
    assert done == size
    assert growth < 250 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
@pytest.mark.parametrize("form", ["rows", "one line"])
def test_rows_and_a_single_line_stay_within_the_limit_too(home, tmp_path, form):
    rows = "".join(json.dumps({"text": f"cat {number} sat on the mat"}) + "\n" for number in range(1000))
    line = rows if form == "rows" else "日本の猫。"
    file = tmp_path / ("a.jsonl" if form == "rows" else "a.txt")
    write_lines(file, 60, line)
    _, growth = grown(home, file, "bpe")
    assert growth < 300 * 2**20
