"""The loop: what a step does, when it evaluates and saves, and that a resumed run is the run that was not stopped."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time

import pytest
import torch

import checkpoint
import train
from config import UserError
from tests.runs import (
    LineTask,
    equal,
    events,
    line_trainer,
    losses,
    main_here,
    resume,
    resumed,
    small_run,
    without_clock,
)
from train import Diverged, fit, verify_resume
from training import runlog
from training.evaluate import Score, score
from training.text import TextTask

NAN = math.nan


@pytest.fixture(autouse=True)
def quick_calibration(monkeypatch):
    monkeypatch.setattr("training.calibrate.matrix_rate", lambda *_: 1e11)


def stop_at(trainer, step: int):
    """Lets a trainer stop as if by a signal after so many steps."""
    agree = trainer.agree

    def agree_then_stop(stopper):
        agree(stopper)
        if trainer.progress.step == step:
            trainer.stop_reason = "SIGTERM"

    trainer.agree = agree_then_stop
    return trainer


def ended(trainer) -> dict:
    """Runs a trainer to its end; its summary."""
    try:
        return fit(trainer)
    finally:
        trainer.log.close()


def last(folder) -> dict:
    return checkpoint.load(folder / "out" / "a" / "last.pt")


# ---- resuming


MIXES = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "dropout": {"dropout": 0.3},
    "average": {"ema": 0.9},
    "accumulation": {"micro": 2, "dropout": 0.3},
    "all": {"optimizer": "muon", "ema": 0.9, "dropout": 0.3, "micro": 4, "schedule": "wsd", "weight_decay": 0.3},
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("at", [7, 10])
def test_a_resumed_run_is_the_straight_run_to_the_last_bit(tmp_path, mix, at):
    """Stopped in mid-interval, or right at an evaluation."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    ended(line_trainer(straight, **MIXES[mix]))
    ended(stop_at(line_trainer(broken, **MIXES[mix]), at))
    torch.manual_seed(99)  # what the second sitting begins with must not matter
    ended(resumed(broken, **MIXES[mix]))
    assert losses(broken) == losses(straight)
    assert equal(without_clock(last(broken)), without_clock(last(straight)))
    assert [e["loss"] for e in events(broken, "evaluation")] == [e["loss"] for e in events(straight, "evaluation")]


@pytest.mark.parametrize("architecture", ["classic", "modern"])
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_resumed_text_run_is_the_straight_run(tmp_path, monkeypatch, architecture, tokenizer):
    """The real command line, in the middle of an epoch."""
    how = {"architecture": architecture, "dropout": 0.1, "word_dropout": 0.1, "ema": 0.9, "optimizer": "muon", "max_iters": 24}
    how |= {"tokenizer": tokenizer, "micro_batch_size": 2, "ngrams": 3, "ngram_rows": 500}
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "a", **how)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "Trainer", lambda *args: stop_at(Trainer(*args), 13))
        assert main_here(tmp_path, patch, *small_run(tmp_path, "b", **how)) == 143
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, "b")) == 0
    assert losses(tmp_path, "b") == losses(tmp_path, "a") and len(losses(tmp_path, "a")) == 24
    one, two = (checkpoint.load(tmp_path / "out" / run / "last.pt") for run in "ab")
    assert equal(without_clock(one), without_clock(two))


Trainer = train.Trainer


def test_what_is_dropped_out_follows_from_step_and_rank(tmp_path):
    """Ranks whose batches have other shapes draw other amounts, so no state of one of them could be passed on to all."""
    trainer, seeds = line_trainer(tmp_path, dropout=0.3), {}
    for trainer.progress.step in (0, 1, 10**9):
        for rank in (0, 1):
            trainer.ranks = dataclasses.replace(trainer.ranks, rank=rank)
            seeds[trainer.progress.step, rank] = trainer.seed_of_step()
            assert trainer.seed_of_step() == seeds[trainer.progress.step, rank]
    assert len(set(seeds.values())) == 6


def rewrite(path, change) -> None:
    """A checkpoint as another version would have written it."""
    held = torch.load(path, weights_only=True)
    change(held)
    torch.save(held, path)
    checkpoint.seal(path)


def test_a_run_whose_files_say_less_is_resumed_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    """The first ones did not say what size of vocabulary was asked for, how words are cut, or how embeddings start."""

    def strip(held: dict) -> None:
        del held["provenance"]["asked_vocab_size"], held["tokenizer"]["words"], held["config"]["embedding_std"]

    how = {"tokenizer": "bpe", "vocab_size": 300, "max_iters": 24}
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "a", **how)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "Trainer", lambda *args: stop_at(Trainer(*args), 13))
        assert main_here(tmp_path, patch, *small_run(tmp_path, "b", **how)) == 143
    for name in ("last.pt", "best_model.pt"):
        rewrite(tmp_path / "out" / "b" / name, strip)
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, "b")) == 0
    assert losses(tmp_path, "b") == losses(tmp_path, "a") and len(losses(tmp_path, "a")) == 24


def test_a_run_of_a_newer_version_is_neither_resumed_nor_written_over(tmp_path, monkeypatch, capsys):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, max_iters=4)) == 0
    newest = tmp_path / "out" / "a" / "last.pt"

    def refused(arguments: list[str], words: str) -> None:
        assert main_here(tmp_path, monkeypatch, *arguments) == 2
        assert words in capsys.readouterr().err

    rewrite(newest, lambda held: held["provenance"]["train_config"].update(lookahead=3))
    rewrite(newest, lambda held: held["config"].update(sinks=4))
    refused(resume(tmp_path, max_iters=8), "lookahead, sinks")
    refused(small_run(tmp_path), "holds a run of 4 steps")
    rewrite(newest, lambda held: held.update(format=2))
    refused(resume(tmp_path, max_iters=8), "has checkpoint format 2")
    refused(small_run(tmp_path), "has checkpoint format 2")


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    ended(line_trainer(tmp_path))
    before = last(tmp_path)
    summary = ended(resumed(tmp_path))
    assert summary["steps"] == 30 and len(events(tmp_path, "step")) == 30
    assert equal(last(tmp_path), before)
    assert checkpoint.load(tmp_path / "out" / "a" / "previous.pt")["provenance"]["step"] == 20


def test_resuming_evaluates_nothing_twice(tmp_path):
    ended(stop_at(line_trainer(tmp_path), 10))  # stops before the evaluation that is due at step 10
    ended(resumed(tmp_path))
    assert [event["step"] for event in events(tmp_path, "evaluation")] == [10, 20, 30]


def test_more_steps_may_be_asked_for_at_resume(tmp_path):
    ended(line_trainer(tmp_path, max_iters=10))
    assert ended(resumed(tmp_path, max_iters=15))["steps"] == 15


# ---- proving it


def test_verify_resume_says_identical(tmp_path):
    ended(line_trainer(tmp_path, optimizer="muon", ema=0.9, dropout=0.3))
    told = verify_resume(line_trainer(tmp_path, optimizer="muon", ema=0.9, dropout=0.3))
    assert "steps 20 to 30 replayed" in told and "identical to the last bit" in told


def test_verify_resume_works_in_a_timed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "EVALUATIONS", 2)
    timed = line_trainer(tmp_path, time="6s", schedule="linear", final_rate=0.0)
    timed.budget = 0.3
    ended(timed)
    assert "identical" in verify_resume(line_trainer(tmp_path, time="6s", schedule="linear", final_rate=0.0))


def tampered(tmp_path, name: str, change) -> None:
    """Changes a checkpoint as someone would who also mends its checksum."""
    path = tmp_path / "out" / "a" / name
    content = checkpoint.load(path)
    change(content)
    content.pop("format")
    checkpoint.write(path, content)


def flip_weight(content) -> None:
    content["model"]["blocks.0.weight"].view(torch.int32)[0, 0] ^= 1


def flip_moment(content) -> None:
    content["training"]["optimizers"][0]["state"][0]["exp_avg_sq"].view(torch.int32)[0, 0] ^= 1


@pytest.mark.parametrize("change", [flip_weight, flip_moment])
def test_verify_resume_finds_one_changed_bit(tmp_path, change):
    ended(line_trainer(tmp_path, dropout=0.3))
    tampered(tmp_path, "last.pt", change)
    with pytest.raises(UserError, match="replayed, differ from the run in 1 of"):
        verify_resume(line_trainer(tmp_path, dropout=0.3))


def test_verify_resume_finds_a_changed_start(tmp_path):
    ended(line_trainer(tmp_path, dropout=0.3))
    tampered(tmp_path, "previous.pt", flip_weight)
    with pytest.raises(UserError, match="replayed"):
        verify_resume(line_trainer(tmp_path, dropout=0.3))


def test_verify_resume_finds_a_changed_log(tmp_path):
    ended(line_trainer(tmp_path))
    log = tmp_path / "logs" / "a" / "events.jsonl"
    lines = log.read_text().splitlines()
    for change in ("rate", "loss"):
        changed = [json.loads(line) for line in lines]
        for event in changed:
            if event["event"] == "step" and event["step"] == 25:
                event["progress" if change == "rate" else "loss"] *= 1.001
        log.write_text("".join(json.dumps(event) + "\n" for event in changed))
        with pytest.raises(UserError, match="replayed"):
            verify_resume(line_trainer(tmp_path))


def test_verify_resume_without_a_log_says_so(tmp_path):
    ended(line_trainer(tmp_path))
    (tmp_path / "logs" / "a" / "events.jsonl").unlink()
    with pytest.raises(UserError, match="lost step 20"):
        verify_resume(line_trainer(tmp_path))


def test_verify_resume_changes_no_file(tmp_path):
    ended(line_trainer(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    trainer = line_trainer(tmp_path)
    verify_resume(trainer)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


# ---- steps that are not taken


def poisoned(*steps: int, factor: float = NAN):
    return LineTask(poison=lambda step: factor if step in steps else 1.0)


def test_a_nan_loss_moves_nothing(tmp_path):
    trainer = line_trainer(tmp_path, poisoned(0))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.step()
    assert equal(before, dict(trainer.model.state_dict()))
    assert all(not optimizer.state for optimizer in trainer.optimizers)
    assert (trainer.progress.step, trainer.progress.skipped, trainer.progress.bad) == (1, 1, 1)


def test_a_nan_gradient_of_a_finite_loss_moves_nothing(tmp_path):
    trainer = line_trainer(tmp_path)
    trainer.model.blocks[0].weight.register_hook(lambda grad: grad * NAN)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.step()
    assert math.isfinite(trainer.loss)
    assert equal(before, dict(trainer.model.state_dict()))
    assert trainer.progress.skipped == 1


def test_an_fp16_scale_that_is_too_large_is_no_bad_step(tmp_path):
    """The scaler halves its scale until the gradient fits; one that never fits is bad once the scale is below 1."""
    trainer = line_trainer(tmp_path)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.model.blocks[0].weight.register_hook(lambda grad: grad * math.inf)
    bad = []
    for _ in range(5):
        trainer.step()
        bad.append(trainer.progress.bad)
    assert bad == [0, 0, 0, 1, 2]  # at scales of 4, 2, 1, 1/2, 1/4


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_skipped_steps_are_counted_and_the_run_goes_on(tmp_path, ema):
    summary = ended(line_trainer(tmp_path, poisoned(4, 5, 17), ema=ema))
    assert (summary["skipped_steps"], summary["rewinds"], summary["steps"]) == (3, 0, 30)
    assert [event["step"] for event in events(tmp_path, "step") if event["skipped"]] == [4, 5, 17]
    assert all(event["loss"] is None for event in events(tmp_path, "step") if event["skipped"])
    assert all(torch.isfinite(weight).all() for weight in last(tmp_path)["model"].values())


def test_three_in_a_row_go_back_with_half_the_rate(tmp_path):
    """The batches of steps 13 to 15 are bad once: after the rewind the run gets through."""
    seen: set[int] = set()

    def once(step: int) -> float:
        bad = 13 <= step <= 15 and step not in seen
        seen.add(step)
        return NAN if bad else 1.0

    summary = ended(line_trainer(tmp_path, LineTask(poison=once), schedule="linear", final_rate=1.0))
    (rewind,) = events(tmp_path, "rewind")
    assert (rewind["step"], rewind["from_step"], rewind["rate"]) == (10, 16, 0.5)
    assert (summary["rewinds"], summary["skipped_steps"], summary["steps"]) == (1, 3, 30)
    assert {event["rate"] for event in events(tmp_path, "step")[16:]} == {0.5}


def test_a_rewind_ends_where_a_run_of_that_rate_would(tmp_path):
    """Going back is exact: the weights are those of a run that had half the rate from step 10 on."""
    tries = []

    def once(step: int) -> float:
        tries.append(step)
        return NAN if step in (13, 14, 15) and len(tries) < 17 else 1.0

    ended(line_trainer(tmp_path / "rewound", LineTask(poison=once), dropout=0.2))
    ended(stop_at(line_trainer(tmp_path / "halved", dropout=0.2), 10))
    halved = resumed(tmp_path / "halved", dropout=0.2)
    halved.progress.slower = 0.5
    ended(halved)
    assert equal(last(tmp_path / "rewound")["model"], last(tmp_path / "halved")["model"])


def test_after_three_rewinds_the_run_gives_up(tmp_path):
    task = poisoned(12, 13, 14)
    with pytest.raises(Diverged, match=r"diverged 4 times, the last time at step 15: pass a lower --learning_rate"):
        ended(line_trainer(tmp_path, task))
    assert [event["rate"] for event in events(tmp_path, "rewind")] == [0.5, 0.25, 0.125]
    assert all(torch.isfinite(weight).all() for weight in last(tmp_path)["model"].values())


def test_a_rewind_keeps_the_time_that_a_new_sitting_was_given(tmp_path):
    """The file that it goes back to was written when the time was less."""
    trainer = line_trainer(tmp_path, time="10s")
    trainer.begin()
    trainer.budget, trainer.progress.elapsed = 100.0, 9.0
    trainer.rewind()
    assert (trainer.budget, trainer.progress.elapsed) == (100.0, 9.0)


@pytest.mark.parametrize("tokens, scored", [(10**5, 0), (10**9, 2_500_000)])
def test_the_last_evaluation_of_a_timed_run_takes_a_tenth_of_it(tmp_path, monkeypatch, tokens, scored):
    task = LineTask(8)
    monkeypatch.setattr(task, "evaluation_tokens", lambda: tokens)
    trainer = line_trainer(tmp_path, task, time="10s")  # at a million tokens a second, and two and a half without gradients
    assert trainer.final_limit() == scored
    assert trainer.closing_seconds() <= train.CLOSING + 1
    monkeypatch.setattr(trainer.config, "time", "")
    assert trainer.final_limit() == 0


def test_a_rewind_in_the_first_interval_goes_back_to_the_start(tmp_path):
    with pytest.raises(Diverged):
        ended(line_trainer(tmp_path, poisoned(0, 1, 2)))
    assert [event["step"] for event in events(tmp_path, "rewind")] == [0, 0, 0]


def test_a_rewind_passes_over_a_damaged_checkpoint(tmp_path):
    tries = []

    def once(step: int) -> float:
        tries.append(step)
        if len(tries) == 24:
            (tmp_path / "out" / "a" / "last.pt").write_bytes(b"damaged")
        return NAN if 24 <= len(tries) <= 26 else 1.0

    summary = ended(line_trainer(tmp_path, LineTask(poison=once)))
    (rewind,) = events(tmp_path, "rewind")
    assert (rewind["step"], summary["steps"]) == (10, 30)


def test_a_save_among_bad_steps_holds_only_good_weights(tmp_path):
    """Steps 9 to 12 are bad, and last.pt is written among them: what is rewound to is finite all the same."""
    task = poisoned(9, 10, 11, 12)
    with pytest.raises(Diverged):
        ended(line_trainer(tmp_path, task))
    content = last(tmp_path)
    assert content["provenance"]["step"] == 10
    assert all(torch.isfinite(weight).all() for weight in content["model"].values())
    state = content["training"]["optimizers"][0]["state"][0]
    assert torch.isfinite(state["exp_avg"]).all()


def test_a_spike_is_skipped(tmp_path):
    summary = ended(line_trainer(tmp_path, poisoned(24, factor=100.0)))
    (skipped,) = (event for event in events(tmp_path, "step") if event["skipped"])
    assert skipped["step"] == 24 and skipped["loss"] > 100
    assert summary["skipped_steps"] == 1


def test_the_first_steps_are_never_spikes(tmp_path):
    assert ended(line_trainer(tmp_path, poisoned(3, factor=100.0)))["skipped_steps"] == 0


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path):
    summary = ended(line_trainer(tmp_path, LineTask(scores=[NAN, 2.0, NAN, 2.0])))
    assert (summary["best_step"], summary["val_loss"]) == (20, 2.0)


# ---- out of memory, as told by the allocator


def starving(trainer, limit: int):
    """A trainer whose model has no room for more than `limit` rows."""
    forward = trainer.model.forward

    def checked(x, y):
        if trainer.model.training and len(x) > limit:
            trainer.model.drop(x)  # random numbers are drawn before memory runs out
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return forward(x, y)

    trainer.model.forward = checked
    return trainer


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(tmp_path, capsys):
    summary = ended(starving(line_trainer(tmp_path / "starved", dropout=0.3), 2))
    ended(line_trainer(tmp_path / "small", dropout=0.3, micro=2))
    assert [event["micro_batch"] for event in events(tmp_path / "starved", "micro_batch")] == [4, 2]
    assert summary["steps"] == 30
    assert losses(tmp_path / "starved") == losses(tmp_path / "small")
    assert equal(last(tmp_path / "starved")["model"], last(tmp_path / "small")["model"])
    assert "the micro-batch is now 2; the batch of 8 stays" in capsys.readouterr().out


def test_out_of_memory_with_one_row_is_one_line_of_advice(tmp_path):
    with pytest.raises(UserError, match="--checkpoint_activations") as error:
        ended(starving(line_trainer(tmp_path), 0))
    assert "\n" not in str(error.value)
    assert last(tmp_path)["provenance"]["step"] == 0


def test_another_error_is_not_taken_for_a_full_memory(tmp_path):
    trainer = line_trainer(tmp_path)
    trainer.model.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        ended(trainer)


# ---- when it evaluates, saves, stops


def test_evaluations_and_saves_come_at_the_right_steps(tmp_path):
    ended(line_trainer(tmp_path, max_iters=25, save_interval=6, keep=3))
    assert [event["step"] for event in events(tmp_path, "evaluation")] == [10, 20, 25]
    assert [path.name for path in checkpoint.numbered(tmp_path / "out" / "a")] == [
        f"step_{step:08d}.pt" for step in (12, 18, 24)
    ]
    found = [checkpoint.load(tmp_path / "out" / "a" / name) for name in ("last.pt", "previous.pt")]
    assert [content["provenance"]["step"] for content in found] == [25, 20]


def test_a_numbered_checkpoint_of_an_evaluated_step_knows_its_loss(tmp_path):
    ended(line_trainer(tmp_path, save_interval=10))
    found = [checkpoint.load(path)["provenance"] for path in checkpoint.numbered(tmp_path / "out" / "a")]
    scores = {event["step"]: event["loss"] for event in events(tmp_path, "evaluation")}
    assert [(p["step"], p["val_loss"]) for p in found] == [(10, scores[10]), (20, scores[20]), (30, None)]


def test_best_model_is_the_best_and_not_the_last(tmp_path):
    task = LineTask(scores=[3.0, 1.0, 2.0, 2.5, 1.1])  # at 10, 20, 30, 40 and the best again
    summary = ended(line_trainer(tmp_path, task, max_iters=40))
    best = checkpoint.load(tmp_path / "out" / "a" / "best_model.pt")
    assert best["provenance"]["step"] == summary["best_step"] == 20
    assert summary["val_loss"] == 1.1 and "training" not in best
    assert last(tmp_path)["provenance"]["step"] == 40


def test_the_last_weights_are_best_where_they_score_best(tmp_path):
    summary = ended(line_trainer(tmp_path, LineTask(scores=[3.0, 2.0, 1.0])))
    assert (summary["val_loss"], summary["best_step"]) == (1.0, 30)
    assert checkpoint.load(tmp_path / "out" / "a" / "best_model.pt")["provenance"]["step"] == 30


def test_where_the_whole_text_tells_otherwise_the_last_weights_win(tmp_path):
    """The best of a part of the validation text turns out worse on all of it."""
    summary = ended(line_trainer(tmp_path, LineTask(scores=[0.5, 2.0, 1.0, 1.5])))
    best = checkpoint.load(tmp_path / "out" / "a" / "best_model.pt")
    assert (summary["val_loss"], summary["best_step"]) == (1.0, 30)
    assert best["provenance"]["step"] == 30
    assert equal(best["model"], last(tmp_path)["model"])


def row_by_row(*losses: float) -> Score:
    """The score of so many rows of one token."""
    return score([(loss, 1, 1) for loss in losses])


def test_a_best_that_is_so_by_chance_gives_way_to_the_last_weights(tmp_path):
    """The best so far has a lower loss, for which a single row of four is to blame."""
    before, after = row_by_row(1.0, 1.0, 1.0, 1.0), row_by_row(0.9, 0.9, 0.9, 1.5)
    summary = ended(line_trainer(tmp_path, LineTask(scores=[before, after, before]), max_iters=20))
    assert (summary["best_step"], summary["val_loss"]) == (20, pytest.approx(1.05))
    assert equal(checkpoint.load(tmp_path / "out/a/best_model.pt")["model"], last(tmp_path)["model"])


def test_a_best_that_is_better_row_by_row_stays_however_noisy_the_rows(tmp_path):
    before, after = row_by_row(0.1, 9.0, 0.2, 5.0), row_by_row(0.2, 9.1, 0.3, 5.1)
    summary = ended(line_trainer(tmp_path, LineTask(scores=[before, after, before]), max_iters=20))
    assert (summary["best_step"], summary["val_loss"]) == (10, pytest.approx(3.575))


@pytest.mark.parametrize("worse, better", [
    ((1.0, NAN), (9.0, 9.0)),  # a loss that is no number
    ((9.0,), (8.9,)),  # a single window
    ((1.2, 2.2, 3.1), (1.1, 2.1, 3.1)),
])  # fmt: skip
def test_what_is_clearly_worse(worse, better):
    assert row_by_row(*worse).clearly_worse_than(row_by_row(*better))
    assert not row_by_row(*better).clearly_worse_than(row_by_row(*worse))
    assert not row_by_row(*worse).clearly_worse_than(row_by_row(*worse))


def test_an_infinite_loss_is_clearly_worse():
    before = row_by_row(1.0, 2.0)
    assert dataclasses.replace(before, loss=math.inf).clearly_worse_than(before)


def test_where_patience_ends_a_run_the_lower_loss_decides(tmp_path):
    before, after = row_by_row(1.0, 1.0, 1.0, 1.0), row_by_row(0.9, 0.9, 0.9, 1.5)
    summary = ended(line_trainer(tmp_path, LineTask(scores=[before, after, after, before]), max_iters=100, patience=1))
    assert (summary["steps"], summary["best_step"], summary["val_loss"]) == (20, 10, 1.0)


def test_a_run_that_goes_on_knows_what_its_end_kept(tmp_path):
    """The last weights took the place of a best with a lower loss; what is better than they are is saved."""
    before, after = row_by_row(1.0, 1.0, 1.0, 1.0), row_by_row(0.9, 0.9, 0.9, 1.5)
    ended(line_trainer(tmp_path, LineTask(scores=[before, after, before]), max_iters=20))
    trainer = resumed(tmp_path, LineTask(scores=[1.02]), max_iters=40)
    trainer.remember_best()
    assert (trainer.progress.best, trainer.progress.best_step) == (pytest.approx(1.05), 20)
    trainer.run()
    assert checkpoint.load(tmp_path / "out/a/best_model.pt")["provenance"]["step"] == 30


def test_the_moving_average_is_what_is_scored_and_kept(tmp_path):
    trainer = line_trainer(tmp_path, ema=0.9)
    summary = ended(trainer)
    best = checkpoint.load(tmp_path / "out" / "a" / "best_model.pt")["model"]
    content = last(tmp_path)
    shadow = content["training"]["average"]["shadow"][0]
    assert torch.equal(best["blocks.0.weight"], shadow)
    assert not torch.equal(content["model"]["blocks.0.weight"], shadow)
    trainer.model.load_state_dict(best)
    assert trainer.task.evaluate(trainer.model, 0, None).loss == summary["val_loss"]


def test_what_the_end_found_to_be_the_best_stays_it_when_the_run_goes_on(tmp_path):
    """The end is no multiple of the interval: its score is in no checkpoint to resume from."""
    ended(line_trainer(tmp_path, LineTask(scores=[2.0, 1.0]), max_iters=15, eval_interval=10))
    assert last(tmp_path)["training"]["progress"]["best"] == 2.0
    trainer = resumed(tmp_path, LineTask(scores=[1.5, 1.2]), max_iters=25, eval_interval=10)
    trainer.remember_best()
    assert (trainer.progress.best, trainer.progress.best_step) == (1.0, 15)
    trainer.files.save_best = lambda content: pytest.fail(f"step {content['provenance']['step']} took the place of a better one")
    trainer.run()


def test_a_best_of_later_steps_is_left_to_the_replay_of_them(tmp_path):
    ended(line_trainer(tmp_path, LineTask(scores=[2.0, 1.0, 1.0]), max_iters=20))
    step = checkpoint.load(tmp_path / "out/a/previous.pt")
    trainer = line_trainer(tmp_path, max_iters=20)
    trainer.restore(step)
    trainer.remember_best()
    assert trainer.progress.best == 2.0


def test_the_last_weights_are_the_best_only_by_the_measure_of_the_others(tmp_path):
    """In mid-run a part was scored, 2.0 at best; the end scores 1.9 of the whole, but 3.0 of that part, and the best 1.5 of the whole."""
    trainer = line_trainer(tmp_path, LineTask(scores=[2.0, 3.0, 1.9, 3.0, 1.5]), eval_tokens=32)
    assert ended(trainer)["val_loss"] == 1.5
    assert checkpoint.load(tmp_path / "out/a/best_model.pt")["provenance"]["step"] == 10


def test_patience_stops_early(tmp_path):
    task = LineTask(scores=[2.0, 1.0, 3.0, 3.0, 3.0, 1.0])
    summary = ended(line_trainer(tmp_path, task, max_iters=100, patience=2))
    assert summary["steps"] == 40 and summary["best_step"] == 20
    assert "no better for 2 evaluations" in summary["stop_reason"]


def test_a_long_interval_is_saved_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    trainer = line_trainer(tmp_path)
    saved = []
    monkeypatch.setattr(checkpoint, "save_last", lambda _folder, content: saved.append(content["provenance"]["step"]))
    ended(trainer)
    assert saved == list(range(31))


def test_every_token_counts_once_however_the_batch_is_cut(tmp_path, monkeypatch):
    for micro in (8, 4, 1):
        ended(line_trainer(tmp_path / str(micro), micro=micro))
    monkeypatch.setattr(LineTask, "cuts", lambda task, batch, micro: [1, 3, 8])
    ended(line_trainer(tmp_path / "unequal"))
    for step, loss in losses(tmp_path / "8").items():
        for cut in ("1", "4", "unequal"):
            assert losses(tmp_path / cut)[step] == pytest.approx(loss, rel=1e-5)


def test_the_log_is_on_disk_before_the_checkpoint(tmp_path, monkeypatch):
    """So that a run killed right after a save can still be replayed up to it."""
    save, seen = checkpoint.save_last, []

    def looking(folder, content):
        save(folder, content)
        steps = events(tmp_path, "step") if (tmp_path / "logs").exists() else []
        seen.append((content["provenance"]["step"], len(steps)))

    monkeypatch.setattr(checkpoint, "save_last", looking)
    ended(line_trainer(tmp_path))
    assert seen == [(0, 0), (10, 10), (20, 20), (30, 30)]


def test_a_line_cut_by_a_kill_does_not_swallow_the_next(tmp_path):
    ended(stop_at(line_trainer(tmp_path), 7))
    with open(tmp_path / "logs" / "a" / "events.jsonl", "a") as log:
        log.write('{"event": "step", "st')
    ended(resumed(tmp_path))
    assert sorted(losses(tmp_path)) == list(range(30))


# ---- a budget of time


def test_a_timed_run_keeps_its_budget_and_ends_its_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "EVALUATIONS", 3)  # so that a part lasts longer than a busy disk takes for a checkpoint
    trainer = line_trainer(tmp_path, time="6s", schedule="linear", final_rate=0.1)
    summary = ended(trainer)
    steps = events(tmp_path, "step")
    assert 1 <= trainer.budget <= 6 - train.CLOSING
    assert trainer.budget <= summary["training_seconds"] < summary["seconds"] < 6
    assert steps[-1]["rate"] == pytest.approx(0.1, abs=0.01)
    assert summary["stop_reason"] == "done"
    assert len(events(tmp_path, "evaluation")) == train.EVALUATIONS
    assert [step["progress"] for step in steps] == sorted(step["progress"] for step in steps)


def test_a_slow_evaluation_of_a_timed_run_scores_a_part_and_the_final_one_all(tmp_path):
    trainer = line_trainer(tmp_path, time="6s")
    trainer.budget = 0.5
    trainer.plan.tokens_per_second = 500.0  # so that all 64 tokens would take too large a share
    evaluate, limits = trainer.task.evaluate, []
    trainer.task.evaluate = lambda model, limit, autocast: limits.append(limit) or evaluate(model, limit, autocast)
    ended(trainer)
    during, final = limits[: limits.index(0)], limits[limits.index(0) :]
    assert during and all(0 < limit < 64 for limit in during)
    assert final[0] == 0 < final[1] < 64  # the last weights, and on a part as the best ones were
    assert final[2:] in ([], [0])  # those where they may be better


def test_a_timed_run_goes_on_with_what_is_left_of_its_budget(tmp_path):
    first = line_trainer(tmp_path, time="6s")
    first.budget = 1.0
    ended(stop_at(first, 5))
    spent = last(tmp_path)["training"]["progress"]["elapsed"]
    assert 0 < spent < 1
    time.sleep(0.5)  # time between the sittings does not count
    t0 = time.monotonic()
    summary = ended(resumed(tmp_path, time="6s"))
    assert time.monotonic() - t0 > 1 - spent
    assert 1 <= summary["training_seconds"] < 2
    shares = {step["step"]: step["progress"] for step in events(tmp_path, "step")}
    assert shares[5] == spent < shares[6]


def test_a_new_budget_counts_from_the_resume(tmp_path, monkeypatch):
    run = small_run(tmp_path, time="30s")
    with monkeypatch.context() as patch:
        patch.setattr(train, "Trainer", lambda *args: stop_at(Trainer(*args), 4))
        assert main_here(tmp_path, patch, *run) == 143
    spent = last(tmp_path)["training"]["progress"]["elapsed"]
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, time="5s")) == 0
    [_, end] = events(tmp_path, "end")
    assert spent + 1 <= end["training_seconds"] < 20
    assert events(tmp_path, "step")[-1]["progress"] > 0.9


def test_a_run_that_is_done_says_what_would_go_on(tmp_path, monkeypatch, capsys):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 0
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path)) == 0
    assert "its 20 steps are done: pass a larger --max_iters" in capsys.readouterr().out
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "timed", time="5s")) == 0
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, "timed", time="5s")) == 0
    assert "its --time 5s is used up: pass another" in capsys.readouterr().out
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, "timed", max_iters=99)) == 2
    assert "this run is measured in time (--time 5s)" in capsys.readouterr().err


# ---- what is left behind


def test_the_links_point_at_a_run_before_it_ends(tmp_path):
    """So that a run that is killed is the newest all the same."""
    seen = []
    trainer = line_trainer(tmp_path)
    evaluate = trainer.evaluate_and_save

    def look():
        evaluate()
        seen.append([os.readlink(tmp_path / "out" / name) for name in ("best_model.pt", "last.pt")])

    trainer.evaluate_and_save = look
    ended(trainer)
    assert seen[0] == [os.path.join("a", "best_model.pt"), os.path.join("a", "last.pt")]


def test_the_files_of_a_run(tmp_path, monkeypatch):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 0
    logs = tmp_path / "logs" / "a"
    summary = json.loads((logs / "summary.json").read_text())
    wanted = {"val_loss", "val_bpb", "seconds", "steps", "tokens", "tokens_per_second", "parameters",
              "peak_memory_bytes", "stop_reason"}  # fmt: skip
    assert wanted <= summary.keys() and all(summary[name] is not None for name in wanted)
    assert (summary["steps"], summary["tokens"], summary["stop_reason"]) == (20, 20 * 4 * 16, "done")
    assert (logs / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    kinds = [json.loads(line)["event"] for line in (logs / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("step") == 20
    assert list(logs.glob("events.out.tfevents*"))
    assert os.readlink(tmp_path / "out" / "best_model.pt") == os.path.join("a", "best_model.pt")
    assert sorted(p.name for p in (tmp_path / "out" / "a").iterdir() if p.name != ".lock") == [
        "best_model.pt", "last.pt", "previous.pt",
    ]  # fmt: skip


def test_numbers_json_cannot_hold_become_null(tmp_path):
    log = runlog.RunLog(tmp_path, True, False)
    log.event("evaluation", step=1, loss=NAN, bpb=math.inf)
    log.close()
    assert runlog.read_events(tmp_path)[0]["loss"] is None
    assert runlog.read_events(tmp_path)[0]["bpb"] is None


def test_events_are_those_since_the_last_start(tmp_path):
    """A new run under the name of one whose checkpoints were deleted appends to its log; a resumed run keeps its history."""
    log = runlog.RunLog(tmp_path, progress=False)
    for kind, step in (("start", 0), ("step", 0), ("step", 1), ("start", 0), ("step", 0), ("resume", 1), ("step", 1)):
        log.event(kind, step=step)
    log.close()
    assert [event["event"] for event in runlog.read_events(tmp_path)] == ["start", "step", "resume", "step"]


def test_a_run_begun_anew_under_its_name_is_drawn_and_replayed_alone(tmp_path, monkeypatch, capsys):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, max_iters=30)) == 0
    shutil.rmtree(tmp_path / "out" / "a")
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, seed=2)) == 0
    assert sorted(runlog.latest_by_step(runlog.read_events(tmp_path / "logs" / "a"), "step")) == list(range(20))
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, verify_resume=True)) == 0
    assert "identical to the last bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("losses", "title"),
    [
        ([NAN, 3.0, 2.0], "a: 2.000 nats per token, 1.000 bits per byte"),
        ([3.0, 2.0, NAN], "a: 2.000 nats per token, 1.000 bits per byte"),
        ([NAN, NAN, NAN], ""),
    ],
    ids=["first", "last", "everywhere"],
)
@pytest.mark.parametrize("trained", [[5.0, 4.0, 3.0], [NAN] * 7 + [3.0, 2.0], [NAN] * 3, []], ids=str)
def test_the_picture_of_a_run_with_losses_that_are_not_finite(tmp_path, monkeypatch, losses, title, trained):
    from matplotlib.axes import Axes

    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda _, text: titles.append(text))
    monkeypatch.setattr("training.runlog.open_board", lambda _: False)
    log = runlog.RunLog(tmp_path, progress=False)
    for step, loss in enumerate(trained):
        log.event("step", step=step, loss=loss, rate=1.0)
    for step, loss in enumerate(losses):
        log.event("evaluation", step=step, loss=loss, loss_se=loss / 10, bpb=loss / 2)
    log.close()
    assert runlog.draw(tmp_path, "a", entropy=0.5).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "".join(titles) == title


def test_a_run_whose_last_score_is_not_finite_ends_with_its_closing_lines(tmp_path, monkeypatch, capsys):
    evaluate = TextTask.evaluate
    broken = iter([False, False, True])

    def not_finite_at_the_end(task, *args, **how):
        score = evaluate(task, *args, **how)
        return dataclasses.replace(score, loss=NAN, loss_se=NAN, bpb=NAN) if next(broken, False) else score

    monkeypatch.setattr(TextTask, "evaluate", not_finite_at_the_end)
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, max_iters=25)) == 0
    assert "25 steps in" in capsys.readouterr().out
    assert [event["loss"] is None for event in events(tmp_path, "evaluation")] == [False, False, True]


def test_the_picture_of_a_run_that_was_stopped_at_once(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(train, "Trainer", lambda *args: stop_at(Trainer(*args), 1))
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path)) == 143
    assert (tmp_path / "logs" / "a" / "loss.png").exists()
    assert json.loads((tmp_path / "logs" / "a" / "summary.json").read_text())["val_loss"] is None
