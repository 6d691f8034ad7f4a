"""Corpora from files of every kind, whole and damaged, and what is said about those that cannot be used."""

from __future__ import annotations

import json
import socket

import pyarrow
import pyarrow.parquet
import pytest

import sources
from config import TrainConfig, UserError

pytestmark = pytest.mark.usefixtures("home")
ARTICLES = " \n = One = \n \n First text . \n = = Part = = \n More . \n \n = Two = \n \n Second text . \n"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def documents(source: sources.Source, split: str = "train") -> list[str]:
    """The documents of a split, their pieces joined."""
    found, held = [], ""
    for text, ends in getattr(source, split)():
        held += text
        if ends:
            found, held = [*found, held], ""
    assert not held, "the last document never ended"
    return found


def find(data: object, **values) -> sources.Source:
    return sources.find_source(TrainConfig(data=str(data), **values))


def write(path, content: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_jsonl(path, *rows: object):
    return write(path, "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


def write_parquet(path, **columns: list):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# ---- plain text


def test_a_text_file_is_one_document(tmp_path):
    source = find(write(tmp_path / "a.txt", "one\n\ntwo\r\nthree é 🙂"))
    assert documents(source) == ["one\n\ntwo\r\nthree é 🙂"]
    assert (source.val, source.skipped.lines()) == (None, [])


def test_a_source_can_be_read_again(tmp_path):
    source = find(write(tmp_path / "a.txt", "words\n" * 9))
    assert documents(source) == documents(source)


def test_bytes_that_are_no_text_are_named_with_their_line_and_counted(tmp_path):
    file = write(tmp_path / "a.txt", b"fine\nbad \xff here\nfine\n" + b"fine\n" * 50 + b"\xc3(\n")
    source = find(file)
    assert documents(source)[0].startswith("fine\nbad \ufffd here\nfine\n")
    (line,) = source.skipped.lines()
    assert line.startswith("skipped 2 ")
    assert f"{file} line 2" in line


def test_utf_16_is_refused_with_the_command_that_mends_it(tmp_path):
    file = write(tmp_path / "a.txt", "some text\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"iconv -f UTF-16 -t UTF-8 a\.txt"):
        documents(find(file))


def test_latin_1_is_refused_naming_its_first_bad_line(tmp_path):
    file = write(tmp_path / "a.txt", ("plain\n" + "une fenêtre\n" * 100).encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text: line 2 ") as caught:
        documents(find(file))
    assert "iconv" in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert documents(find(write(tmp_path / "a.txt", b"\xef\xbb\xbfwords"))) == ["words"]


def test_a_file_of_nothing_but_a_byte_order_mark(tmp_path):
    source = find(write(tmp_path / "a.txt", b"\xef\xbb\xbf"))
    assert documents(source) == []
    assert "empty file" in source.skipped.lines()[0]


def test_an_empty_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        find(write(tmp_path / "a.txt", ""))


def test_an_empty_file_among_others_is_counted(tmp_path):
    write(tmp_path / "texts" / "a.txt", "")
    write(tmp_path / "texts" / "b.txt", "words")
    source = find(tmp_path / "texts")
    assert documents(source) == ["words"]
    assert "empty file" in source.skipped.lines()[0]


@pytest.mark.parametrize("unit", ["word ", "é", "日本", "🙂x"])
def test_a_huge_line_comes_in_pieces_that_cut_no_character(tmp_path, monkeypatch, unit):
    monkeypatch.setattr(sources, "PIECE", 64)
    text = unit * 500
    source = find(write(tmp_path / "a.txt", "x" + text))
    pieces = [piece for piece, _ in source.train()]
    assert "".join(pieces) == "x" + text
    assert len(pieces) > 2
    assert max(len(piece) for piece in pieces) <= 2 * 4 * 64
    assert source.skipped.lines() == []


def test_a_huge_line_of_long_characters_is_read_in_linear_time(tmp_path, monkeypatch):
    """Reading byte by byte, copying what was read each time, took hours for 100 MB; this is 4 MB in pieces of 64 KB."""
    monkeypatch.setattr(sources, "PIECE", 2**14)
    text = "日" * 1_400_000
    assert documents(find(write(tmp_path / "a.txt", text))) == [text]
    monkeypatch.setattr(sources, "PIECE", 2**20)
    pieces = [piece for piece, _ in find(write(tmp_path / "b.txt", text * 4)).train()]
    assert len(pieces) > 1


def test_lines_are_counted_as_an_editor_counts_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 16)
    file = write(tmp_path / "a.txt", b"x" * 1000 + b"\nbad \xff\n")
    source = find(file)
    documents(source)
    assert f"{file} line 2" in source.skipped.lines()[0]


# ---- JSON lines


def test_jsonl_rows_are_documents(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", {"text": "one"}, "", {"text": "two\nlines", "n": 1})
    assert documents(find(file)) == ["one", "two\nlines"]


def test_jsonl_rows_of_no_use_are_counted_with_their_place(tmp_path):
    rows = [{"text": "good"}, "{broken", {"text": None}, {"text": 7}, {"other": "x"}, {"text": "  "}, "[1]", '"text"']
    file = write_jsonl(tmp_path / "a.jsonl", *rows)
    source = find(file)
    assert documents(source) == ["good"]
    told = source.skipped.lines()
    for reason, line in [("no JSON (", 2), ("null", 3), ("int", 4), ("without the field 'text'", 5), ("empty", 6)]:
        assert any(reason in one and f"line {line})" in one for one in told), (reason, told)
    assert any("skipped 2 row that is no JSON object" in one and "line 7)" in one for one in told)


def test_jsonl_bad_bytes_and_deep_nesting_spoil_one_row_only(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"text": "\xff"}\n' + b"[" * 100000 + b'\n{"text": "good"}\n')
    source = find(file)
    assert documents(source) == ["good"]
    assert source.skipped.counts == {"row that is no JSON": 2}


def test_jsonl_without_the_field_names_those_it_has(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", {"body": "one", "title": "t"}, {"body": "two"})
    with pytest.raises(UserError, match="'body', 'title'") as caught:
        documents(find(file))
    assert "--text_field" in str(caught.value)
    assert documents(find(file, text_field="body")) == ["one", "two"]


# ---- parquet


def test_parquet_rows_are_documents_and_nulls_are_counted(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", text=["one", None, "", "two"], n=[1, 2, 3, 4])
    source = find(file)
    assert documents(source) == ["one", "two"]
    told = source.skipped.lines()
    assert any("null" in line and "row 2" in line for line in told)
    assert any("empty" in line and "row 3" in line for line in told)


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    with pytest.raises(UserError, match="'body', 'n'"):
        documents(find(write_parquet(tmp_path / "a.parquet", body=["x"], n=[1])))


def test_parquet_column_of_numbers_is_counted_not_read(tmp_path):
    source = find(write_parquet(tmp_path / "a.parquet", text=[1, 2]))
    assert documents(source) == []
    assert source.skipped.lines()[0].startswith("skipped 2 row of type int")


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_parquet_is_named(tmp_path, damage):
    file = write_parquet(tmp_path / "a.parquet", text=["words"] * 1000)
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2] if damage == "cut" else b"noise" * 100)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
        documents(find(file))


# ---- folders, globs, splits


def test_a_folder_is_read_in_order_whatever_the_endings(tmp_path):
    write(tmp_path / "texts" / "b.md", "second")
    write(tmp_path / "texts" / "a.TXT", "first")
    write_jsonl(tmp_path / "texts" / "deep" / "c.jsonl", {"text": "third"})
    write(tmp_path / "texts" / "picture.png", b"\x89PNG")
    assert documents(find(tmp_path / "texts")) == ["first", "second", "third"]


def test_a_glob(tmp_path):
    for name in ("a.txt", "b.txt", "c.md"):
        write(tmp_path / name, name)
    assert documents(find(tmp_path / "*.txt")) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    "names", [("train.txt", "valid.txt"), ("Train-0.txt", "validation-0.txt"), ("train.txt", "val.txt")]
)
def test_a_split_of_its_own_is_kept(tmp_path, names):
    for name, text in zip((*names, "test.txt"), ("to learn", "to check", "to leave alone"), strict=True):
        write(tmp_path / "texts" / name, text)
    source = find(tmp_path / "texts")
    assert documents(source) == ["to learn"]
    assert documents(source, "val") == ["to check"]
    assert source.n_bytes == len("to learn")


def test_a_split_by_folders_is_kept(tmp_path):
    for name in ("train/a.txt", "train/deep/b.txt", "valid/c.txt"):
        write(tmp_path / "texts" / name, name)
    source = find(tmp_path / "texts")
    assert documents(source) == ["train/a.txt", "train/deep/b.txt"]
    assert documents(source, "val") == ["valid/c.txt"]
    (tmp_path / "texts/valid").rename(tmp_path / "texts/more")
    moved = find(tmp_path / "texts")
    assert moved.val is None and moved.key != source.key


def test_what_is_for_testing_is_not_trained_on(tmp_path):
    for name in ("train-00000.txt", "test-00000.txt"):
        write(tmp_path / "texts" / name, name)
    source = find(tmp_path / "texts")
    assert documents(source) == ["train-00000.txt"] and source.val is None
    [said] = source.skipped.lines()
    assert "file beside those whose names say train" in said and "test-00000.txt" in said


def test_words_that_begin_like_a_split_are_none(tmp_path):
    names = ["chapter.md", "training_guide.md", "trains.md", "values.md"]
    for name in names:
        write(tmp_path / "texts" / name, name)
    assert documents(find(tmp_path / "texts")) == names


def test_a_folder_with_only_training_files_has_no_split(tmp_path):
    write(tmp_path / "texts" / "train-1.txt", "one")
    write(tmp_path / "texts" / "train-2.txt", "two")
    assert find(tmp_path / "texts").val is None


def test_another_ending_is_refused_with_those_it_reads(tmp_path):
    with pytest.raises(UserError, match=r"'\.pdf'") as caught:
        find(write(tmp_path / "a.pdf", "x"))
    assert ".jsonl" in str(caught.value)


def test_nothing_there_is_named(tmp_path):
    (tmp_path / "hollow").mkdir()
    for where in ("nowhere.txt", "hollow", "*.txt"):
        with pytest.raises(UserError, match="no text found"):
            find(tmp_path / where)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", "x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources.hashlib, "file_digest", refuse)
    with pytest.raises(UserError, match=r"a\.txt cannot be read \(Permission denied\)"):
        find(file)


def test_the_key_follows_the_content_and_not_the_place(tmp_path):
    one = find(write(tmp_path / "x" / "a.txt", "text")).key
    assert find(write(tmp_path / "y" / "a.txt", "text")).key == one
    assert find(write(tmp_path / "x" / "a.txt", "texts")).key != one
    assert find(tmp_path / "y" / "a.txt", text_field="body").key != one


# ---- WikiText


@pytest.mark.parametrize("name", ["wiki.train.tokens", "wiki.train.raw"])
def test_wikitext_lines_are_joined_to_articles(tmp_path, name):
    found = documents(find(write(tmp_path / name, ARTICLES)))
    assert [text.split("\n")[0 if "Two" in text else 1].strip() for text in found] == ["= One =", "= Two ="]
    assert "".join(found) == ARTICLES


@pytest.mark.parametrize("name", ["wiki.jsonl", "wiki.en.parquet"])
def test_rows_of_other_files_called_wiki_stay_documents(tmp_path, name):
    texts = ["One ends.", "Two ends."]
    if name.endswith("parquet"):
        file = tmp_path / name
        write_parquet(file, text=texts)
    else:
        file = write(tmp_path / name, "\n".join(json.dumps({"text": text}) for text in texts))
    assert documents(find(file)) == texts


def test_wikitexts_own_split_is_kept(home):
    for split in ("train", "valid", "test"):
        write(home / "wikitext-2" / f"wiki.{split}.tokens", ARTICLES.replace("text", split))
    source = find("wikitext-2")
    assert len(documents(source)) == 2
    assert "First valid" in documents(source, "val")[0]


def test_wikitext_gives_the_same_articles_from_parquet_rows(home):
    """The Hub's files hold a line a row, empty ones too; the same text must give the same documents."""
    rows = ARTICLES.splitlines(keepends=True)
    for split in ("train", "validation"):
        write_parquet(
            home / "wikitext-2" / f"{split}-00000-of-00001.parquet", text=[r if r.strip() else "" for r in rows]
        )
    source = find("wikitext-2")
    assert [text.split("\n")[0].strip() for text in documents(source)] == ["= One =", "= Two ="]
    assert len(documents(source, "val")) == 2


def test_real_wikitext(shared_data):
    found = [text for text, _ in sources.articles(iter([((shared_data / "wikitext-2" / "valid.txt").read_text(), True)]))]
    assert len(found) == 60
    assert found[0].strip().startswith("= Homarus gammarus =")


# ---- auto, the stories, the Hub's name


def test_auto_takes_a_local_copy_and_says_so(home):
    write(home / "wikitext-2" / "wiki.train.tokens", ARTICLES)
    source = find("auto")
    assert len(documents(source)) == 2
    assert "wikitext-2" in source.why


def test_auto_falls_back_to_the_stories_and_says_why():
    source = find("auto", n_stories=20)
    assert source.name == "stories"
    assert (
        "stories, because Salesforce/wikitext is not on this machine and http://127.0.0.1:9 does not answer"
        in source.why
    )


def test_stories_are_counted_split_and_the_same_every_time():
    source = find("stories", n_stories=40)
    told, held_out = documents(source), documents(source, "val")
    assert (len(told), len(held_out)) == (40, 10)
    assert told == documents(find("stories", n_stories=40))
    assert not set(told) & set(held_out)


def test_stories_know_their_entropy():
    assert 0 < find("stories", n_stories=40).entropy() < 8


def test_another_number_of_stories_is_another_corpus():
    assert find("stories", n_stories=40).key != find("stories", n_stories=41).key


def test_the_hub_without_a_name_is_refused():
    with pytest.raises(UserError, match="hf:OWNER/NAME"):
        find("hf:")


def test_an_unreachable_hub_says_what_else_there_is():
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
        find("hf:owner/name")
    assert "--data stories" in str(caught.value)
    assert "HF_ENDPOINT" in str(caught.value)


def test_offline_without_a_copy_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        find("wikitext-103")


def test_the_hub_is_asked_through_a_proxy_where_one_is_set(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert not sources.answers("https://hub.invalid")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        place = f"127.0.0.1:{proxy.getsockname()[1]}"
        for spelt in (f"http://{place}", place):
            monkeypatch.setenv("HTTPS_PROXY", spelt)
            assert sources.answers("https://hub.invalid")
        monkeypatch.setenv("NO_PROXY", "hub.invalid")
        assert not sources.answers("https://hub.invalid")
    monkeypatch.delenv("NO_PROXY")
    assert not sources.answers("https://hub.invalid"), "the proxy is gone"
