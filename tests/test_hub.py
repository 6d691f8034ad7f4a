"""The Hugging Face Hub, played by a server of our own: the real `datasets` library reads tiny datasets from it.

The library reads HF_ENDPOINT when it is imported, so each test asks its question in a process of its own.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pyarrow
import pyarrow.parquet
import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "a" * 40


def parquet(**columns: list) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


LINES = ["", " = One = \n", "", " First . \n", " = Two = \n", " Second . \n"]
DATASETS = {
    "own/tiny": {
        "data/train-00000-of-00001.parquet": parquet(text=["first", "second", None, ""], n=[1, 2, 3, 4]),
        "data/validation-00000-of-00001.parquet": parquet(text=["held out"], n=[5]),
    },
    "own/untouched": {"README.md": b"# nothing else\n"},
    "own/heldout": {"data/test-00000-of-00001.parquet": parquet(text=["only a test"])},
    "own/broken": {"data/train-00000-of-00001.parquet": b"this is no parquet" * 9},
    "own/cut": {
        "data/train-00000-of-00002.parquet": parquet(text=["first"]),
        "data/train-00001-of-00002.parquet": b"PAR1 and no more" * 9,
    },
    "own/wikitext": {
        "README.md": b"---\nconfigs:\n- config_name: raw\n  data_files:\n  - {split: train, path: raw/train-*}\n---\n",
        "raw/train-00000.parquet": parquet(text=LINES),
    },
}


class StandIn(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as `datasets` asks for: what a repository holds, and ranges of its files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = unquote(self.path.split("?")[0])
        api = re.fullmatch(r"/api/datasets/(\w+/\w+)(?:/(revision|tree|paths-info)/\w+)?(?:/(.*))?", path)
        file = re.fullmatch(r"/datasets/(\w+/\w+)/resolve/\w+/(.*)", path)
        name = (api or file)[1] if api or file else ""
        if name not in DATASETS:
            self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})
        elif file:
            self.send_file(DATASETS[name].get(file[2]))
        elif api[2] in ("tree", "paths-info"):
            entries = listing(DATASETS[name])
            under = api[3] or ""
            paths = parse_qs(body.decode()).get("paths", []) if not body.startswith(b"{") else json.loads(body)["paths"]
            wanted = (
                (lambda e: e["path"] in paths) if api[2] == "paths-info" else (lambda e: in_folder(e["path"], under))
            )
            self.answer(200, json.dumps([entry for entry in entries if wanted(entry)]).encode())
        else:
            files = [{"rfilename": path} for path in DATASETS[name]]
            self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files, "tags": []}).encode())

    do_HEAD = do_POST = do_GET

    def send_file(self, content: bytes | None) -> None:
        about = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if content is None:
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
        elif asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            about["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.answer(206, content[first : last + 1], **about)
        else:
            self.answer(200, content, **about)

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def listing(files: dict[str, bytes]) -> list[dict]:
    folders = {path.rpartition("/")[0] for path in files} - {""}
    return [{"type": "file", "path": path, "size": len(raw), "oid": "0" * 40} for path, raw in files.items()] + [
        {"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)
    ]


def in_folder(path: str, folder: str) -> bool:
    return path.rpartition("/")[0] == folder


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


ASK = """
import json, sys
from config import TrainConfig, UserError
from sources import find_source

def answer(values):
    try:
        source = find_source(TrainConfig(**values))
        train = list(source.train())
        val = source.val and list(source.val())
        return {"train": train, "val": val, "why": source.why, "skipped": source.skipped.lines()}
    except UserError as error:
        return {"error": str(error)}

print(json.dumps([answer(values) for values in json.loads(sys.argv[1])]))
"""
QUESTIONS = {
    "tiny": {"data": "hf:own/tiny"},
    "auto": {"data": "auto", "dataset_name": "own/tiny", "dataset_config": ""},
    "wikitext": {"data": "hf:own/wikitext:raw"},
    "nothing": {"data": "hf:own/nothing"},
    "field": {"data": "hf:own/tiny", "text_field": "body"},
    "split": {"data": "hf:own/heldout"},
    "untouched": {"data": "hf:own/untouched"},
    "config": {"data": "hf:own/wikitext:cooked"},
    "broken": {"data": "hf:own/broken"},
    "cut": {"data": "hf:own/cut"},
}


def ask(endpoint: str, home: Path, *questions: dict, **more: str) -> list[dict]:
    """What a fresh process makes of these settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "LLM_DATA_DIR": str(home / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASK, json.dumps(questions)]
    done = subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=120, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers(hub, tmp_path_factory) -> dict[str, dict]:
    return dict(zip(QUESTIONS, ask(hub, tmp_path_factory.mktemp("home"), *QUESTIONS.values()), strict=True))


def test_a_dataset_of_the_hub_is_streamed(answers):
    found = answers["tiny"]
    assert found["train"] == [["first", True], ["second", True]]
    assert found["val"] == [["held out", True]]
    assert [line.split(" (")[0] for line in found["skipped"]] == ["skipped 1 null row", "skipped 1 empty row"]
    assert "own/tiny train row 3" in found["skipped"][0]


def test_auto_takes_the_hub_where_it_answers(answers):
    assert answers["auto"]["train"] == [["first", True], ["second", True]]
    assert "own/tiny through datasets" in answers["auto"]["why"]


def test_wikitexts_rows_become_articles(answers):
    assert [text for text, _ in answers["wikitext"]["train"]] == [" = One = \n First . \n", " = Two = \n Second . \n"]
    assert answers["wikitext"]["val"] is None


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("nothing", ["own/nothing", "hf:OWNER/NAME"]),
        ("field", ["no field 'body'", "'text', 'n'", "--text_field"]),
        ("split", ["no split 'train'", "test"]),
        ("untouched", ["own/untouched"]),
        ("config", ["own/wikitext:cooked", "raw"]),
        ("broken", ["own/broken"]),
        ("cut", ["own/cut could not be read to its end", "--data FOLDER"]),
    ],
)
def test_what_the_hub_does_not_have_is_named(answers, question, told):
    error = answers[question]["error"]
    assert all(word in error for word in told), error


def test_a_hub_that_is_gone_and_no_copy(tmp_path):
    (answer,) = ask("http://127.0.0.1:9", tmp_path, QUESTIONS["tiny"])
    assert "http://127.0.0.1:9 does not answer" in answer["error"]


def test_offline_and_no_copy(hub, tmp_path):
    (answer,) = ask(hub, tmp_path, QUESTIONS["tiny"], HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in answer["error"]
