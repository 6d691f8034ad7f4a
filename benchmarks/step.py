"""Tokens a second and peak memory of the default model's optimizer step, beside nanoGPT's.

    python -m benchmarks.step --nanogpt PATH [--runs 3]

Both sides train the 30 M model (6 layers, 6 heads, 384 wide, block 512, vocabulary 50,257 padded to 50,304) on the same
random tokens: AdamW, clipping, a batch of 16 sequences. For speed both use the same micro-batch of 4, nanoGPT compiled, each in
float32 and in bfloat16 (nanoGPT's own loop trains in float32 on a CPU; here its model runs in autocast as well). For memory each
does the batch of 16 in its own way: nanoGPT in one piece, ours in the micro-batches it chooses.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.common import child, finish, median, need_path, table

BATCH, BLOCK, VOCABULARY = 16, 512, 50257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "nanogpt", "limit"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--micro", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=2, help="timed steps a run")
    parser.add_argument("--compile", choices=("on", "off"), default="on", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = {"ours": ours, "nanogpt": nanogpt, "limit": limit}[args.side]
        print(json.dumps(side(args)))
        return
    checkout = need_path(args.nanogpt, "--nanogpt", "a checkout of nanoGPT")
    common = ["-m", "benchmarks.step", "--nanogpt", str(checkout), "--steps", str(args.steps)]
    sides = {
        "nanoGPT, float32": ["--side", "nanogpt", "--compile", "on"],
        "nanoGPT, bfloat16": ["--side", "nanogpt", "--compile", "on", "--dtype", "bfloat16"],
        "ours, float32": ["--side", "ours", "--compile", "off"],
        "ours, float32, compiled": ["--side", "ours", "--compile", "on"],
        "ours, bfloat16": ["--side", "ours", "--compile", "off", "--dtype", "bfloat16"],
        "ours, bfloat16, compiled": ["--side", "ours", "--compile", "on", "--dtype", "bfloat16"],
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    limits: list[float] = []
    for _ in range(args.runs):
        for name, flags in sides.items():
            speeds[name].append(child([*common, "--micro", "4", *flags])["json"]["tokens_per_second"])
        limits.append(child([*common, "--side", "limit"])["json"]["tokens_per_second"])
    memory = {
        name: child([*common, *flags, "--compile", "off"])["peak_memory_bytes"]
        for name, flags in {
            "nanoGPT, float32": ["--side", "nanogpt", "--micro", "16"],
            "ours, float32": ["--side", "ours"],
            "ours, bfloat16": ["--side", "ours", "--dtype", "bfloat16"],
        }.items()
    }
    peer, most = median(speeds["nanoGPT, float32"]), median(limits)
    rows = [
        [name, f"{median(each):,.0f}", f"{median(each) / peer:.2f}×", f"{median(each) / most:.0%}"] for name, each in speeds.items()
    ]
    table(["30 M model, micro-batch 4 × 512", "tokens/s", "of nanoGPT's in float32", "of torch's float32 matrix rate"], rows)
    print()
    rows = [[name, f"{size / 1e9:.2f} GB", f"{size / memory['nanoGPT, float32']:.2f}×"] for name, size in memory.items()]
    table(["a step of batch 16 × 512, whole process", "peak memory", "ratio"], rows)
    finish("step", tokens_per_second=speeds, limit=limits, peak_memory_bytes=memory)


def limit(args: argparse.Namespace) -> dict:
    """The tokens a second of a step that were nothing but large float32 matrix products."""
    import torch

    from config import ModelConfig
    from model import flops_per_token
    from training import calibrate

    rate = calibrate.measure_matrix_rate(torch.device("cpu"), torch.float32)
    return {"tokens_per_second": rate / flops_per_token(ModelConfig())}


def ours(args: argparse.Namespace, **shape: int) -> dict:
    """The toolkit's own loop on random tokens, with the default model or one of another shape."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import torch

    from config import ModelConfig, TrainConfig
    from model import GPT
    from train import Trainer
    from training import plan, process, runlog
    from training.distributed import Ranks
    from training.text import TextTask

    device = torch.device("cpu")
    process.tune_process(device)
    model_config, ranks = ModelConfig(**shape), Ranks(0, 1, device)
    V, T = model_config.vocab_size, model_config.block_size

    class Noise(TextTask):
        """Random tokens in place of a text's."""

        def __init__(self):
            self.provenance, self.tokenizer = {}, None

        def batch(self, step: int):
            rows = torch.randint(V, (BATCH, T + 1), generator=torch.Generator().manual_seed(step))
            return rows[:, :-1], rows[:, 1:]

    config = TrainConfig(batch_size=BATCH, micro_batch_size=args.micro, dtype=args.dtype, compile=args.compile)
    torch.manual_seed(0)
    model = GPT(model_config)
    told = plan.make_plan(model_config, config, ranks)
    if told.compile:
        model.trunk = torch.compile(model.run_blocks)
    with TemporaryDirectory() as scratch:
        log = runlog.RunLog(Path(scratch), progress=False)
        trainer = Trainer(model, Noise(), config, told, ranks, Path(scratch), log, time.monotonic())
        trainer.step()
        t0 = time.perf_counter()
        for _ in range(args.steps):
            trainer.step()
        seconds = time.perf_counter() - t0
        log.close()
    return {
        "tokens_per_second": args.steps * BATCH * T / seconds,
        "micro": told.micro_batch_size,
    }


def nanogpt(args: argparse.Namespace) -> dict:
    """nanoGPT's model, optimizer and order of work."""
    import torch

    from benchmarks.nanogpt import module

    peer = module(args.nanogpt)
    torch.manual_seed(0)
    model = peer.GPT(
        peer.GPTConfig(block_size=BLOCK, vocab_size=50304, n_layer=6, n_head=6, n_embd=384, dropout=0.0, bias=False)
    )
    optimizer = model.configure_optimizers(0.1, 3e-4, (0.9, 0.95), "cpu")
    run = torch.compile(model) if args.compile == "on" else model

    def step() -> None:
        rows = torch.randint(VOCABULARY, (BATCH, BLOCK + 1))
        for piece in rows.split(args.micro):
            with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16"):
                _, loss = run(piece[:, :-1].contiguous(), piece[:, 1:].contiguous())
            (loss * args.micro / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    t0 = time.perf_counter()
    for _ in range(args.steps):
        step()
    return {"tokens_per_second": args.steps * BATCH * BLOCK / (time.perf_counter() - t0)}


if __name__ == "__main__":
    main()
