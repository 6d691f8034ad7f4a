"""How the cost of a training step grows: time per token against width, depth, block and batch, from 1 M to 1 B parameters, and ranks.

    python -m benchmarks.growth [--largest 1.1e9] [--runs 3] [--plot growth.png]

One dial is turned at a time, the others stay; each point is a process of its own. Beside the time stands the arithmetic it did
(`model.flops_per_token`) as a share of this machine's matrix rate: where that share falls, something grows faster than the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import child, finish, median, table, trained

BASE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 8}
VOCABULARY = 4096
DIALS = {
    "width": [{"n_embd": 64 * heads, "n_head": heads} for heads in (2, 4, 8, 16)],
    "depth": [{"n_layer": layers} for layers in (2, 4, 8, 16)],
    "block": [{"block_size": block, "batch_size": 4096 // block} for block in (128, 512, 2048, 4096)],
    "batch": [{"batch_size": rows} for rows in (1, 4, 16, 32)],
    "size": [
        {"n_layer": layers, "n_head": heads, "n_embd": 64 * heads, "batch_size": rows}
        for layers, heads, rows in ((4, 2, 8), (6, 4, 8), (8, 8, 8), (12, 12, 4), (24, 16, 2), (36, 24, 2))
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=float, default=1.1e9, help="parameters of the largest model to try")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plot", default="", help="a PNG to draw the points in")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(json.loads(args.point), args.largest)))
        return
    found: dict[str, list[dict]] = {dial: [] for dial in DIALS}
    for dial, settings in DIALS.items():
        for setting in settings:
            flags = ["-m", "benchmarks.growth", "--largest", str(args.largest), "--point", json.dumps(BASE | setting)]
            runs = [run for _ in range(args.runs) if (run := child(flags)["json"])]  # none where there is no room
            if runs:
                point = {name: median([run[name] for run in runs]) for name in runs[0]}
                found[dial].append({"setting": setting, **point})
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = [
        [dial, told(point["setting"]), f"{point['parameters'] / 1e6:,.1f} M", f"{1e6 * point['seconds_per_token']:,.1f}",
         f"{100 * point['share']:.0f} %"]
        for dial, points in found.items() for point in points
    ]  # fmt: skip
    table(["dial", "setting", "parameters", "µs a token", "of the matrix rate"], rows)
    print()
    ranks = {
        f"{world} of {threads} threads": median([ranked(world, threads) for _ in range(args.runs)])
        for world, threads in ((1, 1), (2, 1), (1, 2))
    }
    table(["ranks", "tokens/s", "to one of one"], [[n, f"{v:,.0f}", f"{v / ranks['1 of 1 threads']:.2f}×"] for n, v in ranks.items()])
    if args.plot:
        draw(found, Path(args.plot))
    finish("growth", points=found, ranks=ranks)


def told(setting: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def measure(setting: dict[str, int], largest: float) -> dict[str, float] | None:
    """One training step of a model, AdamW included; nothing for a model that is too large, or for which there is no room."""
    import torch

    from config import ModelConfig, TrainConfig
    from model import GPT, flops_per_token
    from training import calibrate, process
    from training.optim import make_optimizers
    from training.plan import count_parameters, memory

    rows = setting.pop("batch_size")
    config = ModelConfig(architecture="modern", vocab_size=VOCABULARY, **setting)
    train = TrainConfig(batch_size=rows)
    parameters = count_parameters(config)
    device = torch.device("cpu")
    if parameters > largest or memory(config, train, parameters, "float32", rows, "adamw", device) > 0.9 * calibrate.free_memory(device):
        return None
    process.tune_process(device)
    torch.manual_seed(0)
    model = GPT(config)
    optimizers = make_optimizers(model, train, "adamw", "float32")
    idx = torch.randint(VOCABULARY, (rows, config.block_size))

    def step() -> float:
        t0 = time.perf_counter()
        model(idx, idx).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - t0

    step()
    seconds = min(step() for _ in range(2)) / idx.numel()
    rate = calibrate.measure_matrix_rate(device, torch.float32)  # here and now: other load changes it
    return {"parameters": parameters, "seconds_per_token": seconds, "share": flops_per_token(config) / seconds / rate}


def ranked(world: int, threads: int) -> float:
    """Tokens a second of the `quick` preset on some ranks, each with so many threads."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--preset", "quick", "--time", "", "--max_iters", "60", "--batch_size", "16", "--threads", str(threads)]
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world), "--") if world > 1 else ()
        events = trained(Path(folder), "r", flags, launcher, OMP_NUM_THREADS=str(threads))["events"]
        steps = [event["dt"] for event in events if event["event"] == "step"]
        return 16 * 256 / median(steps[10:])


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """The points in one picture: arithmetic a token across, time a token up."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for dial, points in found.items():
        axes.plot([p["parameters"] for p in points], [1e6 * p["seconds_per_token"] for p in points], "o-", label=dial)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="µs a token", title="One training step")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
