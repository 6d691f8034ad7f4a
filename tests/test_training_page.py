"""What the page of training asks for: read from growing, cut and broken logs, the same figures as `compare`, no harm to a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from config import ROOT, ServeConfig, UserError
from server import training_page, watch
from server.pages import STATIC
from tests.live import KEY, load, save, serving
from tests.logbook import Logbook, loss_at
from tests.runs import environment, finish, main_here, small_run, start, wait_for
from training import history
from training.compare import COLUMNS
from training.history import Curve, Run
from training.runlog import RunLog

HERE = "http://127.0.0.1"


@pytest.fixture
def logs(tmp_path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def page(logs) -> TestClient:
    """The app of `watch`."""
    return TestClient(watch.create(ServeConfig(log_dir=str(logs))), base_url=HERE)


def runs(page: TestClient) -> dict[str, dict]:
    """The list, by name."""
    return {run["name"]: run for run in page.get("/training/runs").json()["runs"]}


def story(page: TestClient, name: str, cursor: str = "") -> dict:
    return page.get(f"/training/runs/{name}", params={"from": cursor}).raise_for_status().json()


def joined(known: dict | None, fresh: dict) -> dict:
    """The points that a reader had, up to where the new ones begin, and then those: what training.js does."""
    if not known or not fresh["from"]:
        return fresh
    keep = fresh["from"]
    told = {**fresh, "from": 0}
    for name, value in fresh.items():
        if isinstance(value, list):
            told[name] = known[name][:keep] + value
        elif isinstance(value, dict):
            told[name] = {key: known[name][key][:keep] + value[key] for key in value}
    return told


# ---- curves


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=300), st.integers(1, 20))
def test_thinning_keeps_the_extremes_and_the_mean(values, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "POINTS", most)
        curve = Curve("loss")
        for step, value in enumerate(values):
            curve.append(step, step / 2, {"loss": value})
        told, size = curve.thinned(), curve.bucket
    assert len(told["step"]) <= most and size & (size - 1) == 0
    assert size == 1 or len(values) > most * size // 2  # and no thinner than it must be
    for k, step in enumerate(told["step"]):
        rows = values[k * size : (k + 1) * size]
        assert step in range(k * size, k * size + len(rows)) and told["time"][k] == step / 2
        there = [value for value in rows if value is not None]
        wanted = (min(there), max(there), np.mean(there)) if there else (None,) * 3
        got = [told["loss"][name][k] for name in ("low", "high", "mean")]
        assert got == [None if each is None else pytest.approx(each, rel=1e-6, abs=1e-6) for each in wanted]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=1, max_size=8))
def test_what_comes_piece_by_piece_is_the_whole(tmp_path_factory, sittings):
    """A reader who asks after every sitting, each of which begins some steps before the last one's end, has all points."""
    logs = tmp_path_factory.mktemp("logs")
    book, known, cursor, done = Logbook(logs, "a").start(), None, "", 0
    readers = [training_page.Runs(str(logs)) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "POINTS", 16)
        for more, back in sittings:
            done = max(0, done - back)
            book.write("resume", step=done)
            book.steps(done, done + more).evaluation(done + more, 1.0).sample(done + more, "text")
            done += more
            told = readers[0].one("a", cursor)
            known, cursor = joined(known, told["steps"]), told["next"]
            whole = readers[1].one("a", "")["steps"]
            assert known == whole and told["done"] == done


def test_an_answer_holds_only_what_is_new(page, logs):
    book = Logbook(logs, "a").start().steps(0, 30).evaluation(20, 1.2).sample(20, "one")
    first = story(page, "a")
    assert first["steps"]["step"] == list(range(30)) and len(first["samples"]["new"]) == 1
    assert first["steps"]["loss"]["mean"] == [pytest.approx(loss_at(step), rel=1e-6) for step in range(30)]
    nothing = story(page, "a", first["next"])
    assert nothing["steps"]["step"] == nothing["evaluations"]["step"] == nothing["samples"]["new"] == []
    book.steps(30, 32).sample(32, "two")
    second = story(page, "a", nothing["next"])
    assert (second["steps"]["from"], second["steps"]["step"]) == (30, [30, 31])
    assert second["samples"] == {"after": 1, "new": [{"number": 2, "step": 32, "time": book.now, "text": "two"}]}


@pytest.mark.parametrize("cursor", ["x", "-", "1-2-3-4", "a.b.c-d.e.f--", "-" * 99, "\u0663-\u0663-\u0663-\u0663"])
def test_a_cursor_that_is_none_begins_at_the_beginning(page, logs, cursor):
    Logbook(logs, "a").start().steps(0, 3)
    assert story(page, "a", cursor)["steps"]["step"] == [0, 1, 2]


def test_a_cursor_of_very_many_digits_is_none(page, logs):
    """Python refuses to make a number of them."""
    Logbook(logs, "a").start().steps(0, 3).sample(3, "one")
    *parts, _ = story(page, "a")["next"].split("-")
    assert len(story(page, "a", "-".join([*parts, "9" * 5000]))["samples"]["new"]) == 1
    parts[1] = parts[1].rpartition(".")[0] + "." + "9" * 5000
    assert story(page, "a", "-".join([*parts, "0"]))["steps"]["step"] == [0, 1, 2]


# ---- logs as they are


def test_half_a_line_waits_for_its_other_half(page, logs):
    book = Logbook(logs, "a").start().steps(0, 2)
    line = json.dumps({"event": "sample", "time": book.now, "step": 2, "text": "caf\u00e9"}, ensure_ascii=False).encode()
    half = line.index("\u00e9".encode()) + 1  # in the middle of a character
    for piece, samples in ((line[:half], 0), (line[half:], 0), (b"\n", 1)):
        with open(book.path, "ab") as file:
            file.write(piece)
        told = story(page, "a")
        assert (len(told["samples"]["new"]), told["done"]) == (samples, 2)
    assert told["samples"]["new"][0]["text"] == "caf\u00e9"


def test_a_log_that_is_cut_on_resume_goes_on(page, logs):
    from training.runlog import cut_half_line

    book = Logbook(logs, "a").start().steps(0, 5)
    with open(book.path, "a") as file:
        file.write('{"event": "step", "st')
    before = story(page, "a")
    cut_half_line(book.path)
    book.write("resume", step=3)
    book.steps(3, 4)
    after = story(page, "a", before["next"])
    assert (before["done"], after["done"], after["steps"]["from"]) == (5, 4, 0)
    assert after["steps"]["step"] == [0, 1, 2, 3]
    assert after["notes"][-1]["event"] == "resume"


@pytest.mark.parametrize("how", ["another file", "the same file, rewritten", "the same file, cut short"])
def test_a_log_that_is_replaced_is_read_anew(page, logs, how):
    old = Logbook(logs, "a").start().steps(0, 20).sample(20, "old")
    before = story(page, "a")
    fresh = Logbook(logs.parent / "other", "a").start().steps(0, 3 if how.endswith("short") else 40).sample(1, "new")
    if how == "another file":
        os.replace(fresh.path, old.path)
    else:
        old.path.write_bytes(fresh.path.read_bytes())
    after = story(page, "a", before["next"])
    assert after["steps"]["step"] == list(range(3 if how.endswith("short") else 40))
    assert [each["text"] for each in after["samples"]["new"]] == ["new"] and after["samples"]["after"] == 0


BROKEN = [
    b"", b"{", b"null", b"[1]", b"3", b"\xff\xfe\x00", b'{"event": "step"}', b'{"time": 3}', b'{"event": "step", "time": "x", "step": 1}',
    b'{"event": "step", "time": 1, "step": "one", "loss": 1, "progress": 0}', b'{"event": "sample", "time": 1, "step": 1, "text": 5}',
    b'{"event": "step", "time": 1, "step": 1e400, "loss": 1, "progress": 0}', b'{"event": {}, "time": []}', b"[" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:30].decode(errors="replace"))
def test_a_broken_line_in_the_middle_is_passed_over(page, logs, line):
    book = Logbook(logs, "a").start().steps(0, 2)
    with open(book.path, "ab") as file:
        file.write(line + b"\n")
    book.steps(2, 5)
    assert story(page, "a")["steps"]["step"] == [0, 1, 2, 3, 4]
    run = Run(logs / "a")
    run.refresh()
    assert run.broken == 1


def test_a_log_without_lines_or_beginning_is_shown(page, logs):
    (logs / "empty").mkdir(parents=True)
    (logs / "empty" / "events.jsonl").touch()
    Logbook(logs, "headless").steps(7, 9)
    assert set(runs(page)) == {"empty", "headless"}
    assert story(page, "headless")["steps"]["step"] == [7, 8]
    told = story(page, "empty")
    assert (told["steps"]["step"], told["facts"], told["left"], told["state"]) == ([], {}, None, "silent")


def test_steps_that_were_abandoned_are_gone(logs):
    """After a rewind, and also where the end of the first sitting was a proper one."""
    book = Logbook(logs, "a").start().steps(0, 20).evaluation(10, 1.5).evaluation(20, 0.1).end("SIGTERM")
    run = Run(logs / "a")
    run.refresh()
    assert (run.done, run.best()[0], run.state(book.now)) == (20, 0.1, "ended")
    book.now += 5000
    book.write("resume", step=15)
    book.steps(15, 18)
    book.write("rewind", step=16, from_step=18, rate=0.5)
    run.refresh()
    assert (run.done, run.best()[0], run.state(book.now)) == (16, 1.5, "running")
    assert run.seconds == pytest.approx(23)  # the time between sittings does not count, what was done in vain does
    assert [note["event"] for note in run.notes] == ["resume", "rewind"]


def test_a_run_that_was_begun_anew_under_its_name_is_the_new_one(page, logs):
    """Its checkpoints were deleted, its log was not."""
    book = Logbook(logs, "a").start().steps(0, 30).evaluation(30, 0.1).sample(30, "old").checkpoint(30, "best_model.pt")
    book.write("micro_batch", step=30, micro_batch=4)
    book.end(bpb=0.1)
    before = story(page, "a")
    book.now += 5000
    book.start().steps(0, 3).evaluation(3, 1.5).sample(3, "new")
    book.write("resume", step=3)
    book.steps(3, 5)
    whole, after = Run(logs / "a"), story(page, "a", before["next"])
    whole.refresh()
    assert (whole.done, whole.best()[0], whole.seconds, whole.state(book.now)) == (5, 1.5, pytest.approx(5), "running")
    assert (after["done"], after["bpb"], after["seconds"]) == (5, 1.5, pytest.approx(5))
    assert (after["steps"]["from"], after["steps"]["step"], after["evaluations"]["step"]) == (0, [0, 1, 2, 3, 4], [3])
    assert [each["text"] for each in after["samples"]["new"]] == ["new"] and after["samples"]["after"] == 0
    assert after["checkpoints"] == [] and after["end"]["stop_reason"] is None
    assert [note["event"] for note in after["notes"]] == ["resume"]
    book.steps(5, 6)
    assert story(page, "a", after["next"])["steps"]["step"] == [5]


def test_the_time_left_follows_the_pace_of_this_sitting(logs):
    book = Logbook(logs, "a").start().steps(0, 40)
    book.now += 10_000
    book.write("resume", step=40)
    for step in range(40, 61):
        book.now += 3  # four seconds a step with the one of its own
        book.step(step)
    run = Run(logs / "a")
    run.refresh()
    assert run.left() == pytest.approx(4 * 40)


def test_silence_is_judged_by_what_the_run_has_shown(logs):
    book = Logbook(logs, "a").start().steps(0, 3)
    run = Run(logs / "a")
    run.refresh()
    assert [run.state(book.now + s) for s in (59, 61)] == ["running", "silent"]
    book.now += 100  # a long evaluation
    book.evaluation(3, 1.0)
    run.refresh()
    assert [run.state(book.now + s) for s in (299, 301)] == ["running", "silent"]


# ---- the list


def test_no_folder_is_no_run(page):
    assert page.get("/training/runs").json()["runs"] == []
    assert page.get("/training/runs/a").status_code == 404


def test_runs_come_and_go(page, logs):
    Logbook(logs, "a").start().steps(0, 2)
    book = Logbook(logs, "b").start()
    assert set(runs(page)) == {"a", "b"}
    book.path.unlink()
    assert set(runs(page)) == {"a"} and page.get("/training/runs/b").status_code == 404


@pytest.mark.parametrize("name", ["..", "../logs/a", "..%2Flogs%2Fa", "%2e%2e%2flogs%2fa", "a%00", "a/events.jsonl", "a%2F", ".", "%20", "A%0d%0a"])
def test_a_name_never_leads_out_of_the_folder(page, logs, name):
    Logbook(logs, "a").start()
    Logbook(logs.parent, "secret").start().sample(1, "what nobody should read")
    answer = page.get(f"/training/runs/{name}")
    own = ("/training", "/training/", "/training/runs", "/training/runs/", "/training/runs/a")  # as clients tidy up addresses
    assert answer.status_code == 404 or answer.url.path in own
    assert "what nobody" not in answer.text


def test_the_figures_are_those_of_compare(logs, page, monkeypatch, capsys):
    Logbook(logs, "good").start().steps(0, 100).evaluation(50, 0.8).evaluation(100, 0.71).end(bpb=0.7123)
    Logbook(logs, "stopped", optimizer="muon").start().steps(0, 30).evaluation(10, 0.9).evaluation(20, 0.95).end("SIGINT")
    Logbook(logs, "alive", ago=100).start().steps(0, 100).evaluation(100, 0.6)
    Logbook(logs, "bare").steps(0, 3)
    assert main_here(logs.parent, monkeypatch, "compare", "--log_dir", str(logs)) == 0
    listed, _, _ = capsys.readouterr().out.partition("\n\n")
    head, *lines = listed.splitlines()
    told = page.get("/training/runs").json()
    assert told["columns"] == list(COLUMNS) == re.split(r"\s{2,}|(?<=bits/byte) | (?=ended)", head)
    assert [re.sub(r"\s+", " ", line).strip() for line in lines] == [
        " ".join(filter(None, run["cells"])) for run in told["runs"]
    ]
    assert [run["name"] for run in told["runs"]] == ["alive", "good", "stopped", "bare"]
    ends = {run["name"]: (run["bpb"], run["cells"][-1]) for run in told["runs"]}
    assert ends == {"good": (0.7123, "done"), "stopped": (0.9, "SIGINT"), "alive": (0.6, "running"), "bare": (None, "killed?")}


def test_a_story_tells_the_plan_and_the_files(page, logs):
    book = Logbook(logs, "a", learning_rate=0.25, time="10m").start().steps(0, 3)
    book.checkpoint(0, "last.pt").checkpoint(3, "best_model.pt").checkpoint(3, "last.pt")
    told = story(page, "a")
    assert {"1.23 M", "10m", "8 × 128 = 1,024 tokens", "0.25", "128 tokens"} <= set(told["facts"].values())
    assert [(saved["file"], saved["step"]) for saved in told["checkpoints"]] == [("best_model.pt", 3), ("last.pt", 3)]
    assert (told["warnings"], told["entropy"], told["learning_rate"]) == (["a word of warning"], 0.5, 0.25)


def test_a_long_log_comes_in_pieces_and_then_at_once(page, logs, monkeypatch):
    monkeypatch.setattr(training_page, "READING", 0.05)
    book, n = Logbook(logs, "long").start(), 200_000
    book.step(0)
    first = book.path.read_text().splitlines()[-1]
    head, tail = first.split('"step": 0')
    with open(book.path, "a") as file:
        file.writelines(f'{head}"step": {step}{tail}\n' for step in range(1, n))
    book.step(n, loss=99.0)
    t0, shares = time.perf_counter(), []
    while not shares or shares[-1] < 1:
        shares.append(runs(page)["long"]["read"])
    whole = time.perf_counter() - t0
    assert len(shares) > 3 and shares == sorted(shares)
    told = story(page, "long")
    assert told["done"] == n + 1 and 500 <= len(told["steps"]["step"]) <= history.POINTS
    assert max(told["steps"]["loss"]["high"]) == 99.0
    cursor, seconds = told["next"], []
    for step in range(n + 1, n + 4):  # the best of three, for other processes take their turns
        book.step(step)
        t0 = time.perf_counter()
        more = story(page, "long", cursor)
        seconds.append(time.perf_counter() - t0)
        assert more["done"] == step + 1 and len(more["steps"]["step"]) == 1
        cursor = more["next"]
    assert min(seconds) < whole / 20
    assert len(json.dumps(more)) < len(json.dumps(told)) / 10


def test_a_log_that_did_not_change_is_not_opened_again(logs, monkeypatch):
    book = Logbook(logs, "a").start()
    run, opened = Run(logs / "a"), []
    monkeypatch.setattr(run, "goes_on", lambda file: opened.append(file) or True)
    for change in (False, False, True, False):
        if change:
            book.steps(0, 1)
        assert run.refresh()
    assert len(opened) == 2 and run.done == 1


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_step_is_there_to_be_read_soon_after_it_was_done(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr("training.runlog.FLUSH_SECONDS", seconds)
    monkeypatch.setattr("training.runlog.open_board", lambda _: False)
    log = RunLog(tmp_path, progress=False)
    log.event("step", step=0, loss=1.0)
    run = Run(tmp_path)
    run.refresh()
    assert run.offset == 0 if seconds else run.offset > 0  # and no line has a write of its own: that would cost
    log.close()


# ---- no harm


def test_nothing_is_written(page, logs):
    Logbook(logs, "a").start().steps(0, 5)
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in logs.parent.rglob("*")}
    runs(page), story(page, "a"), page.get("/training"), page.get("/static/training.js")
    assert before == {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in logs.parent.rglob("*")}


def told_by(folder: Path) -> list[dict]:
    """A run's events, without what the clock makes of them."""
    lines = (folder / "logs" / "a" / "events.jsonl").read_text().splitlines()
    clock = {"time", "dt", "tokens_per_second", "mfu", "seconds", "training_seconds", "peak_memory_bytes", "plan", "train"}
    return [{name: value for name, value in json.loads(line).items() if name not in clock} for line in lines]


def test_a_run_is_unharmed_by_being_watched(tmp_path, monkeypatch):
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    for folder in (watched, alone):
        folder.mkdir()
    flags = {"max_iters": 90, "eval_interval": 10}
    process = start(watched, *small_run(watched, **flags))
    page = TestClient(watch.create(ServeConfig(log_dir=str(watched / "logs"))), base_url=HERE)
    wait_for(lambda: runs(page), process)
    seen, cursor = [], ""
    while process.poll() is None:
        told = story(page, "a", cursor)
        cursor = told["next"]
        seen.append(told["done"])
        time.sleep(0.01)
    assert finish(process).returncode == 0 == main_here(alone, monkeypatch, *small_run(alone, **flags))
    assert len(set(seen)) > 1 and seen == sorted(seen)  # it was seen growing
    assert told_by(watched) == told_by(alone)
    told = story(page, "a")
    summary = json.loads((watched / "logs" / "a" / "summary.json").read_text())
    assert (told["done"], told["bpb"], told["end"]["stop_reason"]) == (90, summary["val_bpb"], "done")
    files = {saved["file"]: (saved["step"], saved["val_loss"]) for saved in told["checkpoints"]}
    assert files["last.pt"][0] == 90 and files["best_model.pt"] == (summary["best_step"], pytest.approx(summary["val_loss"]))


# ---- who may look


def test_with_keys_the_runs_are_for_callers_and_cost_no_request(logs, tmp_path, tiny_model):
    Logbook(logs, "a").start()
    host = load(save(tmp_path / "model.pt", tiny_model()))
    try:
        with serving(host, tmp_path, log_dir=str(logs), rate_limit_rpm=2) as url:
            for path in ("/training/runs", "/training/runs/a"):
                assert httpx.get(url + path).status_code == 401
                assert httpx.get(url + path, headers={"X-API-Key": "wrong"}).status_code == 401
                answers = [httpx.get(url + path, headers={"Authorization": f"Bearer {KEY}"}) for _ in range(4)]
                assert {answer.status_code for answer in answers} == {200}
            assert httpx.get(f"{url}/training").status_code == 200  # the page itself holds no secret
            asked = [httpx.post(f"{url}/v1/score", json={"text": "a"}, headers={"X-API-Key": KEY}) for _ in range(3)]
            assert [answer.status_code for answer in asked] == [200, 200, 429]
    finally:
        host.drain(1)


def test_an_open_page_answers_to_no_foreign_name(logs):
    Logbook(logs, "a").start()
    page = TestClient(watch.create(ServeConfig(log_dir=str(logs))), base_url="http://evil.example")
    assert page.get("/training/runs").status_code == 403


def test_watch_is_not_open_to_others_by_mistake(logs):
    with pytest.raises(UserError, match="LLM_API_KEYS"):
        watch.create(ServeConfig(host="0.0.0.0", log_dir=str(logs)))
    users = {"users": "ann:secret", "jwt_secret": "0123456789abcdef" * 4}
    page = TestClient(watch.create(ServeConfig(host="0.0.0.0", **users, log_dir=str(logs))), base_url=HERE)
    token = page.post("/oauth/token", data={"username": "ann", "password": "secret"}).json()["access_token"]
    answers = [page.get("/training/runs", headers=each) for each in ({}, {"Authorization": f"Bearer {token}"})]
    assert [answer.status_code for answer in answers] == [401, 200]


# ---- the files


def test_the_page_takes_nothing_from_elsewhere_and_runs_nothing_inline(page):
    answer = page.get("/training")
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert page.get("/", follow_redirects=False).headers["location"] == "/training"
    for path in STATIC.glob("*.html"):
        html = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|javascript:", html), path
        for link in re.findall(r'(?:src|href)="([^"]+)"', html):
            assert re.match(r"/(?!/)|#", link), link
    for path in [path for path in STATIC.iterdir() if path.suffix in (".js", ".css")]:
        assert not re.search(r"https?://|innerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(", path.read_text()), path


def test_every_file_of_the_page_is_served_and_no_other(page):
    for path in STATIC.iterdir():
        answer = page.get(f"/static/{path.name}")
        assert answer.content == path.read_bytes() and answer.headers["x-content-type-options"] == "nosniff"
    for name in ("..%2fpages.py", "../pages.py", "%2e%2e/pages.py", "none.js", ".", "%00"):
        assert page.get(f"/static/{name}").status_code == 404, name


# ---- the command


def test_watch_starts_says_where_and_ends_on_ctrl_c(logs, tmp_path):
    Logbook(logs, "a").start().steps(0, 3)
    flags = ["watch", "--port", "0", "--log_dir", str(logs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, str(ROOT / "train_cli.py"), *flags], env=environment(tmp_path), **pipes)
    try:
        line = process.stdout.readline()
        url = re.match(r"(http://127\.0\.0\.1:\d+)/training ", line)[1]
        assert str(logs) in line
        assert httpx.get(url, follow_redirects=True).text == (STATIC / "training.html").read_text()
        told = httpx.get(f"{url}/training/runs").json()
        assert [run["name"] for run in told["runs"]] == ["a"] and not told["playground"]
    finally:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, ""), out


def test_watch_needs_no_torch():
    code = "import sys; import server.watch; print(sorted({'torch', 'matplotlib', 'datasets'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
