"""Two processes train what one process trains: torchrun and gloo on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as multiprocessing

import checkpoint
from config import ROOT, UserError
from tests.crew import Crew
from tests.runs import (
    SMALL,
    environment,
    equal,
    events,
    finish,
    flags,
    losses,
    main_here,
    resume,
    small_run,
    wait_for,
    write_text,
)
from training.distributed import Ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
TOGETHER = {"batch_size": 8, "micro_batch_size": 2, "max_iters": 50, "eval_interval": 25, "dtype": "float32"}


def torchrun(folder, *arguments: str, ranks: int = 2) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [sys.executable, *launch, "--", str(ROOT / "train_cli.py"), *arguments]  # else torchrun asks which --run
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = environment(folder, TORCHELASTIC_ERROR_FILE="")
    return subprocess.Popen(command, env=env, cwd=folder, start_new_session=True, **pipes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same run by two processes, as `two`, and by one, as `one`."""
    folder = tmp_path_factory.mktemp("pair")
    done = finish(torchrun(folder, *small_run(folder, "two", **TOGETHER)))
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        assert main_here(folder, patch, *small_run(folder, "one", **TOGETHER)) == 0
    return folder, done


def test_two_ranks_have_the_losses_of_one(pair):
    folder, _ = pair
    one, two = losses(folder, "one"), losses(folder, "two")
    assert sorted(one) == sorted(two) == list(range(50))
    assert all(abs(one[step] - two[step]) < 1e-5 for step in one)


def test_two_ranks_have_the_score_of_one(pair):
    folder, _ = pair
    scores = [{event["step"]: event["loss"] for event in events(folder, "evaluation", run)} for run in ("one", "two")]
    assert scores[0].keys() == scores[1].keys() == {25, 50}
    assert scores[0][50] == pytest.approx(scores[1][50], abs=1e-5)


def test_only_the_first_rank_speaks_and_writes(pair):
    folder, done = pair
    assert done.stdout.count("validation:") == 1
    assert [event["step"] for event in events(folder, "step", "two")] == list(range(50))


def test_a_run_of_two_ranks_goes_on_with_one(pair, monkeypatch):
    folder, _ = pair
    assert main_here(folder, monkeypatch, *resume(folder, "two", max_iters=55)) == 0
    assert main_here(folder, monkeypatch, *resume(folder, "one", max_iters=55)) == 0
    one, two = losses(folder, "one"), losses(folder, "two")
    assert sorted(two) == list(range(55))
    assert all(abs(one[step] - two[step]) < 1e-4 for step in range(50, 55))


def test_two_ranks_keep_a_budget_of_time(tmp_path, hosts):
    """They stop at the same step, although each has a clock of its own."""
    told = hosts.run(*small_run(tmp_path, **TOGETHER | {"time": "8s"}))
    assert [each.value for each in told] == [0, 0], told
    [end] = events(tmp_path, "end")
    assert end["seconds"] < 8 and end["stop_reason"] == "done"
    assert events(tmp_path, "step")[-1]["progress"] > 0.9


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("how", ["SIGTERM to torchrun", pytest.param("Ctrl-C in the terminal", marks=pytest.mark.slow)])
def test_a_signal_saves(tmp_path, how):
    process = torchrun(tmp_path, *small_run(tmp_path, **TOGETHER | {"max_iters": 10**6, "eval_interval": 20}))
    log = tmp_path / "logs" / "a" / "events.jsonl"
    wait_for(lambda: log.exists() and '"event": "evaluation"' in log.read_text(), process)
    before = checkpoint.load_newest(tmp_path / "out" / "a")[0]["provenance"]["step"]
    if how == "SIGTERM to torchrun":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)
    done = finish(process)
    step = checkpoint.load(tmp_path / "out" / "a" / "last.pt")["provenance"]["step"]
    assert step >= before
    assert max(losses(tmp_path)) == step - 1, "the last step was not saved"
    assert "stopped by SIG" in done.stdout


def test_a_batch_that_the_ranks_cannot_share_is_refused(tmp_path):
    how = TOGETHER | {"batch_size": 9, "micro_batch_size": 0}
    done = finish(torchrun(tmp_path, *small_run(tmp_path, **how)))
    assert done.returncode != 0
    assert "batch_size 9 cannot be shared by 2 ranks: pass --batch_size 10" in done.stderr


def count_meetings(rank: int, port: int, folder: str) -> None:
    """A rank's work: one step of four micro-steps, counting how often gradients are exchanged."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from tests.runs import LineTask, line_trainer
    from training import calibrate

    torch.set_num_threads(1)
    calibrate.matrix_rate = lambda *_: 1e11
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = line_trainer(__import__("pathlib").Path(folder) / str(rank), LineTask(8), micro=2)
    trainer.ranks = Ranks(rank, 2, torch.device("cpu"))
    trainer.wrapped = DistributedDataParallel(trainer.model)
    met = []

    def hook(_state, bucket):
        met.append(bucket.index())
        gradient = bucket.buffer().clone()
        work = dist.all_reduce(gradient, async_op=True).get_future()
        return work.then(lambda _: gradient / 2)

    trainer.wrapped.register_comm_hook(None, hook)
    trainer.step()
    assert len(met) == 1, f"{len(met)} exchanges in a step of 4 micro-steps"
    dist.destroy_process_group()


def test_gradients_meet_on_the_last_micro_step_only(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(count_meetings, (port, str(tmp_path)), nprocs=2)


def test_one_rank_needs_no_others():
    ranks = Ranks(0, 1, torch.device("cpu"))
    assert ranks.sum(1.0, 2.0) == [1.0, 2.0]
    assert ranks.gather("x") == ["x"]
    assert ranks.first
    ranks.barrier()


# ---- hosts with disks of their own


TREE = {"a": [torch.arange(3), "text", None], "b": (torch.ones(2, 2, dtype=torch.bfloat16), {1: torch.tensor(True)})}


def share_a_tree(ranks: Ranks) -> bool:
    """Whether a rank gets what only the first can read."""

    def read() -> dict:
        assert ranks.first
        return TREE

    return equal(ranks.broadcast(read), TREE)


def share_an_error(ranks: Ranks) -> str:
    def read() -> None:
        raise UserError("there is no such file")

    try:
        ranks.broadcast(read)
    except UserError as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two ranks that stand in folders of their own, so that a relative path is another place to each."""
    crew = Crew(tmp_path_factory.mktemp("host"), tmp_path_factory.mktemp("host"))
    yield crew
    crew.close()


def on_hosts(hosts: Crew, run: str, **changes) -> list:
    """A small run whose paths are relative to each host's folder."""
    for folder in hosts.folders:
        write_text(folder / "text.txt")
    places = {"data": "text.txt", "out_dir": "out", "log_dir": "logs", "run": run}
    short = {"max_iters": 10, "eval_interval": 5, "sample_tokens": 0, "ema": 0.9}
    return hosts.run(*flags(**{**places, **SMALL, **TOGETHER, **short, **changes}))


def test_what_the_first_rank_reads_all_have(hosts):
    assert hosts.call("tests.test_distributed:share_a_tree") == [True, True]


def test_an_error_of_the_first_rank_is_one_of_all(hosts):
    assert hosts.call("tests.test_distributed:share_an_error") == ["there is no such file"] * 2


def test_only_the_first_host_needs_the_checkpoints(hosts, monkeypatch):
    """A run, one from its weights, and one that goes on: the losses and scores of one process."""
    here, there = hosts.folders
    goes_on = flags(out_dir="out", log_dir="logs", run="b", resume=True, progress=False, max_iters=15)
    for told in (on_hosts(hosts, "a"), on_hosts(hosts, "b", init_from="out/a/best_model.pt"), hosts.run(*goes_on)):
        assert [each.value for each in told] == [0, 0], told
    assert not (there / "out").exists()
    start = here / "out" / "a" / "best_model.pt"
    how = {**TOGETHER, "max_iters": 10, "eval_interval": 5, "sample_tokens": 0, "ema": 0.9}
    assert main_here(here, monkeypatch, *small_run(here, "one", **how, init_from=start)) == 0
    assert main_here(here, monkeypatch, *resume(here, "one", max_iters=15)) == 0
    one, two = losses(here, "one"), losses(here, "b")
    assert sorted(one) == sorted(two) == list(range(15))
    assert all(abs(one[step] - two[step]) < 1e-5 for step in one)
    for a, b in zip(events(here, "evaluation", "one"), events(here, "evaluation", "b"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_shards_need_a_folder_that_all_hosts_share(hosts):
    told = on_hosts(hosts, "c", fsdp=True)
    assert [each.value for each in told] == [2, 2]
    assert all("do not see the same out/c: with --fsdp every host writes its shards" in each.err for each in told)
    assert all("--out_dir that all of them share" in each.err for each in told)


def test_hosts_with_different_texts_are_refused(hosts):
    write_text(hosts.folders[1] / "other.txt", seed=2)
    shutil.copy(hosts.folders[0] / "text.txt", hosts.folders[0] / "other.txt")
    told = on_hosts(hosts, "d", data="other.txt")
    assert [each.value for each in told] == [2, 2]
    words = "the text is another on rank 1 than on rank 0: give every host the same files under --data"
    assert all(words in each.err for each in told)
