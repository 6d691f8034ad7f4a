"""The command line: quick help, sentences instead of tracebacks, and every verb from end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import checkpoint
import config
from config import PRESETS, ROOT, GenerateConfig, ModelConfig, TrainConfig
from tests.logbook import Logbook
from tests.runs import environment, main_here, small_run, write_text

VERBS = ["", "plan", "evaluate", "average", "export", "import", "compare", "watch"]


def refused(folder, monkeypatch, capsys, *arguments: str) -> str:
    """What is said to arguments that cannot be followed: exit code 2, no traceback."""
    assert main_here(folder, monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def test_a_console_that_does_not_know_every_sign_gets_the_others(tmp_path):
    env = environment(tmp_path, PYTHONIOENCODING="cp1251")
    command = [sys.executable, str(ROOT / "train_cli.py"), "plan", "--preset", "quick", "--attention", "math"]
    done = subprocess.run(command, capture_output=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"micro-batch" in done.stdout


# ---- help and defaults


def test_the_other_door_counts_its_time_from_before_torch_is_loaded(tmp_path):
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['train.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code and 'train_cli' in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), timeout=60)
    assert done.returncode == 0, done.stderr


def seconds_of_children() -> float:
    """Processor time of the processes that have ended: what else the machine does is not counted."""
    used = os.times()
    return used.children_user + used.children_system


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_quick_and_needs_no_torch(tmp_path, verb):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train_cli, atexit\n"
        "atexit.register(lambda: print('HEAVY', sorted({'torch', 'numpy', 'datasets'} & sys.modules.keys())))\n"
        f"train_cli.main({[verb, '--help'] if verb else ['--help']!r})"
    )
    before = seconds_of_children()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout and "usage: train_cli.py" in done.stdout
    assert seconds_of_children() - before < 1


def test_every_setting_has_words_and_stands_in_the_help(tmp_path, monkeypatch, capsys):
    assert main_here(tmp_path, monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    for kind in (ModelConfig, TrainConfig, GenerateConfig):
        for item in dataclasses.fields(kind):
            assert len(item.metadata["help"]) > 3, item.name
            assert kind is GenerateConfig or f"--{item.name}" in told


def test_defaults_are_the_missions():
    model, train = ModelConfig(), TrainConfig()
    assert (model.architecture, model.vocab_size) == ("classic", 50257)
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size) == (6, 6, 384, 512)
    assert (train.batch_size, train.learning_rate, train.max_iters, train.eval_interval) == (16, 3e-4, 10000, 500)
    assert (train.dataset_name, train.dataset_config) == ("Salesforce/wikitext", "wikitext-2-raw-v1")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built(name):
    values = config.settings({"preset": name})
    config.take(TrainConfig, values)
    config.take(ModelConfig, {"vocab_size": 128, **values})


def test_dashes_and_underscores_mean_the_same(tmp_path, monkeypatch):
    first = config.Parser()
    config.add_flags(first, TrainConfig, ModelConfig)
    ways = [["--n_layer", "3", "--checkpoint_activations"], ["--n-layer", "3", "--checkpoint-activations"]]
    assert vars(first.parse_args(ways[0])) == vars(first.parse_args(ways[1]))


def test_flags_win_over_the_preset():
    values = config.settings({"preset": "small", "n_layer": 9})
    assert values["n_layer"] == 9 and values["n_embd"] == 384


def test_a_setting_that_was_not_given_leaves_no_trace():
    parser = config.Parser()
    config.add_flags(parser, TrainConfig, ModelConfig)
    assert vars(parser.parse_args([])) == {}


# ---- what cannot be followed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--n_layers", "--n_layer"), ("--learning-rat", "--learning-rate"), ("--bach_size", "--batch_size")],
)
def test_an_unknown_flag_suggests_the_one_that_was_meant(tmp_path, monkeypatch, capsys, typed, meant):
    assert f"did you mean {meant}?" in refused(tmp_path, monkeypatch, capsys, typed, "3")


@pytest.mark.parametrize(
    ("typed", "time"),
    [({}, "115s"), ({"max_iters": 5}, ""), ({"max_iters": 5, "time": "1m"}, "1m"), ({"batch_size": 4}, "115s")],
)
def test_steps_that_are_asked_for_go_before_a_presets_time(typed, time):
    assert config.settings({"preset": "quick", **typed})["time"] == time


def test_an_unknown_preset_suggests_the_one_that_was_meant(tmp_path, monkeypatch, capsys):
    told = refused(tmp_path, monkeypatch, capsys, "--preset", "quik")
    assert "did you mean quick?" in told and "--list_presets" in told


def test_flags_are_never_abbreviated(tmp_path, monkeypatch, capsys):
    refused(tmp_path, monkeypatch, capsys, "--max", "3")


BAD = {
    **{name: ["0", "-1", "nan", "1e400", "", "many"] for name in ("n_layer", "n_head", "n_embd", "block_size")},
    **{name: ["0", "-3", "", "x"] for name in ("batch_size", "max_iters", "eval_interval", "keep")},
    **{name: ["-1", "x"] for name in (
        "vocab_size", "n_kv_head", "head_dim", "n_inner", "micro_batch_size", "eval_tokens", "patience",
        "save_interval", "sample_tokens", "threads", "seed", "n_stories",
    )},
    **{name: ["0", "-1", "nan", "inf", ""] for name in ("learning_rate", "muon_learning_rate")},
    **{name: ["-0.1", "1.5", "nan", "inf"] for name in (
        "val_fraction", "warmup", "decay", "final_rate", "ema", "dropout", "word_dropout", "beta1", "beta2",
    )},
    **{name: ["-1", "nan", "inf"] for name in ("weight_decay", "grad_clip", "rope_theta", "norm_eps", "embedding_std")},
    "time": ["soon", "-5s", "0s", "5 years", "nan"],
    "run": ["../up", "a/b", ".", "a b"],
    "device": ["", "tpu9", "cuda:99", "gpu"],
    **{name: ["", "fast"] for name in ("architecture", "tokenizer", "optimizer", "schedule", "dtype", "compile")},
    "data": ["", "no/such/file.txt", "*.nothing"],
    "init_from": ["no/such/checkpoint.pt"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_a_sentence_that_names_it(tmp_path, monkeypatch, capsys, name, value):
    told = refused(tmp_path, monkeypatch, capsys, *small_run(tmp_path), f"--{name}={value}")
    assert name in told or (value and value in told)
    assert not (tmp_path / "out" / "a" / "last.pt").exists()


HUGE = {"n_layer": 10**9, "n_head": 10**9, "n_embd": 10**12, "batch_size": 10**15, "block_size": 10**12, "seed": 10**30,
        "vocab_size": 10**12, "n_inner": 10**12, "threads": 10**9}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_value_is_refused_at_once(tmp_path, monkeypatch, capsys, name):
    t0 = time.monotonic()
    assert name in refused(tmp_path, monkeypatch, capsys, *small_run(tmp_path), f"--{name}={HUGE[name]}")
    assert time.monotonic() - t0 < 10


def test_too_little_text_for_a_row_is_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("too little text, really")
    assert "--block_size" in refused(tmp_path, monkeypatch, capsys, *small_run(tmp_path, block_size=64))


@pytest.mark.parametrize("content", [b"", b"x", b"\n"])
def test_an_empty_text_is_a_sentence(tmp_path, monkeypatch, capsys, content):
    (tmp_path / "text.txt").write_bytes(content)
    refused(tmp_path, monkeypatch, capsys, *small_run(tmp_path))


def test_resuming_what_is_not_there_is_a_sentence(tmp_path, monkeypatch, capsys):
    out = ["--out_dir", str(tmp_path)]
    assert "no run to resume" in refused(tmp_path, monkeypatch, capsys, "--resume", *out)
    assert "no checkpoint to resume from" in refused(tmp_path, monkeypatch, capsys, "--resume", "--run", "x", *out)
    assert "no run to resume" in refused(tmp_path, monkeypatch, capsys, "--verify_resume", *out)


# ---- the verbs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with three numbered checkpoints; its folder."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        assert main_here(folder, patch, *small_run(folder, save_interval=5, eval_interval=5, keep=3, architecture="modern")) == 0
    return folder


def best(folder) -> str:
    return str(folder / "out" / "a" / "best_model.pt")


def test_plan_trains_nothing(tmp_path, monkeypatch, capsys):
    arguments = [flag for flag in small_run(tmp_path) if flag]
    assert main_here(tmp_path, monkeypatch, "plan", *arguments) == 0
    told = capsys.readouterr().out
    for word in ("machine", "parameters", "memory", "steps", "tokens/s", "threads", "compile"):
        assert word in told
    assert not (tmp_path / "out").exists() and not (tmp_path / "logs").exists()


def test_list_presets_shows_all(tmp_path, monkeypatch, capsys):
    assert main_here(tmp_path, monkeypatch, "--list_presets") == 0
    told = capsys.readouterr().out
    assert all(f"\n{name} " in told for name in PRESETS)


def test_evaluate_scores_a_checkpoint_as_the_run_did(trained, monkeypatch, capsys):
    assert main_here(trained, monkeypatch, "evaluate", best(trained)) == 0
    told = capsys.readouterr().out
    summary = json.loads((trained / "logs" / "a" / "summary.json").read_text())
    assert f"{summary['val_loss']:.4f}" in told and f"{summary['val_bpb']:.4f}" in told


def test_evaluate_takes_another_text(trained, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.txt"
    other.write_text("the cat sat on the mat and the dog ran under the tree\n" * 50)
    assert main_here(trained, monkeypatch, "evaluate", best(trained), "--data", str(other)) == 0
    assert "other.txt" in capsys.readouterr().out


def test_a_folder_of_texts_may_hold_a_meta_json(tmp_path, monkeypatch, capsys):
    (tmp_path / "texts").mkdir()
    write_text(tmp_path / "texts" / "a.txt")
    (tmp_path / "texts" / "meta.json").write_text('{"author": "me"}')
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, data=tmp_path / "texts")) == 0


def test_shards_have_no_pictures(trained, monkeypatch, capsys):
    shards = trained / "data" / checkpoint.load(best(trained))["provenance"]["data_hash"]
    assert main_here(trained, monkeypatch, *small_run(trained, "sees", data=shards, modalities="image")) == 2
    assert "leave --modalities out" in capsys.readouterr().err
    (shards / "val_00000.bin").rename(shards / "away")
    assert main_here(trained, monkeypatch, *small_run(trained, "half", data=shards)) == 2
    assert "delete the folder and start again" in capsys.readouterr().err
    (shards / "away").rename(shards / "val_00000.bin")


def test_a_document_that_is_most_of_what_validates_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "texts").mkdir()
    for n in range(3):
        write_text(tmp_path / "texts" / f"{n}.txt", seed=n)
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, data=tmp_path / "texts")) == 0
    assert "of the text validate, since documents stay whole" in capsys.readouterr().out


def test_evaluate_takes_a_run_trained_on_shards(trained, monkeypatch, capsys):
    shards = trained / "data" / checkpoint.load(best(trained))["provenance"]["data_hash"]
    assert main_here(trained, monkeypatch, *small_run(trained, "shards", data=shards)) == 0
    assert main_here(trained, monkeypatch, "evaluate", str(trained / "out" / "shards")) == 0


def test_average_writes_what_evaluate_reads(trained, monkeypatch, capsys):
    out = trained / "mean.pt"
    assert main_here(trained, monkeypatch, "average", str(trained / "out" / "a"), "--last", "2", "--out", str(out)) == 0
    assert "averaged steps 15, 20" in capsys.readouterr().out
    assert main_here(trained, monkeypatch, "evaluate", str(out)) == 0
    paths = checkpoint.numbered(trained / "out" / "a")[-2:]
    weights = [checkpoint.load(path)["model"]["wte.weight"] for path in paths]
    torch.testing.assert_close(checkpoint.load(out)["model"]["wte.weight"], sum(weights) / 2)


def test_average_of_the_best_takes_those_that_were_scored(trained, monkeypatch, capsys):
    out = trained / "best.pt"
    assert main_here(trained, monkeypatch, "average", str(trained / "out" / "a"), "--best", "2", "--out", str(out)) == 0
    assert "10" in capsys.readouterr().out.split(" into ")[0]
    assert checkpoint.load(out)["provenance"]["val_loss"] is None, "nobody scored the average"
    assert main_here(trained, monkeypatch, "average", str(trained / "out" / "a"), "--best", "3", "--out", str(out)) == 0
    told = capsys.readouterr().out
    assert "2 of the numbered checkpoints" in told and "averaged steps 10, 15, 20" in told


def test_with_a_moving_average_only_the_best_model_has_its_score(tmp_path, monkeypatch):
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, ema=0.9, save_interval=10, keep=2)) == 0
    losses = {path.name: checkpoint.load(path)["provenance"]["val_loss"] for path in (tmp_path / "out" / "a").glob("*.pt")}
    assert losses.pop("best_model.pt") > 0
    assert len(losses) == 4 and set(losses.values()) == {None}


def test_a_run_does_not_replace_a_model_that_stands_alone(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "out" / "a").mkdir(parents=True)
    alone = tmp_path / "out" / "a" / "best_model.pt"
    alone.write_bytes(Path(best(trained)).read_bytes())
    told = refused(tmp_path, monkeypatch, capsys, *small_run(tmp_path))
    assert "--run" in told and "--init_from" in told
    assert alone.read_bytes() == Path(best(trained)).read_bytes()
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, "b")) == 0


def test_average_without_numbered_checkpoints_names_the_flag(tmp_path, monkeypatch, capsys):
    assert "--save_interval" in refused(tmp_path, monkeypatch, capsys, "average", str(tmp_path))


def test_export_and_import_give_the_same_model_back(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    folder, again = tmp_path / "exported", tmp_path / "again.pt"
    assert main_here(trained, monkeypatch, "export", best(trained), "--out", str(folder)) == 0
    assert main_here(trained, monkeypatch, "import", str(folder), "--out", str(again)) == 0
    ours, theirs = (checkpoint.load(path)["model"] for path in (best(trained), again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_compare_shows_the_best_first(tmp_path, monkeypatch, capsys):
    Logbook(tmp_path, "bare").start().steps(0, 3)
    for name, bpb in (("good", 0.7), ("worse", 0.9)):
        Logbook(tmp_path, name).start().steps(0, 3).evaluation(3, bpb).end(bpb=bpb)
    assert main_here(tmp_path, monkeypatch, "compare", "--log_dir", str(tmp_path)) == 0
    head, *told = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert "bits/byte" in head
    assert [line.split()[:2] for line in told[:2]] == [["good", "0.7000"], ["worse", "0.9000"]]
    assert [line.split()[0] for line in told[2:]] == ["bare"], "one without a score comes last"


def test_compare_tells_a_run_that_was_killed_from_one_in_progress(trained, tmp_path, monkeypatch, capsys):
    events = [json.loads(line) for line in (trained / "logs" / "a" / "events.jsonl").read_text().splitlines()]
    for name, ago in (("killed", 3600), ("alive", 0), ("empty", None)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({**event, "time": time.time() - ago}) for event in events[:8]] if ago is not None else []
        (tmp_path / name / "events.jsonl").write_text("\n".join([*lines, '{"event": "st']))
    assert main_here(tmp_path, monkeypatch, "compare", "--log_dir", str(tmp_path)) == 0
    listed, _, _ = capsys.readouterr().out.partition("\n\n")
    ends = {line.split()[0]: line.split()[-1] for line in listed.splitlines()}
    assert ends == {"run": "ended", "killed": "killed?", "alive": "running", "empty": "killed?"}


MISSING = [
    ["evaluate", "no.pt"],
    ["evaluate", "README.md"],
    ["average", "no"],
    ["export", "no.pt", "--out", "x"],
    ["import", "no", "--out", "x"],
    ["compare", "no"],
    ["watch", "--port", "99999"],
    ["export", "no.pt"],
    ["import"],
    ["average"],
    ["plan", "--batch_size", "0"],
    ["train", "--batch_size", "0"],
    ["generat"],
]


@pytest.mark.parametrize("arguments", MISSING, ids=" ".join)
def test_what_is_not_there_is_a_sentence(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert refused(tmp_path, monkeypatch, capsys, *arguments).strip()


@pytest.mark.parametrize("verb", ["export", "import", "average"])
def test_a_place_that_cannot_be_written_is_a_sentence(trained, tmp_path, monkeypatch, capsys, verb):
    (tmp_path / "file").write_text("")
    source = {"export": best(trained), "average": str(trained / "out" / "a"), "import": str(tmp_path / "folder")}[verb]
    if verb == "import":
        pytest.importorskip("transformers")
        assert main_here(trained, monkeypatch, "export", best(trained), "--out", source) == 0
    refused(trained, monkeypatch, capsys, verb, source, "--out", str(tmp_path / "file" / "below"))


def test_train_py_is_the_same_front_door(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, env=environment(tmp_path)
    )
    assert done.returncode == 0 and "--learning_rate" in done.stdout
