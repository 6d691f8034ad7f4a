"""What must never happen, tried for real: kills while saving, a resume that differs, ranks that disagree.

python -m benchmarks.safety [--kills 50]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import child, finish, table

TEXT = " ".join(f"the {word} sat on the {place}" for word in ("cat", "dog", "owl") for place in ("mat", "log", "roof"))
FLAGS = """--tokenizer char --n_layer 2 --n_head 2 --n_embd 64 --block_size 32 --batch_size 8 --micro_batch_size 2 --dropout 0.1
--max_iters 50 --eval_interval 20 --dtype float32 --compile off --sample_tokens 0 --no-progress""".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        survived = kill_saves(folder / "kills", args.kills)
        resume = verify_resume(folder)
        apart = compare_ranks(folder)
    rows = [
        ["kill -9 at random moments of saving", f"{survived} of {args.kills} survived"],
        ["resume against a straight run", resume],
        ["2 processes against 1, 50 steps, fp32", f"largest difference of a loss {apart:.1e}"],
    ]
    table(["fault", "result"], rows)
    finish("safety", kills=args.kills, survived=survived, resume=resume, largest_difference_of_ranks=apart)


def kill_saves(folder: Path, kills: int) -> int:
    """Kills a saving process again and again at random moments (seeded).

    Returns:
        how often the newest checkpoint loaded, no finished save was lost, and no temporary was left after cleaning.
    """
    import torch

    import checkpoint

    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    chance, first, survived = random.Random(0), 1, 0
    for _ in range(kills):
        said = folder / "said"
        said.unlink(missing_ok=True)
        saver = os.fork()
        if not saver:
            try:
                save_forever(folder, first)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 30
        while not said.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.03)
        os.kill(saver, signal.SIGKILL)
        _, status = os.waitpid(saver, 0)
        finished = int(said.read_text() or first)
        warned: list[str] = []
        found = checkpoint.load_newest(folder, warned.append)[0]["provenance"]["step"]
        checkpoint.clean_temporaries(folder)
        whole = os.WIFSIGNALED(status) and found >= finished and not warned
        survived += whole and not list(folder.glob("*.tmp"))
        first = found + 1
    return survived


def save_forever(folder: Path, first: int) -> None:
    """Saves one step after another until it is killed, and says which are done."""
    import checkpoint
    from config import ModelConfig
    from model import GPT
    from tokenizer import CharTokenizer

    model = GPT(ModelConfig(vocab_size=6, n_layer=1, n_head=2, n_embd=16, block_size=8))
    held = checkpoint.content_of(model, CharTokenizer("abcde"), {"step": 0}, training={"progress": {}})
    for step in range(first, 10**9):
        held["provenance"]["step"] = step
        checkpoint.save_last(folder, held)
        (folder / "said").write_text(str(step))


def run(folder: Path, name: str, *flags: str, launch: tuple[str, ...] = ()) -> dict:
    """A small run of the command line, with files of its own."""
    places = ["--out_dir", str(folder / "out"), "--log_dir", str(folder / "logs"), "--run", name]
    return child([*launch, "train_cli.py", *flags, *places], LLM_DATA_DIR=str(folder / "data"), OMP_NUM_THREADS="1")


def data(folder: Path) -> list[str]:
    text = folder / "text.txt"
    text.write_text("\n".join([TEXT] * 100))
    return ["--data", str(text)]


def verify_resume(folder: Path) -> str:
    """A run with dropout, Muon and accumulation; then its last interval again, from the checkpoint before."""
    run(folder, "straight", *FLAGS, "--optimizer", "muon", *data(folder))
    return run(folder, "straight", "--verify_resume")["text"].strip().splitlines()[-1]


def compare_ranks(folder: Path) -> float:
    """The same run in one process and in two: the largest difference of a step's loss."""
    flags = [*FLAGS, "--dropout", "0", *data(folder)]
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--")
    run(folder, "one", *flags)
    run(folder, "two", *flags, launch=launch)
    one, two = (losses(folder / "logs" / name) for name in ("one", "two"))
    if sorted(one) != sorted(two):
        sys.exit("the two runs did not do the same steps")
    return max(abs(one[step] - two[step]) for step in one)


def losses(logs: Path) -> dict[int, float]:
    events = map(json.loads, (logs / "events.jsonl").read_text().splitlines())
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


if __name__ == "__main__":
    main()
