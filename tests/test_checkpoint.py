"""A checkpoint is whole or refused: flipped bits, cut files, strangers' files, full disks, kills."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

import checkpoint
import tokenizer as tokenizers
from benchmarks.safety import kill_saves
from checkpoint import CorruptCheckpoint, OtherVersion
from config import ModelConfig, UserError
from model import GPT
from tests.runs import equal
from tokenizer import CharTokenizer

CONFIG = ModelConfig(vocab_size=6, n_layer=1, n_head=2, n_embd=16, block_size=8)
TOKENIZER = CharTokenizer("abcde")


def content(step: int = 7, seed: int = 0, **provenance) -> dict:
    """A small run's checkpoint, with a training state."""
    torch.manual_seed(seed)
    training = {"progress": {"step": step}, "moments": [torch.randn(5)], "random": torch.get_rng_state()}
    told = {"run": "r", "step": step, "val_loss": 1.5, "documents": False, **provenance}
    return checkpoint.content_of(GPT(CONFIG), TOKENIZER, told, training=training)


@pytest.fixture
def file(tmp_path) -> Path:
    checkpoint.write(tmp_path / "last.pt", content())
    return tmp_path / "last.pt"


# ---- one file


def test_what_was_written_is_read(file):
    again = checkpoint.load(file)
    assert again.pop("format") == checkpoint.FORMAT
    assert equal(again, content())


def test_a_file_rebuilds_its_own_model(file):
    model, tokenizer, provenance = checkpoint.load_model(file)
    assert equal(dict(model.state_dict()), dict(content()["model"]))
    assert not model.training
    assert tokenizer.decode(tokenizer.encode("abc").tolist()) == "abc"
    assert provenance["step"] == 7


def test_it_is_still_a_zip_archive_that_torch_reads(file):
    assert zipfile.ZipFile(file).testzip() is None
    assert torch.load(file, weights_only=True)["provenance"]["step"] == 7


def test_one_flipped_bit_anywhere_is_refused(file):
    whole = file.read_bytes()
    chance = random.Random(0)
    spots = {0, 1, 30, len(whole) - 1, len(whole) - 60, len(whole) - checkpoint.COMMENT, len(whole) - 80}
    tensor = whole.find(content()["model"]["wte.weight"].numpy().tobytes()[:16])
    assert tensor > 0
    spots |= {tensor, whole.find(b"provenance"), *(chance.randrange(len(whole)) for _ in range(200))}
    for spot in spots:
        broken = bytearray(whole)
        broken[spot] ^= 1 << chance.randrange(8)
        file.write_bytes(broken)
        with pytest.raises(CorruptCheckpoint, match=r"last\.pt"):
            checkpoint.load(file)


@pytest.mark.parametrize("tenths", range(10))
def test_a_truncated_or_empty_file_is_refused(file, tenths):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * tenths // 10])
    with pytest.raises(CorruptCheckpoint, match=r"last\.pt"):
        checkpoint.load(file)


def test_bytes_appended_are_refused(file):
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(CorruptCheckpoint):
        checkpoint.load(file)


def test_another_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    for _ in range(2):
        with pytest.raises(CorruptCheckpoint, match=r"x\.pt"):
            checkpoint.load(tmp_path / "x.pt")
        with contextlib.suppress(OSError):
            checkpoint.seal(tmp_path / "x.pt")  # and again with a checksum that fits


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["plain pickle", "torch", "torch and sealed"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, form):
    path = tmp_path / "evil.pt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    else:
        torch.save({"format": checkpoint.FORMAT, "model": Evil(tmp_path / "ran")}, path)
    if form == "torch and sealed":
        checkpoint.seal(path)
        checkpoint.verify(path)
    with pytest.raises(CorruptCheckpoint, match=r"evil\.pt"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("other", [{"format": None}, {"weights": torch.ones(2)}, [1, 2]])
def test_a_sealed_file_without_a_format_is_refused(tmp_path, other):
    torch.save(other, tmp_path / "x.pt")
    checkpoint.seal(tmp_path / "x.pt")
    with pytest.raises(CorruptCheckpoint, match=r"x\.pt names no checkpoint format"):
        checkpoint.load(tmp_path / "x.pt")


# ---- other versions


def rewritten(path: Path, held: dict) -> Path:
    """A file of another version: this content, its format included, sealed as `write` does."""
    torch.save(held, path)
    checkpoint.seal(path)
    return path


def test_another_format_is_refused_by_its_number(tmp_path):
    path = rewritten(tmp_path / "x.pt", {**content(), "format": 99})
    with pytest.raises(OtherVersion, match=r"x\.pt has checkpoint format 99; this version reads 1"):
        checkpoint.load(path)


def test_a_file_from_before_a_setting_was_known_is_read_with_its_default(tmp_path):
    """`embedding_std` came on 24 November 2026, a tokenizer's `words` the day before; both are additions."""
    held = content()
    del held["config"]["embedding_std"]
    trained = tokenizers.train_bpe(["a small model read a book, and then another book"], 280)
    held["tokenizer"] = trained.to_dict()
    del held["tokenizer"]["words"]
    path = rewritten(tmp_path / "old.pt", {"format": 1, **held})
    model, tokenizer, _ = checkpoint.load_model(path)
    assert model.config.embedding_std == ModelConfig.embedding_std
    assert equal(dict(model.state_dict()), dict(content()["model"]))
    assert tokenizer.to_dict() == trained.to_dict()


@pytest.mark.parametrize("change", [{"sinks": 4}, {"kind": "mamba"}], ids=["setting", "kind"])
def test_a_model_that_says_more_than_is_known_here_is_refused_by_name(tmp_path, change):
    held = content()
    held["config"] |= change
    path = rewritten(tmp_path / "new.pt", {"format": 1, **held})
    with pytest.raises(UserError, match=r"(sinks|mamba).* use the one that wrote it"):
        checkpoint.load_model(path)


def test_a_newer_file_is_not_passed_over_for_an_older_one(tmp_path):
    """Going on from the one before would throw away what the newer version trained."""
    for step in (1, 2):
        checkpoint.save_last(tmp_path, content(step))
    rewritten(tmp_path / "last.pt", {**content(3), "format": 2})
    with pytest.raises(OtherVersion, match="format 2"):
        checkpoint.load_newest(tmp_path)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*python train_cli\.py"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.load_model(tmp_path)


# ---- writing fails


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writer failed")])
def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(file, monkeypatch, error):
    before = file.read_bytes()

    def half(content, handle):
        handle.write(b"PK half of an archive")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"last\.pt could not be written .*is intact"):
        checkpoint.write(file, content(8))
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["last.pt"]


def test_a_path_below_a_file_is_refused(file):
    with pytest.raises(UserError, match="could not be written"):
        checkpoint.write(file / "below" / "last.pt", content())


@contextlib.contextmanager
def small_disk(path: Path, size: int):
    """A tmpfs of so many bytes; skips, saying so, where it cannot be mounted."""
    path.mkdir()
    if os.name == "nt" or os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root and mount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_is_really_full(tmp_path):
    large = content() | {"padding": torch.zeros(2**18)}
    checkpoint.write(tmp_path / "probe.pt", large)
    room = (tmp_path / "probe.pt").stat().st_size * 3 // 2
    with small_disk(tmp_path / "disk", room) as disk:
        checkpoint.save_last(disk, large)
        before = (disk / "last.pt").read_bytes()
        with pytest.raises(UserError, match=r"No space left on device.*make room or choose another --out_dir"):
            checkpoint.save_last(disk, {**large, "padding": torch.ones(2**18)})
        assert os.listdir(disk) == ["last.pt"]
        assert (disk / "last.pt").read_bytes() == before
        checkpoint.load(disk / "last.pt")


# ---- the files of a run


def test_the_one_before_is_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save_last(tmp_path, content(step))
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]
    steps = [checkpoint.load(tmp_path / name)["provenance"]["step"] for name in ("last.pt", "previous.pt")]
    assert steps == [3, 2]


def test_a_damaged_last_falls_back_with_a_warning(tmp_path):
    for step in (1, 2):
        checkpoint.save_last(tmp_path, content(step))
    (tmp_path / "last.pt").write_bytes(b"damaged")
    told = []
    again, path = checkpoint.load_newest(tmp_path, told.append)
    assert (again["provenance"]["step"], path.name) == (1, "previous.pt")
    assert len(told) == 1 and "last.pt is damaged" in told[0] and "before" in told[0]


def test_with_both_damaged_a_numbered_one_serves(tmp_path):
    for step in (1, 2):
        checkpoint.save_numbered(tmp_path, step, content(step), keep=3)
        checkpoint.save_last(tmp_path, content(step))
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"")
    assert checkpoint.load_newest(tmp_path, lambda _: None)[1].name == "step_00000002.pt"


def test_nothing_left_to_resume_is_a_sentence(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        checkpoint.load_newest(tmp_path, lambda _: None)


def test_a_save_killed_between_its_renames_counts(tmp_path):
    checkpoint.save_last(tmp_path, content(1))
    checkpoint.write(tmp_path / "last.pt.new", content(2))
    assert checkpoint.load_newest(tmp_path)[0]["provenance"]["step"] == 2
    os.replace(tmp_path / "last.pt", tmp_path / "previous.pt")
    assert checkpoint.load_newest(tmp_path)[0]["provenance"]["step"] == 2


def test_a_damaged_last_never_pushes_out_the_good_one_before(tmp_path):
    for step in (1, 2):
        checkpoint.save_last(tmp_path, content(step))
    (tmp_path / "last.pt").write_bytes(b"damaged")
    checkpoint.save_last(tmp_path, content(3))
    (tmp_path / "last.pt").write_bytes(b"damaged too")
    assert checkpoint.load_newest(tmp_path, lambda _: None)[0]["provenance"]["step"] == 1


def test_numbered_ones_rotate(tmp_path):
    for step in (5, 10, 15, 100):
        checkpoint.save_numbered(tmp_path, step, content(step), keep=2)
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step_00000015.pt", "step_00000100.pt"]


def test_numbered_ones_of_a_time_that_was_undone_give_way(tmp_path):
    for step in (5, 10, 15, 100, 15):
        checkpoint.save_numbered(tmp_path, step, content(step, seed=step), keep=3)
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["step_00000010.pt", "step_00000015.pt"]


def test_an_old_one_goes_only_when_the_new_one_verifies(tmp_path, monkeypatch):
    checkpoint.save_numbered(tmp_path, 1, content(1), keep=1)
    seal = checkpoint.seal

    def sealed_then_damaged(path):
        seal(path)
        path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(checkpoint, "seal", sealed_then_damaged)
    with pytest.raises(CorruptCheckpoint):
        checkpoint.save_numbered(tmp_path, 2, content(2), keep=1)
    assert checkpoint.load(tmp_path / "step_00000001.pt")["provenance"]["step"] == 1


def test_the_average_is_the_mean(tmp_path):
    paths = []
    for step in (1, 2, 3):
        paths.append(tmp_path / f"{step}.pt")
        checkpoint.write(paths[-1], content(step, seed=step))
    mean = checkpoint.average(paths)
    for name, weight in mean["model"].items():
        want = sum(checkpoint.load(path)["model"][name].double() for path in paths) / 3
        torch.testing.assert_close(weight.double(), want, atol=1e-7, rtol=1e-6)
        assert weight.dtype == torch.float32
    assert mean["provenance"]["averaged"] == [1, 2, 3]
    assert "training" not in mean


def test_the_average_of_different_models_is_refused(tmp_path):
    checkpoint.write(tmp_path / "1.pt", content(1))
    other = content(2)
    other["config"]["n_layer"] = 9
    checkpoint.write(tmp_path / "2.pt", other)
    with pytest.raises(UserError, match=r"1\.pt is another model"):
        checkpoint.average([tmp_path / "1.pt", tmp_path / "2.pt"])


def test_published_links_are_relative_and_point_at_the_newest_run(tmp_path):
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        checkpoint.write(tmp_path / run / "best_model.pt", content(run=run))
        checkpoint.save_last(tmp_path / run, content(run=run))
        checkpoint.publish(tmp_path / run)
    assert os.readlink(tmp_path / "best_model.pt") == os.path.join("two", "best_model.pt")
    shutil.move(tmp_path, tmp_path.with_name("moved"))
    assert checkpoint.load(tmp_path.with_name("moved") / "last.pt")["provenance"]["run"] == "two"
    assert (tmp_path.with_name("moved") / "one" / "best_model.pt").exists()


def test_published_files_are_copies_where_links_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (tmp_path / "one").mkdir()
    checkpoint.save_last(tmp_path / "one", content())
    checkpoint.publish(tmp_path / "one")
    assert not (tmp_path / "last.pt").is_symlink()
    assert checkpoint.load(tmp_path / "last.pt")["provenance"]["step"] == 7
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "one"]


def test_temporaries_of_a_killed_save_are_cleaned(tmp_path):
    checkpoint.save_last(tmp_path, content())
    (tmp_path / "last.pt.new.123.tmp").write_bytes(b"half")
    checkpoint.clean_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["last.pt"]


# ---- kill -9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_fifty_kills_at_random_moments_lose_nothing_that_was_saved(tmp_path):
    assert kill_saves(tmp_path, 50) == 50
