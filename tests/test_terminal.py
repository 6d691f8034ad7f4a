"""`compare` tells in the terminal what the page of training shows: curves, plans, progress, checkpoints and samples."""

from __future__ import annotations

import re

import pytest

from tests.logbook import Logbook, loss_at
from tests.runs import main_here
from training import terminal
from training.history import Run
from training.terminal import BLOCKS, CHARTS, WIDTH


@pytest.fixture
def logs(tmp_path):
    """A long run that ended, and a newer one in progress; a third without a single event that counts."""
    first = Logbook(tmp_path, "first", ago=9000, max_iters=3000).start().steps(0, 3000)
    first.evaluation(1500, 0.9).evaluation(3000, 0.8).end(bpb=0.81)
    second = Logbook(tmp_path, "second", ago=60, learning_rate=5e-4).start().steps(0, 50).evaluation(40, 1.2)
    second.sample(20, "the older sample").sample(40, "a tale\nof \x1b[31mred").checkpoint(40, "best_model.pt").checkpoint(50, "last.pt")
    return tmp_path


def printed(logs, monkeypatch, capsys, *names: str) -> str:
    assert main_here(logs, monkeypatch, "compare", *names, "--log_dir", str(logs)) == 0
    return capsys.readouterr().out


def curves(text: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Bars and figures by chart and run."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for part in text.split("\n\n"):
        title, *lines = part.splitlines()
        if title in {chart.title for chart in CHARTS}:
            rows = [re.fullmatch(rf"  (\S+) +([ {BLOCKS}]+?) +(\S+.* → .+)", line).groups() for line in lines]
            found[title] = {name: (bars, figures) for name, bars, figures in rows}
    return found


def test_without_names_the_newest_run_is_told(logs, monkeypatch, capsys):
    text = printed(logs, monkeypatch, capsys)
    drawn = curves(text)
    assert set(drawn) == {chart.title for chart in CHARTS}
    assert all(set(each) == {"second"} for each in drawn.values())
    bars, figures = drawn["loss"]["second"]
    assert figures == f"{loss_at(0):.4f} → {loss_at(49):.4f}"
    assert bars[0] == BLOCKS[-1] and bars[-1] == BLOCKS[0]
    assert drawn["learning rate"]["second"][1] == "0.0005 → 0.000255"
    assert drawn["tokens/s"]["second"][1] == "1,024 → 1,024" and drawn["MFU"]["second"][1] == "25.0 % → 25.0 %"


def test_named_runs_stand_side_by_side_in_one_scale(logs, monkeypatch, capsys):
    text = printed(logs, monkeypatch, capsys, "second", "first")
    long, short = (curves(text)["loss"][name][0] for name in ("first", "second"))
    assert len(long) == WIDTH and len(short) == 1, "50 of 3,000 steps"
    rows = dict(re.findall(r"^(\w[\w -]*?)( ≠|) {2,}\S", text, re.M))
    assert rows["budget"] == rows["learning rate"] == " ≠" and rows["seed"] == ""
    assert "first: done · 3,000 steps in 50 min" in text


def test_progress_files_and_the_newest_sample_are_told(logs, monkeypatch, capsys):
    text = printed(logs, monkeypatch, capsys)
    assert re.search(r"^second: running · 49 % · 50 steps in 50 s · about 51 s left$", text, re.M)
    assert re.search(r"^  best_model\.pt: step 40, \d\d:\d\d$", text, re.M) and "  last.pt: step 50, " in text
    assert "  a word of warning" in text
    assert text.endswith("newest sample, step 40:\n  │ a tale\n  │ of \ufffd[31mred\n"), "no escape codes of a model's reach the terminal"


def test_resumes_rewinds_and_smaller_batches_are_told(tmp_path):
    book = Logbook(tmp_path, "a").start().steps(0, 9)
    book.write("micro_batch", step=9, micro_batch=4)
    book.write("rewind", step=5, from_step=9, rate=0.5)
    book.write("resume", step=5)
    run = Run(tmp_path / "a")
    run.refresh()
    told = terminal.card(run)
    assert "step 9: memory ran out; micro-batches of 4" in told
    assert "step 5: gone back here from step 9, with 0.5 of the rate" in told and "step 5: resumed" in told


def test_a_run_without_a_step_is_told_too(tmp_path, monkeypatch, capsys):
    Logbook(tmp_path, "bare").start()
    text = printed(tmp_path, monkeypatch, capsys)
    assert curves(text) == {} and "bare: killed? · 0 % · 0 steps in 0 s" in text
    (tmp_path / "bare" / "events.jsonl").write_text("")
    assert printed(tmp_path, monkeypatch, capsys).splitlines()[-1] == "bare: killed? · 0 % · 0 steps in 0 s"


def test_a_terminal_without_blocks_gets_question_marks(logs, monkeypatch, capsys):
    class Plain:
        encoding = "ascii"

        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

    plain = Plain()
    monkeypatch.setattr("sys.stdout", plain)
    main_here(logs, monkeypatch, "compare", "--log_dir", str(logs))
    assert plain.text.isascii() and "?" in plain.text
