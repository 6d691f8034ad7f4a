"""The size that is chosen where nobody names one: it grows with the budget and the text, and what was typed goes before it."""

import json
import subprocess
import sys

import pytest
import torch

from config import ROOT, ModelConfig, TrainConfig, UserError, take
from training import sizing

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine on which a token takes a nanosecond for each of two thousand weights."""
    monkeypatch.setattr(sizing, "seconds_per_token", lambda config, device: 1e-12 * config.n_layer * config.n_embd**2 * 12)


def chosen(budget=600.0, tokens=1e9, depth=0, world=1, **given):
    return sizing.choose(depth, tokens, 2048, budget, CPU, world, given)


def test_a_longer_budget_never_gives_a_smaller_model_or_batch():
    found = [chosen(budget) for budget in (1, 10, 60, 600, 6000, 60000)]
    assert [each["n_layer"] for each in found] == sorted(each["n_layer"] for each in found)
    assert [each["batch_size"] for each in found] == sorted(each["batch_size"] for each in found)
    assert found[0]["n_layer"] < found[-1]["n_layer"]


def test_the_depth_is_the_largest_that_gets_its_tokens():
    depth = chosen()["n_layer"]
    speed = lambda at: 1 / sizing.seconds_per_token(ModelConfig(architecture="modern", **sizing.shape(at)), CPU)  # noqa: E731
    assert 0.8 * 600 * speed(depth) >= sizing.PER_WEIGHT * sizing.block_weights(depth)
    assert 0.8 * 600 * speed(depth + 1) < sizing.PER_WEIGHT * sizing.block_weights(depth + 1)


def test_weights_of_the_blocks_are_those_of_the_model():
    from model import GPT

    model = GPT(ModelConfig(architecture="modern", vocab_size=64, block_size=8, **sizing.shape(3)))
    assert sizing.block_weights(3) == sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)


def test_a_small_text_gets_a_small_model_however_long_it_may_take():
    assert chosen(6000, tokens=1e5)["n_layer"] < chosen(6000, tokens=1e8)["n_layer"]
    assert chosen(6000, tokens=1e5)["dropout"] and not chosen(60, tokens=1e8)["dropout"]


def test_a_text_that_is_read_often_is_forgotten_more():
    once, often, endlessly = (chosen(600, tokens=tokens) for tokens in (1e9, 1e6, 1e4))
    assert not once["dropout"] and not once["word_dropout"] and often["dropout"] and often["word_dropout"]
    assert once["weight_decay"] == 0.01 < often["weight_decay"] <= endlessly["weight_decay"] == sizing.MOST_DECAY


def test_dropout_comes_slowly_and_not_to_what_is_read_a_few_times():
    found = [chosen(60, tokens=tokens, depth=2) for tokens in [1e12 / 1.2**step for step in range(120)]]
    dropped = [each["dropout"] for each in found]
    assert dropped == sorted(dropped) and dropped[0] == 0 and dropped[-1] == sizing.MOST_DROPOUT
    assert any(0 < each < sizing.MOST_DROPOUT for each in dropped)
    assert [each["word_dropout"] for each in found] == dropped


def test_embeddings_of_runs_want_more_tokens_for_each_weight(monkeypatch):
    shapes = []
    monkeypatch.setattr(sizing, "seconds_per_token", lambda config, device: shapes.append(config) or 1e-12 * config.n_layer**3 * 64**2 * 12)
    without, with_runs = (chosen(600, ngrams=ngrams, ngram_rows=512) for ngrams in (0, 3))
    assert 0 < with_runs["n_layer"] < without["n_layer"]
    assert shapes[-1].ngrams == 3 and shapes[-1].ngram_rows == 512  # looking them up is part of a token's time
    plain, more = (chosen(0, depth=2, ngrams=ngrams) for ngrams in (0, 3))
    tokens = [each["max_iters"] * each["batch_size"] * each["block_size"] for each in (plain, more)]
    assert tokens[1] == pytest.approx(sizing.WITH_RUNS * tokens[0], rel=0.01)


def test_tokens_seen_again_teach_less_and_less():
    assert sizing.fresh(500, 1000) == 500
    assert 1900 < sizing.fresh(2000, 1000) < 2000
    assert sizing.fresh(1e9, 1000) == pytest.approx(1000 * (1 + sizing.AGAIN))


def test_rates_follow_batch_and_width():
    one, other = chosen(depth=2, budget=0), chosen(depth=8, budget=0)
    larger = (other["batch_size"] / one["batch_size"]) ** 0.5
    assert other["muon_learning_rate"] == pytest.approx(one["muon_learning_rate"] * larger)
    assert other["learning_rate"] == pytest.approx(one["learning_rate"] * larger / 2)
    assert other["max_iters"] * other["batch_size"] * other["block_size"] == pytest.approx(sizing.PER_WEIGHT * sizing.block_weights(8), rel=0.01)


@pytest.mark.parametrize("world", [1, 3, 6, 7])
def test_ranks_can_share_the_batch(world):
    for depth in (1, 3, 8):
        assert chosen(depth=depth, budget=0, world=world)["batch_size"] % world == 0


def test_a_batch_that_was_asked_for_has_its_own_rates_and_steps():
    own, asked = chosen(depth=3, budget=0), chosen(depth=3, budget=0, batch_size=8)
    assert asked["batch_size"] == 8 == 4 * own["batch_size"]
    assert asked["max_iters"] == pytest.approx(own["max_iters"] / 4, rel=0.01)
    assert asked["muon_learning_rate"] == pytest.approx(2 * own["muon_learning_rate"])


def test_everything_chosen_is_a_setting():
    fields = set(vars(take(TrainConfig, {}))) | set(vars(ModelConfig()))
    assert set(chosen(depth=2, budget=0)) | set(sizing.RECIPE) <= fields


@pytest.mark.parametrize(
    "given, choose",
    [
        ({"time": "10m"}, True), ({"depth": 4}, True), ({}, False), ({"time": "10m", "preset": "quick"}, False),
        ({"time": "10m", "n_embd": 64}, False), ({"time": "10m", "resume": True}, False), ({"depth": 4, "resume": True}, False),
        ({"time": "", "data": "x"}, False), ({"time": "10m", "architecture": "classic"}, False),
    ],
)  # fmt: skip
def test_when_the_size_is_ours_to_choose(given, choose):
    assert sizing.wanted(given) == choose


def test_two_words_about_the_size_are_one_too_many():
    with pytest.raises(UserError, match=r"--depth 4 .* --preset quick .* leave one of them out"):
        sizing.wanted({"depth": 4, "preset": "quick"})


def test_a_run_without_a_word_of_its_size_trains_is_planned_and_goes_on(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(4000)))
    places = ["--out_dir", tmp_path / "c", "--log_dir", tmp_path / "l", "--run", "sized", "--no-progress"]

    def run(*flags):
        environ = {"LLM_DATA_DIR": str(tmp_path / "data"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        done = subprocess.run([sys.executable, "train_cli.py", *map(str, flags)], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = run("--data", text, "--time", "12s", "--seed", 5, *places)
    line = next(line for line in told.splitlines() if line.startswith("size"))
    saved = json.loads((tmp_path / "l/sized/events.jsonl").read_text().splitlines()[0])
    assert f"blocks {saved['model']['n_layer']}, wide {saved['model']['n_embd']}" in line
    assert saved["model"]["architecture"] == "modern" and saved["train"]["optimizer"] == "muon" and saved["train"]["seed"] == 5
    assert "by --depth 2: blocks 2, wide 128, context 64" in run("plan", "--data", text, "--depth", 2, "--block_size", 64)
    assert "resuming" in run("--resume", "--time", "14s", *places)
