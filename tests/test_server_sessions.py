"""Sessions: a text that is kept for its caller, and for nobody else, whatever happens to the process, the file or the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from config import ROOT, UserError
from server import sessions
from server.native import joined
from server.sessions import Sessions
from tests.live import KEY, load, save, serving

BLOCK = 64
EVERYTHING = 10**9


@pytest.fixture
def kept(tmp_path) -> Iterator[Sessions]:
    with opened(tmp_path / "sessions.db") as kept:
        yield kept


@contextlib.contextmanager
def opened(path, days: float = 30, turns: int = 5, clock=time.time) -> Iterator[Sessions]:
    kept = Sessions(str(path), days, turns, clock)
    try:
        yield kept
    finally:
        kept.close()


def text(kept: Sessions, owner: str, name: str = "s") -> str:
    return "".join(prompt + answer for prompt, answer in kept.begin(owner, name, EVERYTHING))


def add(kept: Sessions, owner: str = "me", name: str = "s", prompt: str = "p", answer: str = "a") -> None:
    kept.begin(owner, name, 0)
    kept.append(owner, name, prompt, answer, "tiny@7")


# ---- the file


def test_a_session_is_its_prompts_and_texts_in_order(kept):
    assert text(kept, "me") == ""
    add(kept, prompt="Once ", answer="upon")
    add(kept, prompt=" a", answer=" time\0")
    assert text(kept, "me") == "Once upon a time\0"
    assert kept.begin("me", "s", 5) == [(" a", " time\0")], "the newest turns that hold so many characters"


@pytest.mark.parametrize("prompt", ["a\0b", "\0", "", "né", "x" * 121, "é" * 119 + "🙂🙂", "🙂" * 200])
def test_the_list_shows_how_a_session_begins(kept, prompt):
    add(kept, prompt=prompt, answer=prompt[::-1])
    [listed] = kept.recent("me", 1e12, 10)
    assert (listed["prompt"], listed["text"]) == (prompt[:120], prompt[::-1][:120])


def test_callers_with_one_name_never_meet(kept):
    add(kept, "me", prompt="mine")
    assert text(kept, "you") == ""
    assert kept.page("you", "s", 0, 10)["turns"] == []
    assert kept.delete("you", "s") and not kept.delete("you", "s")
    assert kept.page("you", "s", 0, 10) is None
    assert text(kept, "me") == "minea"


def test_the_newest_turns_are_kept(kept):
    for number in range(8):
        add(kept, prompt=str(number), answer="")
    assert text(kept, "me") == "34567"
    assert [turn["number"] for turn in kept.page("me", "s", 0, 10)["turns"]] == [4, 5, 6, 7, 8]


def test_pages(kept):
    for number in range(5):
        add(kept, prompt=str(number))
    first = kept.page("me", "s", 0, 2)
    assert [turn["prompt"] for turn in first["turns"]] == ["0", "1"]
    second = kept.page("me", "s", first["next"], 2)
    last = kept.page("me", "s", second["next"], 2)
    assert [turn["prompt"] for turn in second["turns"] + last["turns"]] == ["2", "3", "4"]
    assert last["next"] is None
    assert kept.page("me", "s", 99, 2)["turns"] == []


def test_unused_sessions_are_deleted(tmp_path):
    now = [1000.0]
    with opened(tmp_path / "s.db", days=2, clock=lambda: now[0]) as kept:
        add(kept, name="old")
        now[0] += 86400
        add(kept, name="new")
        now[0] += 86401
        assert kept.page("me", "old", 0, 10) is None
        assert text(kept, "me", "new") == "pa"
        assert [row[0] for row in kept.connection().execute("SELECT name FROM sessions")] == ["new"]
        assert kept.connection().execute("SELECT count(*) FROM turns").fetchone() == (1,)
    with opened(tmp_path / "s.db", days=0, clock=lambda: 1e12) as kept:
        assert text(kept, "me", "new") == "pa"


def test_a_session_that_is_deleted_while_a_text_is_written_stays_deleted(kept):
    kept.begin("me", "s", 0)
    kept.delete("me", "s")
    kept.append("me", "s", "p", "a", "m")
    assert kept.page("me", "s", 0, 10) is None


def test_only_the_owner_of_the_file_reads_it(tmp_path):
    with opened(tmp_path / "sessions.db") as kept:
        add(kept)
        for path in tmp_path.glob("sessions.db*"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_file_whose_making_was_broken_off_is_made_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "SCHEMA", sessions.SCHEMA + "no statement")
        with pytest.raises(UserError):
            Sessions(str(tmp_path / "s.db"), 30, 10)
    kept = Sessions(str(tmp_path / "s.db"), 30, 10)
    assert kept.begin("me", "s", 5) == []
    kept.close()


def test_two_that_make_the_file_at_once_share_it(tmp_path):
    for n in range(10):
        made, ready = [], threading.Barrier(3)

        def make(path: str, made=made, ready=ready) -> None:
            ready.wait()
            made.append(Sessions(path, 30, 10))

        makers = [threading.Thread(target=make, args=[str(tmp_path / f"{n}.db")]) for _ in range(3)]
        for each in makers:
            each.start()
        for each in makers:
            each.join()
        for kept in made:
            kept.close()
        assert len(made) == 3


def test_deleted_text_is_gone_from_the_file(tmp_path):
    with opened(tmp_path / "sessions.db") as kept:
        add(kept, prompt="a very private thing")
        kept.delete("me", "s")
    assert not [path for path in tmp_path.iterdir() if b"private" in path.read_bytes()]


def test_many_threads_write_at_once(kept):
    def work(number: int) -> None:
        for _ in range(10):
            add(kept, name=f"s{number}")

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(kept.page("me", f"s{number}", 0, 10)["turns"]) == 5 for number in range(4))


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from server.sessions import Sessions
kept = Sessions(sys.argv[2], 0, 10**6)
kept.begin("me", "s", 0)
print("up", flush=True)
while True:
    number = (kept.page("me", "s", 0, 10**6)["turns"] or [{"number": 0}])[-1]["number"] + 1
    kept.append("me", "s", str(number), "x" * 20_000, "m")
    print(number, flush=True)
"""


def test_a_kill_in_mid_write_loses_nothing_that_was_said_to_be_written(tmp_path):
    path = tmp_path / "sessions.db"
    for round in range(5):
        command = [sys.executable, "-c", WRITER, str(ROOT), str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "up\n"
        told = [int(process.stdout.readline())]  # however slow the machine is, something was written
        time.sleep(0.02 + 0.013 * round)
        process.kill()
        told += [int(line) for line in process.communicate()[0].split("\n")[:-1]]
        with opened(path, days=0, turns=10**6) as kept:
            turns = kept.page("me", "s", 0, 10**6)["turns"]
        assert [turn["number"] for turn in turns] == list(range(1, len(turns) + 1))
        assert all(turn["prompt"] == str(turn["number"]) and len(turn["text"]) == 20_000 for turn in turns)
        assert len(turns) >= told[-1]


# ---- what must not be used


def broken(tmp_path, kind: str) -> str:
    """A file that is no file of sessions."""
    path = tmp_path / "sessions.db"
    if kind == "a text":
        path.write_text("Once upon a time " * 100)
    elif kind == "damaged":
        with opened(path) as kept:
            for _ in range(5):
                add(kept, prompt="x" * 5000)
        with open(path, "r+b") as file:
            file.seek(8192)
            file.write(os.urandom(4096))
    elif kind == "another program's":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE photos (name TEXT)")
    elif kind == "a later version's":
        with opened(path) as kept:
            kept.connection().execute("PRAGMA user_version = 2")
    elif kind == "a folder":
        path.mkdir()
    else:
        path = tmp_path / "no folder" / "sessions.db"
    return str(path)


@pytest.mark.parametrize("kind", ["a text", "damaged", "another program's", "a later version's", "a folder", "nowhere"])
def test_a_file_that_cannot_be_used_is_refused_and_left_alone(tmp_path, kind):
    path = broken(tmp_path, kind)
    before = {file: file.read_bytes() for file in tmp_path.glob("*.db") if file.is_file()}
    with pytest.raises(UserError, match="LLM_SESSION_DB") as caught:
        Sessions(path, 30, 5)
    assert path in str(caught.value)
    assert {file: file.read_bytes() for file in before} == before


def test_a_file_that_is_locked_at_start_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "WAIT", 0.05)
    path = tmp_path / "sessions.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="locked by another program"):
            Sessions(str(path), 30, 5)


# ---- over HTTP


@pytest.fixture(scope="module")
def host(tmp_path_factory, tiny_model):
    host = load(save(tmp_path_factory.mktemp("run") / "best_model.pt", tiny_model(block_size=BLOCK)))
    yield host
    host.drain(1)


@pytest.fixture
def served(host, tmp_path, monkeypatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr(sessions, "WAIT", 0.05)
    monkeypatch.setattr(sessions, "PROBE_EVERY", 0)
    with (
        serving(host, tmp_path, api_keys=("me", "you"), session_turns=5) as address,
        httpx.Client(base_url=address, headers={"X-API-Key": "me"}, timeout=10) as client,
    ):
        yield client


def generate(client: httpx.Client, prompt: str, **sent) -> httpx.Response:
    return client.post(
        "/v1/generate", json={"prompt": prompt, "max_new_tokens": 8, "seed": 1, "session_id": "s", **sent}
    )


def test_a_session_goes_on_after_its_text(served):
    first = generate(served, "Once").json()
    assert (first["session_id"], first["history_tokens"]) == ("s", 0)
    second = generate(served, " upon").json()
    length = len(("Once" + first["text"]).encode())
    assert second["history_tokens"] == length
    assert second["usage"]["prompt_tokens"] == 1 + length + 5
    whole = served.post(
        "/v1/generate", json={"prompt": "Once" + first["text"] + " upon", "max_new_tokens": 8, "seed": 1}
    ).json()
    assert second["text"] == whole["text"]


def test_a_stream_is_kept_as_well(served):
    with served.stream("POST", "/v1/generate", json={"prompt": "Once", "session_id": "s", "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert len(lines) > 2
    [turn] = served.get("/v1/sessions/s").json()["turns"]
    assert (turn["prompt"], turn["model"]) == ("Once", "tiny@7")
    assert turn["text"]


def test_a_long_session_loses_its_oldest_tokens(served):
    for _ in range(6):
        answer = generate(served, "sixteen letters.", ignore_eos=True).json()
    assert answer["history_tokens"] == BLOCK - 8 - 16
    long = generate(served, "x" * (BLOCK - 1), max_new_tokens=1)
    assert long.json()["history_tokens"] == 0
    assert generate(served, "x" * BLOCK).status_code == 422


@pytest.mark.parametrize(
    ("prompt", "new", "kept"), [("abc", 8, 56), ("abc", 1000, 32), ("a" * 50, 1000, 50), ("", 8, 56)]
)
def test_what_fits_is_kept(host, prompt, new, kept):
    ids, history = joined(host.engine, [("h" * 60, "h" * 40)], prompt, new)
    assert (len(ids), history) == (kept, kept - len(prompt))
    assert host.engine.tokenizer.decode(ids).endswith("h" * history + prompt)


def test_a_foreign_session_is_not_there(served):
    generate(served, "Once")
    you = {"X-API-Key": "you"}
    for answer in (served.get("/v1/sessions/s", headers=you), served.delete("/v1/sessions/s", headers=you)):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "session_not_found"
    assert (
        served.post(
            "/v1/generate", json={"prompt": "Mine", "session_id": "s", "max_new_tokens": 1}, headers=you
        ).json()["history_tokens"]
        == 0
    )
    assert len(served.get("/v1/sessions/s").json()["turns"]) == 1


def test_pages_over_http(served):
    for number in range(4):
        generate(served, str(number), max_new_tokens=1)
    page = served.get("/v1/sessions/s", params={"limit": 3}).json()
    assert [turn["prompt"] for turn in page["turns"]] == ["0", "1", "2"]
    page = served.get("/v1/sessions/s", params={"limit": 3, "after": page["next"]}).json()
    assert ([turn["prompt"] for turn in page["turns"]], page["next"]) == (["3"], None)
    assert served.delete("/v1/sessions/s").status_code == 200
    assert served.get("/v1/sessions/s").status_code == 404


def test_a_locked_file_is_503_for_a_moment(served, tmp_path):
    generate(served, "Once")
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        answer = generate(served, " upon")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "sessions_busy")
        assert answer.headers["retry-after"] == "1"
        assert served.get("/v1/sessions/s").status_code == 200  # readers do not wait for writers
        assert served.get("/readyz").status_code == 200
    assert generate(served, " upon").status_code == 200


def refuses_to_write(client: httpx.Client) -> None:
    """Sessions are 503 and say when to come back, /readyz says why, and texts without a session are written."""
    answer = generate(client, " upon")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "sessions_failed")
    assert "retry-after" in answer.headers
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "sessions.db" in answer.json()["error"]["message"]
    assert generate(client, "Once", session_id=None).status_code == 200


def test_a_read_only_file(served, monkeypatch):
    usual, state = Sessions.connection, "off"

    def connection(self):
        found = usual(self)
        found.execute(f"PRAGMA query_only = {state}")  # SQLite then says what it says of a read-only disk
        return found

    monkeypatch.setattr(Sessions, "connection", connection)
    assert generate(served, "Once").status_code == 200
    state = "on"
    refuses_to_write(served)
    assert served.get("/v1/sessions/s").status_code == 200
    state = "off"
    assert served.get("/readyz").status_code == 200


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of a megabyte; skips, saying so, where it cannot be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.name != "posix" or os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root and mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_is_really_full(host, small_disk, monkeypatch):
    monkeypatch.setattr(sessions, "PROBE_EVERY", 0)
    with serving(host, small_disk) as address, httpx.Client(base_url=address, headers={"X-API-Key": KEY}) as client:
        assert generate(client, "Once").status_code == 200
        with open(small_disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        refuses_to_write(client)
        (small_disk / "filler").unlink()
        assert client.get("/readyz").status_code == 200
        assert generate(client, " upon").status_code == 200
        assert [turn["prompt"] for turn in client.get("/v1/sessions/s").json()["turns"]] == ["Once", " upon"]
