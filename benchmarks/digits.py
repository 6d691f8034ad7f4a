"""Real recordings and photographs of digits: how well a model trained on them for minutes names those it never met.

    python -m benchmarks.digits [--spoken FOLDER] [--signs FOLDER] [--time 3m] [--ears_time 6m] [--only spoken,folds,signs]

FOLDERs are by default those under LLM_TEST_DATA. `spoken` holds out the recordings numbered 5 to 9 of every speaker and digit, `folds`
one speaker after the other, `signs` a block of file numbers (neighbours are one signer's). Each is one call of `train_cli.py` on rows
written for it. What is spoken goes on from a model that has learned to hear from the embedded speech, trained once before; with
`--ears_time ""` from nothing. The last weights are judged, by generation: an answer counts when it is the word. (The best are chosen by
the rows that are held out here.) Beside it stand floors on the same split: the nearest neighbour and ridge regression, on 40 log-mels
or on pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import child, finish, need_path, table, trained
from config import MediaModelConfig
from multimodal.decode import read_picture, read_sound
from multimodal.spectrogram import log_mel

WORDS = "zero one two three four five six seven eight nine".split()
TASKS = ("spoken", "signs", "folds")
SHAPE = {"architecture": "modern", "modalities": "image,audio", "n_head": 4, "n_embd": 128}
FRAMES = 40  # that a spectrogram is stretched to, for the floors
HELD_OUT_SIGNS = 0.2  # of the file numbers, the last ones
Example = tuple[Path, str]  # a file and the word that it shows or says


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("LLM_TEST_DATA", "")
    parser.add_argument("--spoken", default=f"{data}/spoken-digits" if data else "", help="{digit}_{speaker}_{number}.wav")
    parser.add_argument("--signs", default=f"{data}/sign-digits" if data else "", help="{digit}/IMG_{number}.JPG")
    parser.add_argument("--time", default="3m", help="of each run, and of each of the folds")
    parser.add_argument("--ears_time", default="6m", help="of the run that learns to hear first; empty: there is none")
    parser.add_argument("--only", default=",".join(TASKS), help="some of " + ", ".join(TASKS))
    parser.add_argument("--judge", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.judge:
        print(json.dumps(judged(args.judge)))
        return
    only = [name.strip() for name in args.only.split(",")]
    if strange := set(only) - set(TASKS):
        parser.error(f"--only names {strange.pop()!r}: there are {', '.join(TASKS)}.")
    tasks: dict[str, list[tuple[str, list[Example], list[Example]]]] = {}
    if "spoken" in only or "folds" in only:
        recordings = spoken(need_path(args.spoken, "--spoken", "the spoken digits"))
        tasks["spoken"] = [("audio", *parted(recordings, lambda file: 5 <= int(file.stem.split("_")[2]) <= 9))]
        speakers = sorted({file.stem.split("_")[1] for file, _ in recordings})
        tasks["folds"] = [("audio", *parted(recordings, lambda file, who=who: file.stem.split("_")[1] == who)) for who in speakers]
    if "signs" in only:
        photographs = signs(need_path(args.signs, "--signs", "the sign digits"))
        tasks["signs"] = [("image", *parted(photographs, last_block(photographs)))]
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        ears = hearing(Path(scratch), args.ears_time) if args.ears_time and "folds" in tasks else {}
        for name in only:
            runs = [one(*task, args.time, ears if task[0] == "audio" else {}) for task in tasks[name]]
            found[name] = runs
            means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
            shares = [f"{100 * means[key]:.1f} %" for key in ("exact", "blank", "shuffled", "nearest", "ridge")]
            times = [f"{means[key]:.0f}" for key in ("ears_seconds", "seconds") if means[key]]
            rows.append([name, *shares, f"{means['train']:.0f} / {means['test']:.0f}", " + ".join(times) + " s"])
    table(["real digits", "exact", "blank", "shuffled", "nearest neighbour", "ridge", "rows", "time"], rows)
    finish("digits", **found)


def spoken(folder: Path) -> list[Example]:
    return [(file, WORDS[int(file.name[0])]) for file in sorted(folder.glob("*.wav"))]


def signs(folder: Path) -> list[Example]:
    return [(file, WORDS[int(file.parent.name)]) for file in sorted(folder.glob("*/*.JPG"), key=number)]


def number(file: Path) -> int:
    return int(re.sub(r"\D", "", file.stem))


def last_block(examples: list[Example]) -> Callable[[Path], bool]:
    numbers = sorted(number(file) for file, _ in examples)
    first = numbers[round((1 - HELD_OUT_SIGNS) * len(numbers))]
    return lambda file: number(file) >= first


def parted(examples: list[Example], held_out: Callable[[Path], bool]) -> tuple[list[Example], list[Example]]:
    return [each for each in examples if not held_out(each[0])], [each for each in examples if held_out(each[0])]


def hearing(folder: Path, time: str) -> dict[str, Any]:
    """A model that has heard the embedded speech and nothing else: its file, and the seconds that it took."""
    flags = ["--preset", "multimodal", "--modalities", "audio", "--data", "speech", "--time", time]
    ran = trained(folder, "ears", flags, LLM_DATA_DIR=str(folder / "cache"))  # nothing made before
    return {"file": folder / "c/ears/best_model.pt", "seconds": ran["seconds"]}


def one(kind: str, train: list[Example], test: list[Example], time: str, start: dict[str, Any]) -> dict[str, float]:
    """A run on some examples, from a model to start from or from nothing, and the floors."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        for split, examples in (("train", train), ("valid", test)):
            lines = [json.dumps({kind: str(file.resolve()), "text": word}) for file, word in examples]
            (folder / f"data/{split}.jsonl").write_text("\n".join(lines))
        flags = ["--preset", "multimodal", "--modalities", kind, "--data", str(folder / "data"), "--time", time]
        flags += ["--init_from", str(start["file"])] if start else []
        data = {"LLM_DATA_DIR": str(folder / "cache")}
        ran = trained(folder, "bench", flags, **data)
        answer = child(["-m", "benchmarks.digits", "--judge", str(folder / "c/bench/last.pt")], **data)["json"]
    return {
        **{name: answer[name] for name in ("exact", "blank", "shuffled")}, **floors(kind, train, test),
        "train": len(train), "test": len(test), "seconds": ran["seconds"], "ears_seconds": start.get("seconds", 0),
    }  # fmt: skip


def judged(path: str) -> dict[str, float]:
    """How well the weights of a file answer the rows that its run did not train on."""
    import checkpoint
    from config import TrainConfig, take
    from multimodal import judge, run

    model, tokenizer, provenance = checkpoint.load_model(path)
    config = take(TrainConfig, provenance["train_config"])
    corpus = run.find_corpus(config, model.config, 0, tokenizer, print, False)
    [verdict], _ = run.judged(corpus, model, tokenizer)
    return judge.figures(verdict)


def floors(kind: str, train: list[Example], test: list[Example]) -> dict[str, float]:
    """The shares that the nearest neighbour and ridge regression get right."""
    shape = MediaModelConfig(**SHAPE)
    x, y = ([features(kind, file, shape) for file, _ in examples] for examples in (train, test))
    x, y = torch.stack(x), torch.stack(y)  # (n, features) each
    mean, std = x.mean(0), x.std(0) + 1e-3
    x, y = (x - mean) / std, (y - mean) / std
    labels, truth = (torch.tensor([WORDS.index(word) for _, word in examples]) for examples in (train, test))
    nearest = labels[torch.cdist(y, x).argmin(1)]
    wanted = torch.nn.functional.one_hot(labels, 10).float()
    gram = x @ x.T  # (n, n): fewer rows than features
    ridge = (y @ x.T @ torch.linalg.solve(gram + 0.1 * gram.trace() / len(x) * torch.eye(len(x)), wanted)).argmax(1)
    return {"nearest": float((nearest == truth).float().mean()), "ridge": float((ridge == truth).float().mean())}


def features(kind: str, file: Path, shape: MediaModelConfig) -> torch.Tensor:
    """(n,) numbers of a file: its pixels, or its spectrogram stretched to one length."""
    if kind == "image":
        return torch.from_numpy(read_picture(file.read_bytes(), shape).pixels.copy()).float().flatten()
    mel = log_mel(torch.from_numpy(read_sound(file.read_bytes(), shape).wave), shape.audio_rate)
    return torch.nn.functional.interpolate(mel.T[None], FRAMES, mode="linear").flatten()


if __name__ == "__main__":
    main()
