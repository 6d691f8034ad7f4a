"""Real faults on the real command line: signals, kills, full memory, full disks, two trainers, changed settings."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
import torch

import checkpoint
import train_cli
from config import TrainConfig
from tests.runs import (
    cli,
    equal,
    events,
    finish,
    losses,
    main_here,
    resume,
    small_run,
    start,
    wait_for,
    without_clock,
    write_text,
)

ENDLESS = {"max_iters": 10**6, "eval_interval": 50, "sample_tokens": 0}
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def checkpointed(folder, step: int = 1, run: str = "a"):
    """Whether a run has logged this many steps to disk."""
    log = folder / "logs" / run / "events.jsonl"
    return lambda: log.exists() and log.read_text().count('"event": "evaluation"') >= step


def last(folder, run: str = "a") -> dict:
    return checkpoint.load(folder / "out" / run / "last.pt")


# ---- signals


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_one_signal_finishes_the_step_saves_and_the_run_can_go_on(tmp_path, monkeypatch, number, code):
    process = start(tmp_path, *small_run(tmp_path, **ENDLESS))
    wait_for(checkpointed(tmp_path), process)
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "saved: go on with python train_cli.py --resume --run a" in done.stdout
    step = last(tmp_path)["provenance"]["step"]
    assert max(losses(tmp_path)) == step - 1
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, max_iters=step + 5)) == 0
    assert sorted(losses(tmp_path)) == list(range(step + 5))


SLOW = """
import sys, time
sys.path.insert(0, {root!r})
import train, train_cli
step = train.Trainer.step
def slow(self):
    step(self)
    print("in a step", flush=True)
    time.sleep(60)
train.Trainer.step = slow
train_cli.main(sys.argv[1:])
"""


@posix
def test_a_second_signal_leaves_at_once_and_harms_nothing(tmp_path):
    from config import ROOT
    from tests.runs import environment

    command = [sys.executable, "-c", SLOW.format(root=str(ROOT)), *small_run(tmp_path, **ENDLESS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(tmp_path), cwd=tmp_path)
    for line in process.stdout:
        if "in a step" in line:
            break
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None  # finishing its step
    t0 = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.stdout.close()
    assert time.monotonic() - t0 < 3
    assert last(tmp_path)["provenance"]["step"] == 0


REPEATED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import checkpoint, train_cli
save = checkpoint.save_last
def terminated(folder, content):
    if content["provenance"]["step"]:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
    save(folder, content)
checkpoint.save_last = terminated
train_cli.main(sys.argv[1:])
"""


@posix
def test_a_launcher_that_repeats_itself_does_not_stop_the_last_save(tmp_path):
    """SIGTERM again and again, while the state is saved that the first one asked for."""
    from config import ROOT
    from tests.runs import environment

    how = {"max_iters": 10**6, "eval_interval": 5, "sample_tokens": 0}
    command = [sys.executable, "-c", REPEATED.format(root=str(ROOT)), *small_run(tmp_path, **how)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), cwd=tmp_path, timeout=120)
    assert done.returncode == 143, done.stderr
    assert "stopped by SIGTERM after step 6, saved" in done.stdout
    assert last(tmp_path)["provenance"]["step"] == 6


@posix
@pytest.mark.slow
def test_kill_9_loses_one_interval_at_most(tmp_path, monkeypatch):
    """Killed at random moments of real training, and resumed: no step is missing in the end."""
    chance = random.Random(0)
    how = {"max_iters": 3000, "eval_interval": 20, "dropout": 0.2}
    for _ in range(2):
        seen = len(events(tmp_path, "evaluation")) if checkpointed(tmp_path, 0)() else 0
        arguments = resume(tmp_path) if seen else small_run(tmp_path, **how)
        process = start(tmp_path, *arguments)
        wait_for(checkpointed(tmp_path, seen + 2), process)
        time.sleep(chance.random() / 2)
        process.kill()
        finish(process)
        (tmp_path / "out" / "a" / "last.pt.new.1.tmp").write_bytes(b"half a checkpoint")
        reached = max((event["step"] for event in events_that_parse(tmp_path)), default=0)
        saved = checkpoint.load_newest(tmp_path / "out" / "a")[0]["provenance"]["step"]
        assert reached - saved <= 20
    assert saved < 3000, "the machine is so fast that nothing was killed"
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, max_iters=saved + 30)) == 0
    assert not list((tmp_path / "out" / "a").glob("*.tmp"))
    assert sorted(losses(tmp_path)) == list(range(saved + 30))


def events_that_parse(folder) -> list[dict]:
    found = []
    for line in (folder / "logs" / "a" / "events.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [event for event in found if event["event"] == "step"]


def test_a_killed_run_ends_like_one_that_was_not(tmp_path, monkeypatch):
    """The whole command line, killed right after a save, against a straight run: every weight."""
    how = {"max_iters": 40, "dropout": 0.2, "ema": 0.9}
    real = checkpoint.save_last

    def saved_then_killed(folder, content):
        real(folder, content)
        if content["provenance"]["step"] == 20:
            raise SystemExit(9)  # nothing after the save runs

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_last", saved_then_killed)
        assert main_here(tmp_path, patch, *small_run(tmp_path, "a", **how)) == 9
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path)) == 0
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "b", **how)) == 0
    assert losses(tmp_path) == losses(tmp_path, "b")
    assert equal(without_clock(last(tmp_path)), without_clock(last(tmp_path, "b")))


# ---- damaged files


def test_resume_falls_back_from_a_damaged_file_with_a_warning(tmp_path, monkeypatch, capsys):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 0
    whole = (tmp_path / "out" / "a" / "last.pt").read_bytes()
    (tmp_path / "out" / "a" / "last.pt").write_bytes(whole[:-1000])
    capsys.readouterr()
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path)) == 0
    told = capsys.readouterr().out
    assert "last.pt is damaged" in told and "from previous.pt, step 10" in told
    assert sorted(losses(tmp_path)) == list(range(20))


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, monkeypatch, capsys, verb):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 0
    best = tmp_path / "out" / "a" / "best_model.pt"
    broken = bytearray(best.read_bytes())
    broken[len(broken) // 2] ^= 4
    best.write_bytes(broken)
    more = ["--out", str(tmp_path / "exported")] if verb == "export" else []
    capsys.readouterr()
    assert main_here(tmp_path, monkeypatch, verb, str(best), *more) == 2
    assert "best_model.pt is damaged" in capsys.readouterr().err


# ---- NaN on the command line


def test_a_run_that_diverges_ends_with_code_3_and_a_sentence(tmp_path, monkeypatch, capsys):
    how = {"learning_rate": 1e6, "grad_clip": 0, "warmup": 0, "max_iters": 300, "eval_interval": 100}
    monkeypatch.setattr("train.Trainer.spike", lambda *_: True)  # every step is bad
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, **how)) == 3
    assert "pass a lower --learning_rate" in capsys.readouterr().err
    assert last(tmp_path)["provenance"]["step"] == 0


# ---- out of memory


LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
import torch, train, train_cli
from pathlib import Path
torch.set_num_threads(1)
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot, numpy.random, torch.utils.tensorboard  # what a run loads later on
begin, held = train.Trainer.begin, []
def limit(more):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
def limited(self):
    begin(self)
    if {warm}:
        self.step()  # optimizer state, and the activations of the smallest micro-batch
    room = torch.empty({room}, dtype=torch.uint8)
    limit(0)
    for size in (2**22, 2**18, 2**14):  # what was freed before and kept is taken as well
        try:
            while True:
                held.append(torch.empty(size, dtype=torch.uint8))
        except RuntimeError:
            pass
    del room
    limit(2**21)
    self.progress.micro_batch = {micro}
train.Trainer.begin = limited
score = train.final_score
def unlimited(trainer):  # the loop is over: what draws the picture may have its own memory
    held.clear()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return score(trainer)
train.final_score = unlimited
train_cli.main(sys.argv[1:])
"""


def starve(folder, room: int, micro: int, *arguments: str) -> subprocess.CompletedProcess:
    """A run whose process may take only so many bytes more once it began: the allocator really fails."""
    from config import ROOT
    from tests.runs import environment

    code = LIMITED.format(root=str(ROOT), room=room, micro=micro, warm=micro > 1)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, env=environment(folder),
        cwd=folder,
    )  # fmt: skip


WIDE = {"n_layer": 2, "n_embd": 128, "block_size": 256, "batch_size": 16, "max_iters": 6, "eval_interval": 3,
        "eval_tokens": 300, "sample_tokens": 0}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
@pytest.mark.parametrize("room", (30, 50, 60))  # MiB: torch's allocator is the one to fail, or oneDNN
def test_real_out_of_memory_is_mended_and_the_result_is_that_of_smaller_pieces(tmp_path, monkeypatch, room):
    done = starve(tmp_path, room * 2**20, 16, *small_run(tmp_path, micro_batch_size=1, **WIDE))
    assert done.returncode == 0, done.stderr
    assert "out of memory: the micro-batch is now" in done.stdout
    step_sizes = {event["step"]: event["micro_batch"] for event in events(tmp_path, "step")}
    assert step_sizes[0] == 1 and 1 <= step_sizes[5] < 16
    assert sorted(step_sizes) == list(range(6))
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "b", micro_batch_size=step_sizes[5], **WIDE)) == 0
    for step, loss in losses(tmp_path, "b").items():
        assert losses(tmp_path)[step] == pytest.approx(loss, abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_no_room_for_one_sequence_is_a_line_of_advice(tmp_path, monkeypatch):
    done = starve(tmp_path, 2**20, 1, *small_run(tmp_path, micro_batch_size=1, **WIDE))
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    advice = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert len(advice) == 1 and "--" in advice[0]
    assert last(tmp_path)["provenance"]["step"] == 0
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path)) == 0


def test_a_model_that_no_memory_holds_is_a_line_of_advice(tmp_path, monkeypatch, capsys):
    how = {"n_embd": 131072, "n_head": 1024, "n_layer": 900}
    monkeypatch.setattr("model.nn.init.normal_", lambda *_, **__: None)
    monkeypatch.setattr("training.calibrate.measure_attention", lambda *_: {"math": 1.0})  # of this width, a minute and eleven gigabytes
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, **how)) == 2
    assert "out of memory" in capsys.readouterr().err


# ---- disks


def test_an_out_dir_that_cannot_be_written_fails_before_the_first_step(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, out_dir=tmp_path / "file" / "out")) == 2
    assert "--out_dir" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_a_log_dir_that_cannot_be_written_fails_before_the_first_step(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, log_dir=tmp_path / "file" / "logs")) == 2
    assert "--log_dir" in capsys.readouterr().err


@pytest.fixture
def mounted(tmp_path):
    """Mounts a tmpfs with some options; skips, saying so, where that is not allowed."""
    made = []

    def mount(path, options):
        path.mkdir(parents=True)
        if os.name == "nt" or os.geteuid() or not shutil.which("mount"):
            pytest.skip("mounting a tmpfs needs root and mount")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("which", ["out_dir", "log_dir"])
def test_a_read_only_disk_fails_before_the_first_step(tmp_path, monkeypatch, capsys, mounted, which):
    place = mounted(tmp_path / "ro", "ro")
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, **{which: place})) == 2
    told = capsys.readouterr().err
    assert "Read-only file system" in told and f"--{which}" in told


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path, monkeypatch, capsys, mounted):
    """Room for last.pt and half of another: the save at step 10 fails, with a sentence."""
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "probe")) == 0
    size = (tmp_path / "out" / "probe" / "last.pt").stat().st_size
    out = mounted(tmp_path / "full", f"size={size * 3 // 2}")
    capsys.readouterr()
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, out_dir=out)) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert checkpoint.load(out / "a" / "last.pt")["provenance"]["step"] == 0
    assert not list(out.rglob("*.tmp"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_full_disk_of_logs_is_a_sentence(tmp_path, monkeypatch, capsys, mounted):
    logs = mounted(tmp_path / "full", "size=16k")
    how = {"log_dir": logs, "max_iters": 400, "eval_interval": 400}
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, **how)) == 2
    assert "No space left on device" in capsys.readouterr().err


# ---- two trainers, changed inputs


def test_a_second_trainer_in_one_directory_is_refused_and_the_first_unharmed(tmp_path, monkeypatch, capsys):
    first = start(tmp_path, *small_run(tmp_path, **ENDLESS))
    wait_for(checkpointed(tmp_path), first)
    for arguments in (small_run(tmp_path), resume(tmp_path)):
        assert main_here(tmp_path, monkeypatch, *arguments) == 2
        assert "another process is training in" in capsys.readouterr().err
    wait_for(checkpointed(tmp_path, len(events(tmp_path, "evaluation")) + 1), first)
    first.terminate()
    assert finish(first).returncode == 143
    steps = [event["step"] for event in events(tmp_path, "step")]
    assert steps == list(range(len(steps)))


def test_a_new_run_never_takes_the_place_of_an_old_one(tmp_path, monkeypatch, capsys):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 0
    before = (tmp_path / "out" / "a" / "last.pt").read_bytes()
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 2
    assert "holds a run of 20 steps: pass --resume" in capsys.readouterr().err
    assert (tmp_path / "out" / "a" / "last.pt").read_bytes() == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 steps. Tests may resume it, but not add steps to it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        assert main_here(folder, patch, *small_run(folder)) == 0
    return folder


CHANGED = {
    "learning_rate": 1e-2, "n_layer": 2, "n_embd": 32, "block_size": 8, "batch_size": 8, "seed": 7, "optimizer": "muon",
    "tokenizer": "byte", "schedule": "linear", "dropout": 0.1, "ema": 0.9, "warmup": 0.5, "architecture": "modern",
    "vocab_size": 99, "weight_decay": 0.0, "data": "stories", "grad_clip": 2.0, "dtype": "bfloat16", "word_dropout": 0.2,
    "modalities": "image",
}  # fmt: skip


def test_runs_that_begin_in_one_second_have_names_of_their_own(tmp_path, monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(train_cli, "datetime", Stopped)
    names = []
    for _ in range(3):
        names.append(train_cli.choose_run(TrainConfig(preset="quick"), tmp_path))
        (tmp_path / names[-1]).mkdir()
    assert names == ["quick-20260102-030405", "quick-20260102-030405-2", "quick-20260102-030405-3"]


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_is_refused_by_name_at_resume(trained, monkeypatch, capsys, name):
    assert main_here(trained, monkeypatch, *resume(trained, **{name: CHANGED[name]})) == 2
    assert f"{name} is {CHANGED[name]!r} but the run was started with" in capsys.readouterr().err


ALLOWED = {
    "max_iters": 20, "eval_interval": 5, "patience": 3, "keep": 9, "sample_tokens": 0, "threads": 1, "compile": "off",
    "micro_batch_size": 2, "preset": "small", "learning_rate": 3e-4, "vocab_size": 0, "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_other_settings_may_change_at_resume(trained, monkeypatch, name):
    assert main_here(trained, monkeypatch, *resume(trained, **{name: ALLOWED[name]})) == 0


@pytest.mark.parametrize("tokenizer", ["char", "bpe", "byte"])
def test_changed_data_is_refused_at_resume(tmp_path, monkeypatch, capsys, tokenizer):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, tokenizer=tokenizer)) == 0
    write_text(tmp_path / "text.txt", seed=2)
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path)) == 2
    assert "the data changed since this run began (data " in capsys.readouterr().err


@pytest.mark.parametrize("asked", [300, 100_000])
def test_a_vocabulary_smaller_than_asked_resumes(tmp_path, monkeypatch, asked):
    """A small text offers fewer merges than were asked for: that is no change of the data."""
    how = {"tokenizer": "bpe", "vocab_size": asked}
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, **how)) == 0
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, max_iters=22, vocab_size=asked)) == 0
    assert max(losses(tmp_path)) == 21


def test_a_run_with_gpt2s_tokenizer_resumes_without_its_files(tmp_path, monkeypatch):
    """The tokenizer is in the checkpoint: tiktoken's cache may be gone by then."""
    from tokenizer import train_bpe

    stand_in = train_bpe([(write_text(tmp_path / "text.txt")).read_text()], 280)
    stand_in.kind = "gpt2"
    with monkeypatch.context() as patch:
        patch.setattr("tokenizer.load_gpt2", lambda: stand_in)
        assert main_here(tmp_path, patch, *small_run(tmp_path, tokenizer="gpt2")) == 0
    monkeypatch.setattr("tokenizer.load_gpt2", lambda: pytest.fail("asked for GPT-2's files"))
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, max_iters=22)) == 0


def test_a_run_from_a_checkpoint_resumes_though_that_one_is_gone(tmp_path, monkeypatch):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 0
    begin = tmp_path / "begin.pt"
    shutil.copy(tmp_path / "out" / "a" / "best_model.pt", begin)
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "b", init_from=begin)) == 0
    assert losses(tmp_path, "b")[0] < losses(tmp_path)[0] - 0.01
    begin.unlink()
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, "b", max_iters=22)) == 0


def test_verify_resume_on_the_command_line(trained, monkeypatch, capsys):
    arguments = [flag for flag in resume(trained) if flag != "--resume"]
    assert main_here(trained, monkeypatch, *arguments, "--verify_resume") == 0
    assert "steps 10 to 20 replayed" in capsys.readouterr().out


# ---- a budget of time


def test_a_budget_of_time_holds_for_the_whole_run(tmp_path):
    done = cli(tmp_path, *small_run(tmp_path, time="9s", schedule="linear", final_rate=0.1))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "logs" / "a" / "summary.json").read_text())
    assert 4.5 < summary["seconds"] < 9  # torch's start is a part of it, as is what is kept for the end
    assert summary["stop_reason"] == "done"
    assert events(tmp_path, "step")[-1]["rate"] == pytest.approx(0.1, abs=0.02)
    assert torch.isfinite(last(tmp_path)["model"]["wte.weight"]).all()


def test_shards_of_another_tokenizer_are_no_text_to_start_on(tmp_path, monkeypatch, capsys):
    """The words of the model would be taken for others."""
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "bytes", tokenizer="byte", max_iters=2)) == 0
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "words", tokenizer="bpe", vocab_size=300, max_iters=2)) == 0
    kinds = {json.loads(path.read_text())["kind"]: path.parent for path in tmp_path.glob("data/tokens-*/tokenizer.json")}
    how = {"init_from": tmp_path / "out/bytes", "max_iters": 2, "tokenizer": "byte"}
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "c", data=kinds["bpe"], **how)) == 2
    assert "another tokenizer" in capsys.readouterr().err
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "d", data=kinds["byte"], **how)) == 0
