"""The benchmarks' own code: that both sides are what their labels say, and that what was typed is checked before hours are spent."""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import client, common, digits, growth, norm, run_all, step, transfer
from model import rms_norm
from tests.runs import SMALL, flags, write_text


def test_a_step_of_ours_can_be_measured():
    asked = argparse.Namespace(micro=4, compile="off", dtype="float32", steps=1)
    found = step.ours(asked, n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=64)
    assert found["micro"] == 4
    assert found["tokens_per_second"] > 0


def test_a_run_is_scored_on_the_whole_text(tmp_path):
    data = {"LLM_DATA_DIR": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    whole = common.trained(tmp_path, "a", flags(data=write_text(tmp_path / "text.txt"), **{**SMALL, "max_iters": 2}), **data)
    assert common.bits_per_byte(tmp_path, "a", **data) == pytest.approx(whole["summary"]["val_bpb"], abs=6e-5)  # of four digits


def test_the_plain_norm_is_the_one_that_ours_replaces():
    x = torch.randn(3, 5, 8)
    for weight in (torch.rand(8), torch.rand(5, 8)):
        assert torch.equal(norm.plain(x, weight, 1e-6), rms_norm(x.detach(), weight, 1e-6).detach()) or torch.allclose(
            norm.plain(x, weight, 1e-6), rms_norm(x, weight, 1e-6), atol=1e-6
        )


def test_the_stories_are_what_rates_are_tried_on_where_no_text_is_named(monkeypatch, capsys):
    asked = []

    def trained(folder, name, typed, **more):
        asked.append(typed)
        start = {"event": "start", "train": dict.fromkeys(transfer.RATES, 0.01)}
        return {"events": [start], "summary": {"val_bpb": 1.0}}

    monkeypatch.setattr(transfer, "trained", trained)
    monkeypatch.setattr(sys, "argv", ["transfer", "--depths", "1"])
    transfer.main()
    assert {typed[typed.index("--data") + 1] for typed in asked} == {"stories"}


def test_a_strange_task_is_refused_before_training(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits", "--only", "spoken, sings"])
    with pytest.raises(SystemExit):
        digits.main()
    assert "'sings'" in capsys.readouterr().err


def test_the_floors_of_the_digits_find_what_is_there(monkeypatch):
    monkeypatch.setattr(digits, "features", lambda kind, file, shape: torch.from_numpy(np.eye(4, dtype=np.float32)[file]))
    rows = [(place, digits.WORDS[place]) for place in range(4)]
    assert digits.floors("image", rows, rows) == {"nearest": 1.0, "ridge": 1.0}
    other = [(place, digits.WORDS[place + 1]) for place in range(4)]
    assert digits.floors("image", rows, other) == {"nearest": 0.0, "ridge": 0.0}


def test_a_run_that_finds_no_room_costs_the_others_nothing(monkeypatch, capsys):
    answers = iter([{"parameters": 1e6, "seconds_per_token": 1e-4, "share": 0.5}, None] * 100)
    monkeypatch.setattr(growth, "child", lambda typed: {"json": next(answers)})
    monkeypatch.setattr(growth, "ranked", lambda world, threads: 1.0)
    monkeypatch.setattr(sys, "argv", ["growth", "--runs", "2"])
    growth.main()
    assert "1.0 M" in capsys.readouterr().out


def test_what_is_left_out_says_what_it_needs(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda typed, **how: ran.append(typed) or argparse.Namespace(returncode=0))
    monkeypatch.setattr(sys, "argv", ["run_all", "--text", "input.txt"])
    monkeypatch.delenv("LLM_TEST_DATA", raising=False)
    with pytest.raises(SystemExit) as end:
        run_all.main()
    told = capsys.readouterr().out
    assert end.value.code == 0
    assert "left out: it needs --nanogpt PATH (a checkout)\n" in told
    assert "left out: it needs LLM_TEST_DATA" in told
    assert any("benchmarks.ablations" in typed for typed in ran)


def test_a_measured_server_has_no_keys_of_the_persons(monkeypatch, tmp_path):
    seen = {}

    class Server(argparse.Namespace):
        def __init__(self, command, env, **how):
            seen.update(env)
            super().__init__(poll=lambda: 0, returncode=1, kill=lambda: None)

    monkeypatch.setenv("LLM_API_KEYS", "secret")
    monkeypatch.setattr(client.subprocess, "Popen", Server)
    with pytest.raises(SystemExit), client.server(tmp_path / "model.pt", LLM_SLOTS="4"):
        pass
    assert "LLM_API_KEYS" not in seen
    assert seen["LLM_SLOTS"] == "4"
