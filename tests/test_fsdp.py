"""A model in shards trains like a model that every rank holds whole, and its checkpoints survive what others do."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import checkpoint
from config import TrainConfig, UserError
from tests.crew import Crew
from tests.runs import equal, events, losses, main_here, resume, small_run, wait_for, without_clock
from training.distributed import Ranks
from training.files import Files
from training.text import TextTask

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
# 35 rows of letters, padded to 64; two ranks cut 27 and 33 rows unevenly; each rank takes two micro-steps
SHAPE = {"n_layer": 2, "n_embd": 18, "head_dim": 6, "n_inner": 33, "architecture": "modern"}
HOW = {**SHAPE, "batch_size": 8, "micro_batch_size": 2, "sample_tokens": 0, "ema": 0.9, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    two = Crew(*[tmp_path_factory.mktemp("crew")] * 2)
    yield two
    two.close()


def train(crew: Crew, folder: Path, run: str, **changes) -> list:
    told = crew.run(*small_run(folder, run, **{**HOW, **changes}))
    assert [each.value for each in told] == [0, 0], told
    return told


def shards(folder: Path, run: str = "a") -> list[str]:
    return sorted(path.name for path in (folder / "out" / run).glob("*.dcp*"))


def content(path: Path) -> dict:
    """Everything in a checkpoint in shards, whole."""
    from training.folders import PLAIN, read

    return read(checkpoint.load(path / PLAIN), path, lambda size, dtype: torch.empty(size, dtype=dtype), alone=True)


# ---- the same losses


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"optimizer": "muon", "dropout": 0.1}, id="muon"),
        pytest.param({"optimizer": "adamw"}, id="adamw", marks=pytest.mark.slow),
        pytest.param(
            {"optimizer": "muon", "architecture": "classic", "head_dim": 0}, id="classic", marks=pytest.mark.slow
        ),
        pytest.param(
            {"optimizer": "adamw", "tied_head": False, "checkpoint_activations": True},
            id="untied",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_shards_have_the_losses_of_ddp(tmp_path, crew, how):
    """Two ranks, two micro-steps each, clipped gradients, a moving average."""
    train(crew, tmp_path, "ddp", **how)
    train(crew, tmp_path, "fsdp", fsdp=True, **how)
    ddp, fsdp = losses(tmp_path, "ddp"), losses(tmp_path, "fsdp")
    assert sorted(ddp) == sorted(fsdp) == list(range(20))
    assert max(abs(ddp[step] - fsdp[step]) for step in ddp) < 1e-5
    for kind, field in (("evaluation", "loss"), ("step", "norm")):
        pairs = zip(events(tmp_path, kind, "ddp"), events(tmp_path, kind, "fsdp"), strict=True)
        assert all(a[field] == pytest.approx(b[field], rel=1e-4) for a, b in pairs)
    one, two = (checkpoint.load(tmp_path / "out" / run / "best_model.pt")["model"] for run in ("ddp", "fsdp"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_compute_in_low_precision_what_ddp_computes(tmp_path, crew, dtype):
    how = {"dtype": dtype, "max_iters": 8, "learning_rate": 1e-3}
    train(crew, tmp_path, "ddp", **how)
    train(crew, tmp_path, "fsdp", fsdp=True, **how)
    ddp, fsdp = losses(tmp_path, "ddp"), losses(tmp_path, "fsdp")
    assert max(abs(ddp[step] - fsdp[step]) for step in ddp) < 1e-4


# ---- what is not done twice


def shards_of_a_model(ranks: Ranks, **changes):
    """A trainer of a tiny model in shards, on random tokens."""
    import time

    from config import ModelConfig
    from model import GPT
    from tests.runs import RunLog
    from train import Trainer
    from training.plan import make_plan
    from training.sharding import scatter, shard

    shape = ModelConfig(vocab_size=35, n_layer=2, n_head=2, n_embd=18, head_dim=6, block_size=8, architecture="modern")
    config = TrainConfig(fsdp=True, batch_size=8, micro_batch_size=1, dtype="float32", optimizer="muon", compile="off", **changes)
    with torch.device("meta"):
        model = GPT(shape)
    shard(model, ranks, "float32")
    scatter(GPT(shape) if ranks.first else None, model, ranks)
    log = RunLog(Path("unused"), active=False)
    return Trainer(model, Tokens(ranks), config, make_plan(shape, config, ranks), ranks, Path("unused"), log, time.monotonic())


class Tokens:
    """Random tokens, as a task."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(35, (8, 9), generator=torch.Generator().manual_seed(step)).chunk(self.ranks.world)[self.ranks.rank]
        return x[:, :-1], x[:, 1:]

    cuts = TextTask.cuts


def count_exchanges(ranks: Ranks, meet_each: bool) -> tuple[int, int]:
    """How many groups of gradients there are, and how many were exchanged in a step of four micro-steps."""
    from torch.distributed.fsdp import FSDPModule
    from torch.profiler import profile

    trainer = shards_of_a_model(ranks)
    trainer.plan.meet_each = meet_each
    with profile() as seen:
        trainer.step()
    met = sum(event.name == "c10d::_reduce_scatter_base_" for event in seen.events())
    return sum(isinstance(module, FSDPModule) for module in trainer.model.modules()), met


@pytest.mark.parametrize(("meet_each", "times"), [(False, 1), (True, 4)])
def test_gradients_are_exchanged_as_often_as_planned(crew, meet_each, times):
    for groups, met in crew.call("tests.test_fsdp:count_exchanges", meet_each):
        assert groups == 5  # two of each block, and the root
        assert met == times * groups


def count_iterations(ranks: Ranks) -> tuple[int, int]:
    """How many matrices Muon has, and how many this rank made orthogonal in a step."""
    from training import optim

    trainer = shards_of_a_model(ranks)
    real, seen = optim.orthogonal, []
    optim.orthogonal = lambda matrices, dtype: seen.append(len(matrices)) or real(matrices, dtype)
    try:
        trainer.step()
    finally:
        optim.orthogonal = real
    return 2 * (4 + 3), sum(seen)  # q, k, v, proj; gate, up, down


def test_muon_iterates_on_each_matrix_once_in_all(crew):
    told = crew.call("tests.test_fsdp:count_iterations")
    assert sum(seen for _, seen in told) == told[0][0]
    assert all(seen for _, seen in told), "one rank did all the work"


def parameters_between_steps(ranks: Ranks) -> list[str]:
    """Which parameters are whole, after a step and after an evaluation."""
    from training.distributed import is_sharded

    trainer = shards_of_a_model(ranks)
    trainer.step()
    found = [name for name, param in trainer.model.named_parameters() if not is_sharded(param)]
    with torch.no_grad():
        trainer.model(*trainer.task.batch(0), reduction="none")
    return found + [name for name, param in trainer.model.named_parameters() if not is_sharded(param)]


def test_between_steps_every_parameter_is_a_shard(crew):
    assert crew.call("tests.test_fsdp:parameters_between_steps") == [[], []]


# ---- going on


def test_a_resumed_run_is_the_straight_run_to_the_last_bit(tmp_path, crew, monkeypatch):
    """With as many ranks; with another number the losses are those of the straight run but for rounding."""
    train(crew, tmp_path, "a", fsdp=True, optimizer="muon")
    assert shards(tmp_path) == ["best_00000020.dcp", "last_00000010.dcp", "last_00000020.dcp"]
    straight, straight_losses = content(tmp_path / "out" / "a" / "last_00000020.dcp"), losses(tmp_path)

    def go_on(how) -> dict:
        for name in ("best_00000020.dcp", "last_00000020.dcp"):
            shutil.rmtree(tmp_path / "out" / "a" / name)
        how()
        assert losses(tmp_path).keys() == straight_losses.keys()
        return content(tmp_path / "out" / "a" / "last_00000020.dcp")

    def with_two():
        assert [each.value for each in crew.run(*resume(tmp_path))] == [0, 0]

    def with_one():
        assert main_here(tmp_path, monkeypatch, *resume(tmp_path)) == 0

    assert equal(without_clock(go_on(with_two)), without_clock(straight))
    assert losses(tmp_path) == straight_losses
    alone = go_on(with_one)
    assert all(abs(loss - straight_losses[step]) < 1e-5 for step, loss in losses(tmp_path).items())
    assert all(torch.allclose(alone["model"][name], weight, atol=1e-5) for name, weight in straight["model"].items())


def test_verify_resume_replays_shards(tmp_path, crew):
    train(crew, tmp_path, "a", fsdp=True, dropout=0.1)
    [first, second] = crew.run(*resume(tmp_path, verify_resume=True))
    assert (first.value, second.value) == (0, 0), first
    assert "steps 10 to 20 replayed" in first.out and "identical to the last bit" in first.out


def test_a_run_that_passes_over_a_damaged_checkpoint_keeps_the_one_it_goes_on_from(tmp_path, monkeypatch):
    how = {**HOW, "fsdp": True, "eval_interval": 5, "max_iters": 10}
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, **how)) == 0
    damage(tmp_path / "out" / "a" / "last_00000010.dcp")
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, max_iters=12, eval_interval=20)) == 0
    assert shards(tmp_path)[1:] == ["last_00000005.dcp", "last_00000012.dcp"]


def test_a_run_in_shards_stays_one(tmp_path, crew):
    train(crew, tmp_path, "a", fsdp=True, max_iters=2)
    for arguments, words in (
        (resume(tmp_path, fsdp=False), "fsdp is False but the run was started with True"),
        (small_run(tmp_path), "holds a run of 2 steps: pass --resume"),
    ):
        told = crew.run(*arguments)
        assert [each.value for each in told] == [2, 2]
        assert words in told[0].err


def verb(capsys, *arguments: str) -> str:
    """What a verb of `train_cli.py` says, with its exit code."""
    import train_cli

    with pytest.raises(SystemExit) as end:
        train_cli.main(list(arguments))
    told = capsys.readouterr()
    return f"{end.value.code} {told.out}{told.err}"


def test_ordinary_files_are_there_at_the_end(tmp_path, crew, capsys):
    """Links above the run, and `consolidate` writes the same again, the numbered ones too."""
    train(crew, tmp_path, "a", fsdp=True, max_iters=3, save_interval=1)
    run = tmp_path / "out" / "a"
    for name in ("best_model.pt", "last.pt"):
        assert os.path.samefile(tmp_path / "out" / name, run / name)
        model, _, provenance = checkpoint.load_model(run / name)
        assert provenance["step"] == 3 and model.wte.weight.shape == (64, 18)
    before = checkpoint.load(run / "last.pt")
    (run / "last.pt").unlink()
    assert f"run python train_cli.py consolidate {run} first" in verb(capsys, "average", str(run))
    told = verb(capsys, "consolidate", str(run))
    assert all(str(run / name) in told for name in ("best_model.pt", "last.pt", "step_00000001.pt", "step_00000002.pt"))
    assert equal(checkpoint.load(run / "last.pt"), before)
    assert verb(capsys, "average", str(run)).startswith("0 averaged steps 1, 2")


def test_a_run_that_was_stopped_says_how_to_use_it(tmp_path, crew, capsys):
    train(crew, tmp_path, "a", fsdp=True, max_iters=2)
    run = tmp_path / "out" / "a"
    for name in ("best_model.pt", "last.pt"):
        (run / name).unlink()
    with pytest.raises(UserError, match=f"python train_cli.py consolidate {run} makes it from the shards there"):
        checkpoint.load_model(run)
    assert "holds no checkpoint in shards" in verb(capsys, "consolidate", str(tmp_path))


def test_a_model_larger_than_the_memory_stays_in_shards(tmp_path, crew, monkeypatch, capsys):
    """One rank, here: the run ends well, and says what to do elsewhere."""
    monkeypatch.setattr("training.calibrate.free_memory", lambda _: 1000)
    assert main_here(tmp_path, monkeypatch, *small_run(tmp_path, **HOW, fsdp=True, max_iters=2)) == 0
    told = capsys.readouterr().out
    assert "not written: best_model.pt, last.pt" in told and "train_cli.py consolidate" in told
    assert shards(tmp_path) == ["best_00000002.dcp", "last_00000000.dcp", "last_00000002.dcp"]
    assert not list((tmp_path / "out" / "a").glob("*.pt"))


# ---- folders that survive


@pytest.fixture
def files(tmp_path):
    """The checkpoints of one rank, in an empty run's folder."""
    from training import distributed
    from training.folders import Folders
    from training.sharding import mesh_of

    ranks = Ranks(0, 1, torch.device("cpu"))
    mesh_of(ranks)
    (tmp_path / "a").mkdir()
    yield Folders(tmp_path / "a", ranks)
    distributed.stop()


def state(files, step: int) -> dict:
    """A content of which everything tells the step."""
    from torch.distributed.tensor import Shard, full

    from training.sharding import mesh_of

    rows = full((5, 3), float(step), device_mesh=mesh_of(files.ranks), placements=[Shard(0)])
    training = {"progress": {"step": step}, "optimizers": [{"state": {0: {"step": torch.tensor(step), "sum": rows + 1}}}]}
    return {"model": {"w": rows}, "provenance": {"step": step}, "training": training}


def found(files) -> dict:
    return files.fill(*files.newest(lambda _: None))


def same(files, content: dict, step: int) -> bool:
    wanted = state(files, step)
    return (
        content["provenance"] == wanted["provenance"]
        and content["training"]["progress"] == wanted["training"]["progress"]
        and bool((content["model"]["w"] == step).full_tensor().all())
        and bool((content["training"]["optimizers"][0]["state"][0]["sum"] == step + 1).full_tensor().all())
    )


def test_what_was_written_is_read(files):
    files.save_last(state(files, 7))
    assert same(files, found(files), 7)


class Killed(BaseException):
    """What a kill would be, if one could go on after it."""


@pytest.mark.parametrize("how", ["save_last", "save_best"])
def test_a_kill_between_any_two_moves_leaves_a_whole_checkpoint(files, monkeypatch, how):
    """Each rename, removal and file of torch's in turn is the one that does not happen, nor anything after it."""
    moments = [(os, "replace"), (shutil, "rmtree"), (checkpoint, "write"), (checkpoint, "sync_folder"), (os, "fsync")]
    newest = (lambda: found(files)["model"]) if how == "save_last" else files.best
    save, step, killed = getattr(files, how), 0, True
    save(state(files, step))
    kills = 0
    while killed:
        killed, left = False, kills
        with monkeypatch.context() as patch:

            def until_killed(real):
                def move(*args, **how):
                    nonlocal left, killed
                    if left == 0 or killed:
                        killed = True
                        raise Killed
                    left -= 1
                    return real(*args, **how)

                return move

            for module, name in moments:
                patch.setattr(module, name, until_killed(getattr(module, name)))
            try:
                save(state(files, step + 1))
            except BaseException as error:
                assert killed, error
        weights = newest()["w"].full_tensor()
        assert weights.eq(step).all() or weights.eq(step + 1).all()
        checkpoint.clean_temporaries(files.folder)  # what the next start does
        weights = newest()["w"].full_tensor()
        assert weights.eq(step).all() or weights.eq(step + 1).all()
        kills, step = kills + 1, step + 1
        save(state(files, step))
        assert newest()["w"].full_tensor().eq(step).all()
    assert kills > 6
    kept = 2 if how == "save_last" else 1
    assert len(list(files.folder.iterdir())) == kept


def test_saving_a_step_again_keeps_one_of_it(files):
    for step in (1, 2, 2):
        files.save_last(state(files, step))
    assert sorted(path.name for path in files.folder.iterdir()) == ["last_00000001.dcp", "last_00000002.dcp"]
    assert same(files, found(files), 2)


def test_what_a_kill_left_set_aside_counts_where_its_step_has_nothing_else(files):
    for step in (1, 2):
        files.save_last(state(files, step))
    os.replace(files.folder / "last_00000002.dcp", files.folder / "last_00000002-1a2b3c4d.dcp")
    files.save_last(state(files, 3))
    assert sorted(path.name for path in files.folder.iterdir()) == ["last_00000002-1a2b3c4d.dcp", "last_00000003.dcp"]


def test_what_a_kill_left_set_aside_takes_no_place_of_another_step(files):
    for step in (1, 2):
        files.save_numbered(step, state(files, step), keep=3)
    shutil.copytree(files.folder / "step_00000002.dcp", files.folder / "step_00000002-1a2b3c4d.dcp")
    files.save_numbered(3, state(files, 3), keep=3)
    assert sorted(path.name for path in files.folder.iterdir()) == [f"step_0000000{step}.dcp" for step in (1, 2, 3)]


def test_a_best_of_a_time_that_was_undone_gives_way(files):
    files.save_best(state(files, 300))
    files.save_best(state(files, 280))
    assert [path.name for path in files.folder.iterdir()] == ["best_00000280.dcp"]


def test_numbered_ones_rotate(files):
    for step in (1, 2, 3, 4):
        files.save_numbered(step, state(files, step), keep=2)
    assert sorted(path.name for path in files.folder.iterdir()) == ["step_00000003.dcp", "step_00000004.dcp"]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "content.pt"])
@pytest.mark.parametrize("how", ["one flipped bit", "gone", "cut"])
def test_a_damaged_folder_is_passed_over_by_name(files, name, how):
    for step in (1, 2):
        files.save_last(state(files, step))
    path = files.folder / "last_00000002.dcp" / name
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(held[: len(held) // 2] if how == "cut" else held)
    told = []
    content, at = files.newest(told.append)
    assert same(files, files.fill(content, at), 1)
    assert how == "gone" or "last_00000002.dcp" in told[0]


# ---- what single files and folders promise alike


@pytest.fixture(params=["single files", "folders"])
def either(request, tmp_path) -> Files:
    """The checkpoints of one rank, in an empty run's folder: single files, or folders."""
    if request.param == "folders":
        return request.getfixturevalue("files")
    return Files(tmp_path, Ranks(0, 1, torch.device("cpu")))


def plain(step: int) -> dict:
    """A content that both can hold."""
    training = {"progress": {"step": step}}
    return {"model": {}, "config": {"vocab_size": 5}, "provenance": {"step": step}, "training": training}


def damage(path: Path) -> None:
    path = path / ".metadata" if path.is_dir() else path
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("again", [15, 20, 30], ids=["a step before it", "the same step", "a step after it"])
def test_a_damaged_newest_never_takes_the_place_of_the_whole_one_before(either, again):
    for step in (10, 20):
        either.save_last(plain(step))
    damage(either.newest(print)[1])
    assert either.newest(print)[0]["provenance"]["step"] == 10
    either.save_last(plain(again))
    content, path = either.newest(print)
    assert content["provenance"]["step"] == again
    damage(path)
    assert either.newest(print)[0]["provenance"]["step"] == 10


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        pytest.param([100, 200, 300, 400], [200, 300, 400], id="rising"),
        pytest.param([100, 200, 200, 300], [100, 200, 300], id="the same step twice"),
        pytest.param([500, 600, 700, 800, 900, 600], [600], id="after a rewind beyond all that were kept"),
        pytest.param([600, 700, 800, 700], [600, 700], id="after a rewind"),
        pytest.param([600, 700, 800, 700, 800, 900], [700, 800, 900], id="after a rewind, and on"),
    ],
)
def test_the_newest_numbered_ones_that_were_not_undone_stay(either, steps, left):
    for step in steps:
        either.save_numbered(step, plain(step), keep=3)
    assert sorted(int(path.stem.removeprefix("step_")) for path in either.folder.glob("step_*")) == left


def test_an_index_that_would_run_code_is_refused_and_not_run(files, tmp_path):
    import pickle

    from training.folders import INDEX, CorruptCheckpoint, Reader

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (files.folder / INDEX).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CorruptCheckpoint, match=r"names \w+.mkdir, which describes no tensor"):
        Reader(files.folder).read_metadata()
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_a_sentence_and_leaves_the_last_checkpoint(tmp_path, crew):
    if os.name == "nt" or os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root and mount")
    train(crew, tmp_path, "probe", fsdp=True, max_iters=2)
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "probe" / "last_00000000.dcp").iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 2}", "tmpfs", str(disk)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        told = crew.run(*small_run(tmp_path, **{**HOW, "out_dir": disk}, fsdp=True))
        assert [each.value for each in told] == [2, 2], told
        assert "could not be written (No space left on device): make room" in told[0].err and "--out_dir" in told[0].err
        assert {path.name for path in (disk / "a").iterdir()} == {".lock", "best_00000010.dcp", "last_00000000.dcp"}
        assert content(disk / "a" / "last_00000000.dcp")["provenance"]["step"] == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def kill_at_random(folder: Path, times: int) -> None:
    """Kills two ranks that save all the time, and checks that what they had saved is there."""
    from training import folders

    chance = random.Random(times)
    how = {**HOW, "fsdp": True, "max_iters": 10**6, "eval_interval": 1, "time": ""}
    run = folder / "out" / "a"
    for attempt in range(times):
        both = Crew(folder, folder)
        both.begin({"arguments": resume(folder) if attempt else small_run(folder, **how)})
        before = folders.steps_done(run)
        wait_for(lambda: folders.steps_done(run) > before + 2, timeout=120)  # noqa: B023
        time.sleep(chance.random() / 5)
        both.signal(signal.SIGKILL)
        reached = [int(path.name[5:13]) for path in run.glob("last_*.dcp")]
        both.close()
        newest = folders.resumable(run)[0]
        whole = checkpoint.load(newest / folders.PLAIN)
        assert not folders.damaged(newest, whole["files"])
        assert whole["provenance"]["step"] == max(reached)
        assert content(newest)["training"]["progress"]["step"] == max(reached)


def test_kill_9_in_the_middle_of_saves_loses_nothing_that_was_saved(tmp_path):
    kill_at_random(tmp_path, 1)


@pytest.mark.slow
def test_many_kills_lose_nothing_that_was_saved(tmp_path):
    kill_at_random(tmp_path, 12)


def test_a_signal_saves_shards(tmp_path):
    both = Crew(tmp_path, tmp_path)
    how = {**HOW, "fsdp": True, "max_iters": 10**6, "eval_interval": 5}
    both.begin({"arguments": small_run(tmp_path, **how)})
    wait_for(lambda: list((tmp_path / "out" / "a").glob("last_00000005.dcp")), timeout=120)
    both.signal(signal.SIGTERM)
    told = both.told()
    both.close()
    assert [each.value for each in told] == [143, 143], told
    assert "saved: go on with python train_cli.py --resume --run a" in told[0].out
    newest = sorted((tmp_path / "out" / "a").glob("last_*.dcp"))[-1]
    assert int(newest.name[5:13]) == max(losses(tmp_path)) + 1
