"""What a run will take, told before it starts: parameters, memory, tokens, epochs, time; and the choices that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from config import ModelConfig, TrainConfig, UserError, seconds
from model import chunk_bytes, flops_per_token, kind_of
from training import calibrate
from training.build import hollow
from training.distributed import Ranks
from training.optim import MUON_PAYS_BELOW, muon_share
from training.units import count, duration, size

NEAR_TIE = 1.1  # times as fast is within what other load does to a measurement
USABLE = 0.8  # of the free memory: `memory` is an estimate
PROBED_BELOW = 300_000_000  # parameters; a probe of a larger model on a CPU would itself be long, and may not fit one GPU


@dataclass
class Plan:
    """The choices and forecasts of a run. Bytes are of one rank; seconds are estimates from this machine's calibration."""

    parameters: int
    dtype: str
    optimizer: str
    compile: bool
    attention: str
    micro_batch_size: int
    micro_steps: int
    memory_bytes: int
    free_bytes: int
    flops_per_token: float
    tokens_per_step: int
    tokens_per_second: float
    steps: int
    seconds: float
    epochs: float
    meet_each: bool = False  # with fsdp: gradients meet after each micro-step
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        length = "compiled" if self.compile else "eager"
        return [
            f"model    {count(self.parameters)} parameters · {self.dtype} · {self.optimizer} · {length} · {self.attention} attention",
            f"memory   about {size(self.memory_bytes)} of {size(self.free_bytes)} free · micro-batch {self.micro_batch_size} × {self.micro_steps}",
            f"run      {self.steps:,} steps of {self.tokens_per_step:,} tokens · {count(self.steps * self.tokens_per_step)} tokens"
            + (f" · {self.epochs:.1f} epochs" if self.epochs else ""),
            f"time     about {duration(self.seconds)} at {self.tokens_per_second:,.0f} tokens/s",
            *[f"note     {warning}" for warning in self.warnings],
        ]


def make_plan(
    model_config: ModelConfig, config: TrainConfig, ranks: Ranks,
    train_tokens: int = 0, row_tokens: float = 0, more_flops: float = 1.0, slower: float = 1.0,
) -> Plan:  # fmt: skip
    """Plans a run of this model on this machine.

    Args:
        train_tokens: tokens in the training split; 0 when not known yet.
        row_tokens: tokens of a row, on average; 0 is a full block.
        more_flops: a token's arithmetic, as a multiple of the GPT's own; encoders add to it.
        slower: its time, as a multiple of what this arithmetic takes in full blocks; padding adds to it.

    Raises:
        UserError: for a batch that the ranks cannot share.
    """
    if config.batch_size % ranks.world:
        larger = -(-config.batch_size // ranks.world) * ranks.world
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {ranks.world} ranks: pass --batch_size {larger}."
        )
    device = ranks.device
    parameters = count_parameters(model_config)
    probed = parameters < PROBED_BELOW or (device.type != "cpu" and not config.fsdp)
    dtype = config.dtype if config.dtype != "auto" else choose_dtype(model_config, probed, device)
    tokens_per_step = round(config.batch_size * (row_tokens or model_config.block_size))
    share = muon_share(model_config, tokens_per_step)
    optimizer = config.optimizer if config.optimizer != "auto" else ("muon" if share < MUON_PAYS_BELOW else "adamw")
    share_of_rank = config.batch_size // ranks.world
    attention = choose_attention(config.attention, model_config, device, dtype, round(row_tokens))
    micro = config.micro_batch_size or choose_micro_batch(
        model_config, config, parameters, dtype, share_of_rank, device, ranks.world, row_tokens, attention
    )
    if share_of_rank % micro:
        raise UserError(
            f"micro_batch_size {micro} does not divide the {share_of_rank} sequences of each rank: choose one of its divisors."
        )
    speed = ranks.world / seconds_per_token(model_config, probed, device, dtype) / more_flops / slower
    budget = seconds(config.time) if config.time else 0.0
    steps = max(1, round(budget * 0.9 * speed / tokens_per_step)) if budget else config.max_iters  # the rest is start and evaluation
    expected = budget or steps * tokens_per_step / speed
    compiling = calibrate.compiling(model_config, device, dtype)
    compiled = choose_compile(config.compile, expected, device, compiling)
    if compiled and not budget:
        expected = expected / compiling.gain + compiling.seconds
        speed *= compiling.gain
    needed = memory(model_config, config, parameters, dtype, micro, optimizer, device, ranks.world, attention)
    free = calibrate.free_memory(device)
    whole_gradients = 4 * parameters if config.fsdp and micro < share_of_rank else 0
    fits = needed + whole_gradients < USABLE * free
    plan = Plan(
        parameters=parameters,
        dtype=dtype,
        optimizer=optimizer,
        compile=compiled,
        attention=attention,
        micro_batch_size=micro,
        micro_steps=share_of_rank // micro,
        memory_bytes=needed + (whole_gradients if fits else 0),
        free_bytes=free,
        flops_per_token=flops_per_token(model_config) * more_flops,
        tokens_per_step=tokens_per_step,
        tokens_per_second=speed,
        steps=steps,
        seconds=expected,
        epochs=steps * tokens_per_step / train_tokens if train_tokens else 0.0,
        meet_each=whole_gradients > 0 and not fits,
    )
    plan.warnings = warnings(plan, config, device, train_tokens)
    return plan


def count_parameters(config: ModelConfig) -> int:
    with hollow():
        return kind_of(config)(config).parameter_count()


def choose_dtype(config: ModelConfig, probed: bool, device: torch.device) -> str:
    """By a probe of this very model; of a model too large to probe, by the matrix rates."""
    if probed:
        return calibrate.best_dtype(config, device)
    rates = matrix_rates(device)
    return max(rates, key=rates.get)


def matrix_rates(device: torch.device) -> dict[str, float]:
    """What this machine's matrix products reach in each dtype, in floating point operations a second."""
    return {dtype: calibrate.matrix_rate(device, dtype) for dtype in ("float32", "bfloat16")}


def seconds_per_token(config: ModelConfig, probed: bool, device: torch.device, dtype: str) -> float:
    if probed:
        return calibrate.seconds_per_token(config, device, dtype)
    return calibrate.estimated_seconds_per_token(config, device, dtype)


def choose_micro_batch(
    config: ModelConfig, train: TrainConfig, parameters: int, dtype: str, share: int, device: torch.device, world: int = 1,
    row_tokens: float = 0, attention: str = "flash",
) -> int:  # fmt: skip
    """The largest divisor of a rank's share that fits: on a CPU 2,048 tokens, past which nothing is gained (of rows of many lengths,
    `row_tokens` on average); on a GPU what four fifths of the free memory hold."""
    free = calibrate.free_memory(device)
    fits = [
        micro
        for micro in range(1, share + 1)
        if share % micro == 0
        and (device.type != "cpu" or micro * (row_tokens or config.block_size) <= 2048)
        and memory(config, train, parameters, dtype, micro, "adamw", device, world, attention) < USABLE * free  # the larger of the two optimizers
    ]
    return max(fits, default=1)


def choose_attention(wanted: str, config: ModelConfig, device: torch.device, dtype: str, row_tokens: int = 0) -> str:
    """The implementation of attention that is fastest here, for rows of so many tokens or of a whole block. A near tie goes to flash,
    which keeps less in memory.

    Raises:
        UserError: when one was asked for that this machine, dtype or shape does not have.
    """
    speeds = calibrate.attention_speeds(config, device, dtype, row_tokens)
    if wanted not in ("auto", *speeds):
        raise UserError(
            f"--attention {wanted} is not to be had for {dtype} on {device.type} with heads of {config.head_dim}: pass {', '.join(speeds)} or auto."
        )
    return max(speeds, key=lambda name: speeds[name] * (NEAR_TIE if name == "flash" else 1)) if wanted == "auto" else wanted


def choose_compile(wanted: str, expected: float, device: torch.device, compiling: calibrate.Compiling) -> bool:
    """Whether `torch.compile` wins back its own time within the run.

    Raises:
        UserError: when it was asked for and this machine has no compiler.
    """
    able = calibrate.has_compiler(device)
    if wanted == "on" and not able:
        raise UserError(
            "--compile on needs a C++ compiler (g++ or clang++; Triton on a GPU): install one, or pass --compile off."
        )
    if wanted != "auto" or not able:
        return wanted == "on"
    return expected > compiling.break_even


def machine_lines(config: ModelConfig, dtype: str, device: torch.device, measure: bool = False) -> list[str]:
    """What this machine offers to this model, as a person reads it: matrix rates, threads, attention, and when compiling pays, which
    is found out by doing it once with `measure`."""
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in matrix_rates(device).items())
    told = [f"machine  {calibrate.machine_name()}", f"         matrix products at {rates}"]
    small = count_parameters(config) < PROBED_BELOW
    if device.type == "cpu" and small:
        speeds = calibrate.speed_by_threads(config, device, dtype)
        most, fastest = max(speeds), max(speeds, key=speeds.get)
        advice = f"; --threads {fastest} would be faster" if speeds[fastest] > 1.05 * speeds[most] else ""
        told.append(f"threads  of this model's speed with {most}: {in_hundredths(speeds, speeds[most])}{advice}")
    speeds = calibrate.attention_speeds(config, device, dtype)
    told.append(f"attention {in_hundredths(speeds, max(speeds.values()))} of the fastest's speed")
    if not calibrate.has_compiler(device):
        return [*told, "compile  never: there is no compiler here"]
    compiling = calibrate.compiling(config, device, dtype, measure and small)
    how = "as measured here" if compiling.measured else "about; make info measures it"
    if compiling.break_even == math.inf:
        told.append(f"compile  gains nothing for this model on this device ({how})")
    else:
        gain = f"{duration(compiling.seconds)} for steps {compiling.gain:.2f} times as fast"
        told.append(f"compile  {gain} ({how}): pays in runs of {duration(compiling.break_even)} and more")
    return told


def in_hundredths(speeds: dict[Any, float], whole: float) -> str:
    """Each as a share of the whole: "flash: 100 %, math: 41 %"."""
    return ", ".join(f"{name}: {100 * speed / whole:.0f} %" for name, speed in speeds.items())


def gathered(config: ModelConfig, parameters: int) -> int:
    """Bytes of what a rank of a shared model holds whole at one time: embeddings, and two blocks with their gradients."""
    both = 8  # bytes of a weight and its gradient
    embeddings = config.vocab_size * config.n_embd * (1 if config.tied_head else 2)
    return both * embeddings + 2 * both * (parameters - embeddings) // config.n_layer


def memory(
    config: ModelConfig, train: TrainConfig, parameters: int, dtype: str, micro: int, optimizer: str, device: torch.device,
    world: int = 1, attention: str = "flash",
) -> int:  # fmt: skip
    """Bytes of one rank at the peak of a step: weights, gradients, optimizer, activations, one chunk of logits, torch itself.

    An estimate: tests/test_plan.py holds it against measured peaks.
    """
    copies = 4 if optimizer == "adamw" else 3  # weight, gradient, and AdamW's two moments or Muon's one
    weights = 4 * parameters * (copies + (1 if train.ema else 0))
    if train.fsdp:
        weights = weights // world + gathered(config, parameters)
    head = 4 * config.vocab_size * config.n_embd  # the gradient that HeadLoss makes
    tokens = micro * config.block_size
    bytes_each, arrays = (2, 5) if dtype == "bfloat16" else (4, 3)  # of the logits of one chunk; where they have 16 bits, some arrays have 32
    head += arrays * min(chunk_bytes(device), bytes_each * tokens * config.vocab_size)
    q = config.n_head * config.head_dim
    per_layer = (  # numbers that autograd keeps for each token
        4 * config.n_embd + 4 * q + 3 * config.n_inner
        if config.architecture == "classic"
        else 6 * config.n_embd + 9 * q + 4 * config.n_inner
    )
    if attention == "math":  # keeps how much each token looks at each other, and where dropout hit
        per_layer += config.n_head * config.block_size * (2 if config.dropout else 1)
    layers = config.n_layer
    if train.checkpoint_activations:
        stored = config.n_embd * layers + per_layer
    else:
        stored = per_layer * layers
    width = 4 if dtype == "float32" else 3  # autocast keeps the residual stream in float32
    return int(weights + head + width * tokens * stored + 400 * 2**20)


def warnings(plan: Plan, config: TrainConfig, device: torch.device, train_tokens: int) -> list[str]:
    found = []
    if plan.memory_bytes > 0.9 * plan.free_bytes:
        found.append(
            "this may not fit in memory; --checkpoint_activations, a smaller --block_size or --n_embd needs less"
        )
    if plan.epochs > 20 and config.ema == 0:
        found.append(
            f"every token will be seen {plan.epochs:.0f} times, so it will overfit: use more text, fewer steps, --patience 5 or --dropout 0.1"
        )
    if train_tokens and plan.parameters > 20 * train_tokens and plan.epochs > 4:
        found.append("the model has far more parameters than the text has tokens: a smaller one will generalise better")
    if not config.time and plan.seconds > 4 * 3600 and device.type == "cpu":
        found.append(
            f"on this CPU that is {duration(plan.seconds)}; --time 2h fits the same model into an evening, --preset quick takes minutes"
        )
    if not plan.compile and config.compile == "auto" and not calibrate.has_compiler(device):
        found.append("no C++ compiler here, so everything runs eager; with g++ installed long runs compile")
    return found
