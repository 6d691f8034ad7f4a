"""nanoGPT as the benchmarks run it: its own scripts with its own flags, in a copy of a checkout that the caller names."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.common import child


def copied(checkout: Path, scratch: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(checkout, scratch / "nanoGPT", ignore=shutil.ignore_patterns(".git")))


def train(copy: Path, config: str = "", **flags: Any) -> dict[str, Any]:
    """Runs its `train.py`, after one of its files in `config/` if one is named: what `child` tells of it."""
    files = [f"config/{config}.py"] if config else []
    return child(["train.py", *files, *(f"--{name}={value}" for name, value in flags.items())], cwd=copy)


def write_tokens(copy: Path, name: str, **splits: list[int]) -> None:
    """A dataset in its own form: one file of 16-bit ids for each split."""
    folder = copy / "data" / name
    folder.mkdir()
    for split, ids in splits.items():
        np.array(ids, dtype=np.uint16).tofile(folder / f"{split}.bin")


def milliseconds(text: str) -> list[float]:
    """Of each iteration that a run printed."""
    return [float(each) for each in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", text)]


def module(checkout: str | Path) -> ModuleType:
    """Its `model.py`, beside ours of the same name."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", f"{checkout}/model.py")
    peer = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = peer
    spec.loader.exec_module(peer)
    return peer


def nats(copy: Path, out_dir: Path, name: str) -> float:
    """The sum of what a checkpoint loses over a dataset's validation ids, each scored once, in windows of its own block."""
    import torch

    peer, saved = module(copy), torch.load(out_dir / "ckpt.pt", map_location="cpu", weights_only=False)
    model = peer.GPT(peer.GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in saved["model"].items()})
    ids = torch.from_numpy(np.fromfile(copy / "data" / name / "val.bin", dtype=np.uint16).astype(np.int64))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, model.config.block_size):
            row = ids[start : start + model.config.block_size + 1][None]
            _, loss = model(row[:, :-1], row[:, 1:].contiguous())
            total += float(loss) * (row.size(1) - 1)
    return total
