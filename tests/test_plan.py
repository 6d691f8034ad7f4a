"""The plan tells what a run takes, and what it tells is about right."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys

import pytest
import torch

from config import ROOT, ModelConfig, TrainConfig, UserError
from model import GPT, flops_per_token
from tests.runs import environment
from training import calibrate, plan
from training.distributed import Ranks

CPU = torch.device("cpu")
ONE = Ranks(0, 1, CPU)
TINY = ModelConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, block_size=16)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A machine with known measurements and a memory of its own."""
    monkeypatch.setattr(calibrate, "MEMORY", tmp_path / "machine.json")
    monkeypatch.setattr(calibrate, "matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr(calibrate, "seconds_per_token", lambda *args: 1e-4 if args[2] == "float32" else 2e-4)
    return monkeypatch


@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_parameters_are_counted_without_making_the_model(architecture):
    config = ModelConfig(architecture=architecture, vocab_size=300, n_layer=2, n_head=2, n_embd=32, block_size=16)
    assert plan.count_parameters(config) == sum(weight.numel() for weight in real_parameters(config))


def real_parameters(config: ModelConfig) -> list[torch.Tensor]:
    model = GPT(config)
    return list({id(param): model.state_dict()[name] for name, param in model.named_parameters()}.values())


def test_the_mission_s_model_is_counted_right():
    d, layers = 384, 6
    assert plan.count_parameters(ModelConfig()) == (50257 + 512) * d + layers * (12 * d * d + 13 * d) + 2 * d


def test_steps_tokens_epochs_and_time_fit_together(measured):
    told = plan.make_plan(TINY, TrainConfig(batch_size=8, max_iters=100, compile="off"), ONE, train_tokens=3200)
    assert told.tokens_per_step == 128
    assert told.steps == 100
    assert told.epochs == pytest.approx(4)
    assert told.seconds == pytest.approx(100 * 128 * 1e-4)
    assert told.dtype == "float32"
    assert told.micro_batch_size * told.micro_steps == 8


def test_a_budget_gives_the_steps(measured):
    told = plan.make_plan(TINY, TrainConfig(batch_size=8, time="128s", compile="off"), ONE)
    assert told.steps == pytest.approx(0.9 * 128 / 128e-4, rel=0.01)
    assert told.seconds == 128


MEASURE = """
import sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from config import ModelConfig, TrainConfig
from model import GPT
from training import calibrate, plan, process
from training.optim import make_optimizers
model_config, config = ModelConfig(**{model!r}), TrainConfig(**{train!r})
process.tune_process(torch.device("cpu"))
model = GPT(model_config)
model.checkpoint_activations = config.checkpoint_activations
optimizers = make_optimizers(model, config, "adamw", config.dtype)
idx = torch.randint(model_config.vocab_size, (config.micro_batch_size, model_config.block_size))
for _ in range(2):
    with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
        loss = model(idx, idx)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
told = plan.memory(model_config, config, model.parameter_count(), config.dtype, config.micro_batch_size, "adamw", torch.device("cpu"))
print(told, calibrate.peak_memory(torch.device("cpu")))
"""

SHAPES = {
    "weights": ({"n_layer": 4, "n_head": 4, "n_embd": 512, "block_size": 64, "vocab_size": 8192}, {}),
    "activations": (
        {"architecture": "modern", "n_layer": 6, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 2048},
        {"micro_batch_size": 16},
    ),
    "logits": ({"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 512, "vocab_size": 50257}, {"micro_batch_size": 4}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_estimated_within_two_fifths(tmp_path, shape, dtype):
    model, train = SHAPES[shape]
    code = MEASURE.format(root=str(ROOT), model=model, train={"micro_batch_size": 1, "dtype": dtype, **train})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), timeout=120
    )
    assert done.returncode == 0, done.stderr
    told, peak = map(int, done.stdout.split())
    assert 0.6 < told / peak < 1.4


def test_memory_grows_with_what_takes_it():
    def bytes_of(micro=4, train=None, **shape):
        config = ModelConfig(**{"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, **shape})
        return plan.memory(config, train or TrainConfig(), plan.count_parameters(config), "float32", micro, "adamw", ONE.device)

    base = bytes_of()
    assert bytes_of(micro=8) > base
    assert bytes_of(n_layer=8) > base
    assert bytes_of(block_size=512) > base
    assert bytes_of(train=TrainConfig(ema=0.9)) > base
    assert bytes_of(train=TrainConfig(checkpoint_activations=True)) < base


def told_warnings(measured, train_tokens=0, **changes) -> str:
    config = TrainConfig(**{"batch_size": 8, "max_iters": 100, "compile": "off", **changes})
    return " ".join(plan.make_plan(TINY, config, ONE, train_tokens).warnings)


def test_overfitting_is_foreseen(measured):
    assert "every token will be seen 128 times" in told_warnings(measured, train_tokens=100)
    assert "overfit" not in told_warnings(measured, train_tokens=10**6)


def test_a_long_run_on_a_cpu_names_the_budget_and_the_quick_preset(measured):
    told = told_warnings(measured, max_iters=10**7)
    assert "--time 2h" in told and "--preset quick" in told
    assert "--time" not in told_warnings(measured)


def test_too_little_memory_is_foreseen(measured):
    measured.setattr(calibrate, "free_memory", lambda _: 100 * 2**20)
    assert "may not fit in memory" in told_warnings(measured)


def test_a_batch_that_ranks_cannot_share_names_one_that_they_can(measured):
    with pytest.raises(UserError, match="batch_size 10 cannot be shared by 4 ranks: pass --batch_size 12"):
        plan.make_plan(TINY, TrainConfig(batch_size=10), Ranks(0, 4, CPU))


def test_a_micro_batch_that_does_not_divide_a_rank_s_share_is_refused(measured):
    with pytest.raises(UserError, match="micro_batch_size 8 does not divide the 4 sequences of each rank"):
        plan.make_plan(TINY, TrainConfig(batch_size=8, micro_batch_size=8), Ranks(0, 2, CPU))


def test_the_micro_batch_divides_the_batch_and_fits(measured):
    config = ModelConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, block_size=1024)
    for batch in (1, 7, 12, 480):
        told = plan.make_plan(config, TrainConfig(batch_size=batch, compile="off"), ONE)
        assert batch % told.micro_batch_size == 0
        assert told.micro_batch_size * 1024 <= 4096
    measured.setattr(calibrate, "free_memory", lambda _: 2**20)
    assert plan.make_plan(config, TrainConfig(batch_size=12, compile="off"), ONE).micro_batch_size == 1


def test_auto_takes_muon_only_where_it_pays(measured):
    small = plan.make_plan(TINY, TrainConfig(optimizer="auto", batch_size=1, compile="off"), ONE)
    large = plan.make_plan(TINY, TrainConfig(optimizer="auto", batch_size=512, compile="off"), ONE)
    assert (small.optimizer, large.optimizer) == ("adamw", "muon")


# ---- a model in shards

LARGE = ModelConfig(vocab_size=64, n_layer=48, n_head=8, n_embd=1024, block_size=64)  # 600 M parameters


def shared(measured, world: int, free: int, **changes) -> plan.Plan:
    """The plan of so many ranks that share LARGE, with so many bytes free on each."""
    measured.setattr(calibrate, "free_memory", lambda _: free)
    config = TrainConfig(**{"fsdp": True, "batch_size": 16, "compile": "off", "dtype": "float32", **changes})
    return plan.make_plan(LARGE, config, Ranks(0, world, CPU))


def test_shards_take_the_less_memory_the_more_ranks_there_are(measured):
    needed = [shared(measured, world, 2**40).memory_bytes for world in (1, 2, 4, 8)]
    weights = 16 * plan.count_parameters(LARGE)
    for more, fewer in itertools.pairwise(needed):
        assert fewer < more
    assert needed[0] - needed[1] >= weights // 2


@pytest.mark.parametrize(("free", "meet_each"), [(2**40, False), (5 * 2**30, True)])
def test_whole_gradients_are_kept_between_micro_steps_where_they_fit(measured, free, meet_each):
    told = shared(measured, 8, free, micro_batch_size=1)
    assert told.micro_steps == 2
    assert told.meet_each == meet_each
    assert told.memory_bytes < free


def test_one_micro_step_keeps_no_whole_gradients(measured):
    apart, at_once = (shared(measured, 8, 2**40, micro_batch_size=micro).memory_bytes for micro in (1, 2))
    assert apart - at_once > 3 * plan.count_parameters(LARGE)
    assert not shared(measured, 8, 5 * 2**30, micro_batch_size=2).meet_each


# ---- compiling


def without_compiler(measured):
    measured.setenv("PATH", "")
    measured.setenv("CXX", "no-such-compiler")


def test_without_a_compiler_a_run_is_eager_and_says_so(measured):
    without_compiler(measured)
    told = plan.make_plan(TINY, TrainConfig(max_iters=10**7), ONE)
    assert not told.compile
    assert "no C++ compiler here" in " ".join(told.lines())


def test_compiling_without_a_compiler_is_refused_with_the_mend(measured):
    without_compiler(measured)
    with pytest.raises(UserError, match=r"--compile on needs a C\+\+ compiler .*install one, or pass --compile off"):
        plan.make_plan(TINY, TrainConfig(compile="on"), ONE)


def test_a_short_run_does_not_compile_and_a_long_one_does(measured):
    measured.setattr(calibrate, "has_compiler", lambda _: True)
    modern = ModelConfig(architecture="modern", vocab_size=64, n_layer=1, n_head=2, n_embd=16, block_size=16)
    assert not plan.make_plan(modern, TrainConfig(time="60s"), ONE).compile
    assert plan.make_plan(modern, TrainConfig(time="2h"), ONE).compile
    assert not plan.make_plan(TINY, TrainConfig(time="2h"), ONE).compile  # the classic block gains nothing on a CPU


def test_what_the_machine_offers_is_told(measured):
    modern = ModelConfig(architecture="modern", vocab_size=64, n_layer=1, n_head=2, n_embd=16, block_size=16)
    measured.setattr(calibrate, "has_compiler", lambda _: True)
    measured.setattr(torch, "get_num_threads", lambda: 6)
    asked = []
    measured.setattr(torch, "set_num_threads", asked.append)
    measured.setattr(calibrate, "measure_seconds_per_token", lambda *_: {6: 1e-4, 3: 5e-5, 1: 2e-4}[asked[-1]])
    told = "\n".join(plan.machine_lines(modern, "float32", CPU))
    assert asked == [6, 3, 1, 6, 3, 1, 6]
    assert "with 6: 6: 100 %, 3: 200 %, 1: 50 %; --threads 3 would be faster" in told
    guessed = calibrate.compiling(modern, CPU, "float32")
    assert not guessed.measured
    assert f"pays in runs of {plan.duration(guessed.break_even)} and more" in told
    assert not plan.choose_compile("auto", guessed.break_even * 0.99, CPU, guessed)
    assert plan.choose_compile("auto", guessed.break_even * 1.01, CPU, guessed)
    assert "gains nothing for this model" in "\n".join(plan.machine_lines(TINY, "float32", CPU))


def test_what_compiling_was_seen_to_be_worth_decides_from_then_on(measured):
    measured.setattr(calibrate, "has_compiler", lambda _: True)
    config = TrainConfig(time="2h")
    assert not plan.make_plan(TINY, config, ONE).compile
    measured.setattr(calibrate, "measure_compiling", lambda *_: {"seconds": 7.0, "gain": 2.0})
    assert not calibrate.compiling(TINY, CPU, "float32").measured  # nobody asked for it
    told = "\n".join(plan.machine_lines(TINY, "float32", CPU, measure=True))
    assert "7 s for steps 2.00 times as fast (as measured here): pays in runs of 28 s and more" in told
    measured.setattr(calibrate, "measure_compiling", None)
    assert plan.make_plan(TINY, config, ONE).compile
    assert not plan.make_plan(TINY, TrainConfig(time="27s"), ONE).compile
    other = ModelConfig(vocab_size=64, n_layer=2, n_head=1, n_embd=16, block_size=16)
    assert not plan.make_plan(other, config, ONE).compile  # another shape is worth something else


@pytest.mark.skipif(not calibrate.has_compiler(CPU), reason="no compiler here")
def test_compiling_is_measured_by_compiling():
    found = calibrate.measure_compiling(TINY, CPU, "float32")
    assert found["seconds"] > 0.05  # a first call that compiles is no ordinary one
    assert 0.05 < found["gain"] < 20


def test_attention_is_tried_and_the_fastest_is_taken(measured):
    speeds = calibrate.measure_attention(TINY, CPU, "bfloat16", 16)
    assert set(speeds) == {"flash", "math"}  # a processor has no others
    dropping = ModelConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, block_size=16, dropout=0.1)
    assert set(calibrate.measure_attention(dropping, CPU, "float32", 16)) == {"math"}  # torch's fused attention of a processor drops nothing
    measured.setattr(calibrate, "measure_attention", lambda *_: {"flash": 1.0, "math": 3.0})
    assert plan.make_plan(TINY, TrainConfig(), ONE).attention == "math"
    assert plan.make_plan(TINY, TrainConfig(attention="flash"), ONE).attention == "flash"
    assert "attention flash: 33 %, math: 100 % of the fastest's speed" in "\n".join(plan.machine_lines(TINY, "float32", CPU))
    with pytest.raises(UserError, match=r"--attention cudnn is not to be had for float32 on cpu.*: pass flash, math or auto"):
        plan.make_plan(TINY, TrainConfig(attention="cudnn"), ONE)


def test_attention_is_tried_over_rows_as_long_as_they_are_and_a_near_tie_goes_to_flash(measured):
    long = ModelConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, block_size=160)
    speeds = {160: {"flash": 1.0, "math": 2.0}, 64: {"flash": 1.0, "math": 1.05}, 32: {"flash": 1.0, "math": 1.2}}
    measured.setattr(calibrate, "measure_attention", lambda config, device, dtype, T: speeds[T])
    assert plan.make_plan(long, TrainConfig(), ONE).attention == "math"
    assert plan.make_plan(long, TrainConfig(), ONE, row_tokens=52.3).attention == "flash"
    assert plan.make_plan(long, TrainConfig(), ONE, row_tokens=20).attention == "math"


def test_attention_that_keeps_all_pairs_takes_their_memory():
    long = ModelConfig(vocab_size=64, n_layer=3, n_head=4, n_embd=64, block_size=4096)
    how = (long, TrainConfig(), 10**6, "float32", 2, "adamw", ONE.device, 1)
    more = plan.memory(*how, "math") - plan.memory(*how, "flash")
    assert more == 4 * (2 * 4096) * 3 * 4 * 4096  # bytes, tokens, layers, heads, what each token looks at


def test_measuring_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    calibrate.measure_attention(ModelConfig(vocab_size=64, n_layer=1, n_head=1, n_embd=16, block_size=16, dropout=0.1), CPU, "float32", 16)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name, kernel", [("flash", "flash_attention"), ("math", "attention_math")])
def test_attention_is_computed_as_was_chosen(name, kernel):
    q = torch.randn(1, 2, 8, 16)
    for how in ({"is_causal": True}, {"attn_mask": torch.ones(8, 8, dtype=torch.bool)}):
        with calibrate.attending(name), torch.profiler.profile() as profile:
            torch.nn.functional.scaled_dot_product_attention(q, q, q, **how)
        assert any(kernel in event.key for event in profile.key_averages())


# ---- calibration


def test_a_measurement_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "MEMORY", tmp_path / "deep" / "machine.json")
    calls = []
    measure = lambda: calls.append(1) or 7.0  # noqa: E731
    assert [calibrate.remembered("x", measure), calibrate.remembered("x", measure)] == [7.0, 7.0]
    assert len(calls) == 1
    assert len(json.loads((tmp_path / "deep" / "machine.json").read_text())) == 1


@pytest.mark.parametrize("content", ["", "{broken"])
def test_a_damaged_memory_is_measured_again(tmp_path, monkeypatch, content):
    monkeypatch.setattr(calibrate, "MEMORY", tmp_path / "machine.json")
    (tmp_path / "machine.json").write_text(content)
    assert calibrate.remembered("x", lambda: 7.0) == 7.0


def test_a_memory_that_cannot_be_written_is_no_trouble(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(calibrate, "MEMORY", tmp_path / "file" / "machine.json")
    assert calibrate.remembered("x", lambda: 7.0) == 7.0


def test_another_machine_measures_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "MEMORY", tmp_path / "machine.json")
    calibrate.remembered("x", lambda: 7.0)
    monkeypatch.setattr(calibrate, "cpu_name", lambda: "another processor")
    assert calibrate.remembered("x", lambda: 8.0) == 8.0


def test_rates_and_speeds_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "MEMORY", tmp_path / "machine.json")
    calls = []
    monkeypatch.setattr(calibrate, "timed", lambda work, _device: calls.append(1) or 0.5)
    counts = []
    for _ in range(2):
        calibrate.matrix_rate(CPU, "float32")
        calibrate.best_dtype(TINY, CPU)
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_the_matrix_rate_is_that_of_a_matrix_product(monkeypatch):
    monkeypatch.setattr(calibrate, "timed", lambda *_: 0.5)
    assert calibrate.measure_matrix_rate(CPU, torch.float32) == 2 * 2048**3 / 0.5


def test_files_that_were_read_leave_a_container_its_room(monkeypatch, tmp_path):
    monkeypatch.setattr(calibrate, "CGROUP", tmp_path)
    assert calibrate.container_room() == 2**62
    for name, text in {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "anon 300\ninactive_file 500\n"}.items():
        (tmp_path / name).write_text(text)
    assert calibrate.container_room() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert calibrate.container_room() == 2**62


def test_a_model_is_measured_by_as_many_rows_as_there_is_memory_for(monkeypatch):
    tried, real = [], calibrate.forward_and_backward

    def small(config, device, dtype, rows):
        tried.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(config, device, dtype, rows)

    monkeypatch.setattr(calibrate, "forward_and_backward", small)
    monkeypatch.setattr(calibrate, "matrix_rate", lambda *_: 1e9)
    most = 16
    assert calibrate.measure_seconds_per_token(TINY, CPU, "float32") > 0
    assert tried == [64, 32, 16]
    most = 0
    assert calibrate.measure_seconds_per_token(TINY, CPU, "float32") == flops_per_token(TINY) / 5e8


def test_models_that_were_measured_do_not_stay():
    def models() -> int:
        return sum(type(each) is GPT for each in gc.get_objects())

    gc.collect()
    before = models()  # of other tests, maybe
    gc.disable()
    try:
        calibrate.measure_seconds_per_token(TINY, CPU, "float32")
        assert models() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("lacking", ["headers", "g++"])
def test_compiling_needs_what_torch_looks_for(monkeypatch, tmp_path, lacking):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(calibrate.sysconfig, "get_path", lambda _: tmp_path)
    monkeypatch.setattr(calibrate.shutil, "which", lambda name: name in ("clang++", *(["g++"] if lacking == "headers" else [])))
    monkeypatch.delenv("CXX", raising=False)
    if lacking == "headers":
        assert calibrate.has_compiler(CPU)
        (tmp_path / "Python.h").unlink()
    assert not calibrate.has_compiler(CPU)


def test_a_container_s_limit_counts(monkeypatch):
    monkeypatch.setattr(calibrate, "container_room", lambda: 12345)
    assert calibrate.free_memory(CPU) == 12345
