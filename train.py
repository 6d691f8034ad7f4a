"""The loop: step, log, evaluate, save. It knows nothing of GPTs or of text, only `loss = model(*batch)`.

`fit` trains a model on a task; `python train.py` is the same as `python train_cli.py`.

How a run ends is its exit code: 0 done, 2 something to mend (bad input, no room, out of memory), 3 diverged,
130 and 143 stopped by SIGINT and SIGTERM after the step was finished and saved.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is loaded, which counts as time of the run
    import train_cli

    train_cli.main()

import contextlib
import itertools
import math
import os
import signal
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import checkpoint
from config import TrainConfig, UserError, seconds
from training import calibrate, runlog
from training.distributed import Ranks, own_part, set_weights, weights, whole
from training.evaluate import Score
from training.files import Files
from training.optim import Average, make_optimizers, rate, set_rate
from training.plan import Plan

BAD_IN_A_ROW = 3  # skipped steps before the run goes back to its last good state
REWINDS = 3  # how often it may go back before it gives up
SAVE_SECONDS = 600  # last.pt is written at least this often
EVALUATIONS = 10  # evaluations of a run with a time budget
CLOSING = 4.0  # seconds that a run with a time budget keeps for its last files and the picture, beside the final evaluation
FORWARD = 2.5  # how much faster a forward alone is than a whole step


class Task(Protocol):
    """What the loop asks of the data."""

    provenance: dict
    tokenizer: Any

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """This rank's share of a step's batch, what the model is called with; dimension 0 of each part is sequences."""

    def cuts(self, batch: tuple[Tensor, ...], micro: int) -> list[int]:
        """Where the micro-batches end, about `micro` sequences each; the last end is the batch's."""

    def evaluate(self, model: nn.Module, limit: int, autocast) -> Score:
        """The validation score, over about `limit` tokens; 0 is all."""

    def evaluation_tokens(self) -> int:
        """Tokens that the complete evaluation scores."""

    def sample(self, model: nn.Module, seed: int) -> str:
        """A piece of output, to show."""


class Diverged(UserError):
    """The loss would not stay finite."""

    exit_code = 3


@dataclass
class Progress:
    """Where a run stands: everything of its state that is a plain value, and is saved with it."""

    step: int = 0
    elapsed: float = 0.0  # seconds of training, over all its sittings
    best: float = math.inf
    best_step: int = -1
    stale: int = 0  # evaluations since the best
    evaluated: int = 0  # the step, or the tenth of a timed run, of the last evaluation
    skipped: int = 0
    rewinds: int = 0
    bad: int = 0  # skipped steps in a row
    slower: float = 1.0  # factor on the rate; each rewind halves it
    micro_batch: int = 1
    recent: list[float] = field(default_factory=list)  # the last losses, to know a spike by


class Stopper:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between steps. A second SIGINT is a person who will not wait:
    it leaves at once. A second SIGTERM is a launcher that repeats itself."""

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_unused) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, _frame) -> None:
        if self.signal and number == signal.SIGINT:
            os._exit(128 + number)
        self.signal = self.signal or number


class Trainer:
    """One run of one model. The methods follow the order of the loop."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainConfig,
        plan: Plan,
        ranks: Ranks,
        folder: Path,
        log: runlog.RunLog,
        started: float,
    ):
        self.model, self.task, self.config, self.plan, self.ranks = model, task, config, plan, ranks
        self.folder, self.log, self.started = folder, log, started
        self.device = ranks.device
        self.wrapped = model if ranks.world == 1 or config.fsdp else DistributedDataParallel(model)  # all have its weights now
        self.optimizers = make_optimizers(model, config, plan.optimizer, plan.dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.dtype == "float16")
        self.average = Average(model, config.ema) if config.ema else None
        self.progress = Progress(micro_batch=plan.micro_batch_size)
        self.files = open_files(folder, ranks, config.fsdp)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.replay: dict[int, dict] = {}  # the log's steps by number, while they are done again: `share` is read from here, not from the clock
        self.saved_at = time.monotonic()
        self.last_score: tuple[int, Score] | None = None  # the last evaluation, and its step
        self.stop_reason = ""
        self.budget = 0.0  # seconds of training in a run with a time budget
        self.saved_step = self.numbered_step = -1
        self.loss = math.nan
        self.step_seconds: deque[float] = deque(maxlen=20)  # of the last steps, for the speed
        self.peak = calibrate.matrix_rate(self.device, plan.dtype)

    # ---- the loop

    def run(self) -> None:
        """Trains until the run is done, or a signal, a full disk or a diverging loss ends it."""
        self.begin()
        with Stopper() as stopper:
            while not self.stop_reason:
                if self.time_to_evaluate():
                    self.evaluate_and_save()
                self.save_numbered()
                if self.stop_reason or self.done():
                    break
                self.step()
                self.agree(stopper)
            self.stop_reason = self.stop_reason or "done"
            self.save_last()
            self.ranks.barrier()  # where one leaves, a launcher soon ends the others: not before all is on the disk

    def begin(self) -> None:
        """The clock, and a first checkpoint: what cannot be written fails here and not after hours."""
        self.clock = time.monotonic() - self.progress.elapsed
        if self.config.time and not self.budget:  # a resumed run keeps its first one's
            left = seconds(self.config.time) - (time.monotonic() - self.started) - self.closing_seconds()
            self.budget = self.ranks.gather(self.progress.elapsed + max(1.0, left))[0]
        if self.progress.step == 0:
            self.save_last()
            self.publish()
        self.log.start_bar(
            int(100 * self.share()) if self.config.time else self.progress.step,
            self.config.max_iters,
            bool(self.config.time),
        )

    def closing_seconds(self) -> float:
        """What the final evaluation, the last files and the picture will take, about."""
        return CLOSING + (self.final_limit() or self.task.evaluation_tokens()) / self.plan.tokens_per_second / FORWARD

    def final_limit(self) -> int:
        """Tokens that the final evaluation scores, 0 for all: in a timed run, what a tenth of it allows."""
        return self.scored_in(seconds(self.config.time) / 10) if self.config.time else 0

    def share(self) -> float:
        """How much of the run is done, 0 to 1: of its time where it has a budget, else of its steps."""
        if self.progress.step in self.replay:
            return self.replay[self.progress.step]["progress"]
        if self.config.time:
            return min(1.0, self.progress.elapsed / self.budget)
        return min(1.0, self.progress.step / self.config.max_iters)

    def done(self) -> bool:
        return self.share() >= 1

    def time_to_evaluate(self) -> bool:
        """At every `eval_interval` steps, or at every tenth of a run with a time budget."""
        if self.config.time:
            now = int(EVALUATIONS * self.share())
        else:
            now = self.progress.step // self.config.eval_interval * self.config.eval_interval
        if self.done() or now == self.progress.evaluated:
            return False
        self.progress.evaluated = now
        return True

    def evaluation_limit(self) -> int:
        """Tokens that an evaluation during the run scores, 0 for all: in a timed run, what a hundredth of it allows."""
        if self.config.eval_tokens or not self.config.time:
            return self.config.eval_tokens
        return self.scored_in(self.budget / 100)

    def scored_in(self, budget: float) -> int:
        """Tokens that an evaluation scores in so many seconds, about; 0 where that is all of them."""
        allowed = int(budget * self.plan.tokens_per_second * FORWARD)
        return 0 if allowed >= self.task.evaluation_tokens() else max(1, allowed)

    def step(self) -> None:
        """One optimizer update, or a skipped one where the loss or the gradient is not finite or leaps."""
        t0, state, share = time.perf_counter(), self.progress, self.share()
        factor = rate(share, self.config) * state.slower
        set_rate(self.optimizers, factor)
        loss = self.accumulate()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip or math.inf)))
        self.loss = self.ranks.sum(loss)[0] / self.ranks.world
        finite_loss, finite_norm = math.isfinite(self.loss), math.isfinite(norm)
        good = finite_loss and finite_norm and not self.spike(self.loss)
        # fp16: a scale that is too large is not the run's fault, and update() lowers it. One below 1 makes nothing larger.
        overflow = finite_loss and not finite_norm and self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        for optimizer in self.optimizers:
            if good:
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            self.scaler.update()
        if good and self.average:
            self.average.update()
        state.step += 1
        if good:
            state.bad = 0
            state.recent = [*state.recent[-49:], self.loss]
        elif not overflow:
            state.bad += 1
            state.skipped += 1
        self.write_step(share, factor, norm, good, time.perf_counter() - t0)
        if state.bad >= BAD_IN_A_ROW:
            self.rewind()

    def accumulate(self) -> float:
        """Forward and backward of this rank's share in micro-batches; the mean loss. Gradients meet on the last one only.

        Out of memory halves the micro-batch and starts the step again: the global batch, and so the run, stays the same.
        """
        batch = tuple(part.to(self.device, non_blocking=True) for part in self.task.batch(self.progress.step))
        while True:
            try:
                return self.micro_steps(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self.halve()

    def micro_steps(self, batch: tuple[Tensor, ...]) -> float:
        torch.manual_seed(self.seed_of_step())
        ends = self.task.cuts(batch, self.progress.micro_batch)
        total = torch.zeros((), device=self.device)
        for start, end in itertools.pairwise([0, *ends]):
            with self.gradient_sync(end == ends[-1]):
                with self.autocast():
                    loss = self.wrapped(*(part[start:end] for part in batch)) * ((end - start) / ends[-1])
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return float(total)

    def seed_of_step(self) -> int:
        """Seeds dropout by step and rank, so that a step that is done again drops the same."""
        drawn = np.random.SeedSequence((self.config.seed, self.progress.step, self.ranks.rank))
        return int(drawn.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def gradient_sync(self, last: bool):
        """A context for one micro-step. The ranks' gradients are reduced in the last one only (DDP's `no_sync`); with fsdp in each, where
        whole ones that are kept until then would take too much room (`Plan.meet_each`)."""
        if self.config.fsdp:
            self.model.set_requires_gradient_sync(last or self.plan.meet_each)
        elif self.ranks.world > 1 and not last:
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def halve(self) -> None:
        """Tries the step again with half as many sequences at a time.

        Raises:
            UserError: when one sequence does not fit, or other ranks wait for this one.
        """
        for param in self.parameters:
            param.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        state = self.progress
        if state.micro_batch == 1 or self.ranks.world > 1 or self.config.fsdp:
            smaller = f", or --micro_batch_size {state.micro_batch // 2}" if state.micro_batch > 1 else ""
            shared = "" if self.config.fsdp or self.ranks.world == 1 else ", or --fsdp in a new run"
            raise UserError(
                f"out of memory with {state.micro_batch} sequences at a time. Pass --checkpoint_activations, a smaller --block_size or "
                f"--n_embd{smaller}{shared}. The last checkpoint is intact: --resume goes on from it."
            )
        state.micro_batch = next(m for m in range(state.micro_batch // 2, 0, -1) if self.config.batch_size % m == 0)
        self.log.say(
            f"out of memory: the micro-batch is now {state.micro_batch}; the batch of {self.config.batch_size} stays."
        )
        self.log.event("micro_batch", step=state.step, micro_batch=state.micro_batch)

    def autocast(self):
        return torch.autocast(self.device.type, calibrate.DTYPES[self.plan.dtype], enabled=self.plan.dtype != "float32")

    def spike(self, loss: float) -> bool:
        """Whether a loss stands far above the recent ones: ten of their deviations, and half a nat."""
        recent = self.progress.recent
        if len(recent) < 20:
            return False
        return loss > statistics.fmean(recent) + max(0.5, 10 * statistics.pstdev(recent))

    def rewind(self) -> None:
        """Back to the last good checkpoint, with half the rate.

        Raises:
            Diverged: when that was tried often enough.
        """
        state = self.progress
        if state.rewinds >= REWINDS:
            raise Diverged(
                f"the loss diverged {REWINDS + 1} times, the last time at step {state.step}: pass a lower --learning_rate "
                f"than {self.config.learning_rate:g}. What was saved in {self.folder} before is intact."
            )
        budget = self.budget
        content, path = self.files.newest(self.log.say)
        self.restore(self.files.fill(content, path))
        # The weights go back; the clock, the counts and what fits this machine do not.
        self.progress = now = replace(
            self.progress, elapsed=state.elapsed, micro_batch=state.micro_batch, skipped=state.skipped,
            slower=state.slower / 2, rewinds=state.rewinds + 1, bad=0,
        )  # fmt: skip
        self.budget = budget  # which the file may not know yet: that of a sitting that has just begun
        self.log.say(
            f"step {state.step}: {BAD_IN_A_ROW} bad steps in a row; back to step {now.step} ({path.name}) with {now.slower:g} of the rate."
        )
        self.log.event("rewind", step=now.step, from_step=state.step, rate=now.slower)

    def agree(self, stopper: Stopper) -> None:
        """Ranks share one clock and one decision to stop."""
        now = time.monotonic()
        votes = [stopper.signal == signal.SIGINT, stopper.signal == signal.SIGTERM, now - self.saved_at > SAVE_SECONDS]
        clock = now - self.clock if self.ranks.first else 0.0
        interrupted, terminated, overdue, self.progress.elapsed = self.ranks.sum(*map(float, votes), clock)
        if interrupted or terminated:
            self.stop_reason = "SIGINT" if interrupted else "SIGTERM"
        elif overdue:
            self.save_last()

    # ---- once in a while

    def evaluate_and_save(self) -> None:
        """Scores, keeps the best, writes a sample, saves."""
        if self.average:
            self.average.swap()
        score = self.task.evaluate(self.model, self.evaluation_limit(), self.autocast())
        state = self.progress
        self.log.event("evaluation", step=state.step, **score.figures())
        better = math.isfinite(score.loss) and score.loss < state.best
        if better:
            first = state.best_step < 0
            state.best, state.best_step, state.stale = score.loss, state.step, 0
            self.files.save_best(self.content(score))
            self.tell_saved(checkpoint.BEST, score)
            if first:
                self.publish()
        else:
            state.stale += 1
        told = f"val loss {score.loss:.4f} ± {score.loss_se:.4f}  {score.bpb:.4f} bits per byte"
        self.log.say("  ".join(filter(None, [f"step {state.step:>6}", told, score.brief(), "best" if better else ""])))
        if self.config.sample_tokens and self.ranks.first and not self.config.fsdp:
            text = self.task.sample(self.model, self.config.seed)
            self.log.event("sample", step=state.step, text=text)
        if self.average:
            self.average.swap()
        self.last_score = state.step, score
        self.save_last()
        if self.out_of_patience():
            self.stop_reason = f"no better for {state.stale} evaluations"

    def out_of_patience(self) -> bool:
        """Whether as many evaluations as --patience allows came to nothing better."""
        return 0 < self.config.patience <= self.progress.stale

    def write_step(self, share: float, factor: float, norm: float, good: bool, dt: float) -> None:
        state = self.progress
        self.step_seconds.append(dt)
        speed = len(self.step_seconds) * self.plan.tokens_per_step / sum(self.step_seconds)
        mfu = speed / self.ranks.world * self.plan.flops_per_token / self.peak
        self.log.event(
            "step",
            step=state.step - 1,
            progress=share,
            loss=self.loss,
            rate=factor,
            norm=norm,
            dt=dt,
            tokens_per_second=speed,
            mfu=mfu,
            micro_batch=state.micro_batch,
            skipped=not good,
        )
        shown = f"step {state.step}  loss {self.loss:.3f}  rate {factor:.2f}  {speed:,.0f} tok/s  MFU {100 * mfu:.0f} %"
        if self.last_score:
            shown = f"{shown}  {self.last_score[1].brief()}".rstrip()
        self.log.advance(100 * self.share() if self.config.time else state.step, run=shown)

    # ---- state

    def content(self, score: Score | None = None, training: bool = False) -> dict[str, Any]:
        """What a checkpoint of this instant holds."""
        state = self.progress
        provenance = {
            **self.task.provenance,
            "run": self.folder.name,
            "step": state.step,
            "val_loss": score.loss if score else None,
            "val_bpb": score.bpb if score else None,
            "train_config": asdict(self.config),
            "world": self.ranks.world,
            "dtype": self.plan.dtype,
            "optimizer": self.plan.optimizer,
            "attention": self.plan.attention,
            "compile": "on" if self.plan.compile else "off",
            "threads": torch.get_num_threads(),
        }
        resumed_from = self.training_state() if training else None
        return checkpoint.content_of(
            self.model, self.task.tokenizer, provenance, resumed_from, weights(self.model)
        )

    def training_state(self) -> dict[str, Any]:
        """All that resuming needs beside the weights, as plain values and tensors."""
        return {
            "progress": asdict(self.progress),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "budget": self.budget,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Takes a checkpoint's state over, to the last bit."""
        saved = content["training"]
        set_weights(self.model, content["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.scaler.load_state_dict(saved["scaler"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.progress = Progress(**saved["progress"])
        self.budget = saved["budget"]
        self.saved_step = self.numbered_step = self.progress.step

    def remember_best(self) -> None:
        """An earlier sitting may have found its last weights to be the best when it ended, after its last checkpoint was written."""
        step, loss = self.files.best_so_far() or (-1, math.inf)
        if 0 <= step <= self.progress.step:
            self.progress.best_step, self.progress.best = step, loss

    def save_last(self) -> None:
        if self.saved_step == self.progress.step:
            return
        self.saved_step = self.progress.step
        self.log.flush()
        self.files.save_last(self.content(self.score_here(), training=True))
        self.tell_saved(checkpoint.LAST, self.score_here())
        self.saved_at = time.monotonic()

    def tell_saved(self, file: str, score: Score | None) -> None:
        """Logs that a file now holds this step, for those who watch."""
        self.log.event("checkpoint", step=self.progress.step, file=file, val_loss=score and score.loss)

    def publish(self) -> None:
        """Points the links above the runs at this one, so that they are right even if this process is killed."""
        if self.ranks.first:
            checkpoint.publish(self.folder)

    def save_numbered(self) -> None:
        every, step = self.config.save_interval, self.progress.step
        if not every or not step or step % every or step == self.numbered_step:
            return
        self.numbered_step = step
        self.files.save_numbered(step, self.content(self.score_here(), training=True), self.config.keep)

    def score_here(self) -> Score | None:
        """The score of this very step's weights, where they were evaluated. With a moving average that is another model's, which only
        best_model.pt holds."""
        step, score = self.last_score or (-1, None)
        return score if step == self.progress.step and not self.average else None


def open_files(folder: Path, ranks: Ranks, fsdp: bool) -> Files:
    """The checkpoints of a run: single files, or folders of shards."""
    if not fsdp:
        return Files(folder, ranks)
    from training.folders import Folders  # half a second that other runs need not wait

    return Folders(folder, ranks)


def fit(trainer: Trainer) -> dict[str, Any]:
    """Runs a trainer to its end and scores the weights that it keeps on the whole validation set, in a timed run on the part of it that
    `final_score` has time for.

    Returns:
        the summary that docs/TRAINING_README.md describes; `val_loss` is None for a run that was stopped by a signal.
    """
    t0, first_step = time.monotonic(), trainer.progress.step
    trainer.run()
    dt = time.monotonic() - t0
    score = None if trainer.stop_reason.startswith("SIG") else final_score(trainer)
    state, plan = trainer.progress, trainer.plan
    summary = {
        "run": trainer.folder.name,
        "val_loss": score and score.loss,
        "val_bpb": score and score.bpb,
        "val_bpb_se": score and score.bpb_se,
        "perplexity": score and score.perplexity,
        "seconds": time.monotonic() - trainer.started,
        "training_seconds": state.elapsed,
        "steps": state.step,
        "best_step": state.best_step,
        "tokens": state.step * plan.tokens_per_step,
        "tokens_per_second": (state.step - first_step) * plan.tokens_per_step / dt,
        "parameters": plan.parameters,
        "peak_memory_bytes": calibrate.peak_memory(trainer.device),
        "skipped_steps": state.skipped,
        "rewinds": state.rewinds,
        "stop_reason": trainer.stop_reason,
    }
    trainer.log.event("end", **summary)
    return summary


def final_score(trainer: Trainer) -> Score:
    """Scores the last weights completely, and the best so far where they may be better. The last are kept as the best unless the others are
    clearly better: what was chosen for the lowest of many scores owes it in part to chance, and the last steps, at small rates, do more than
    a score of few rows can tell. Where patience ended a run before its rates had fallen, the lower loss decides. Of a timed run on a text
    with much to validate on, a part is scored, of windows that are spread evenly."""
    state, model, limit = trainer.progress, trainer.model, trainer.final_limit()
    if limit:
        n_tokens = trainer.task.evaluation_tokens()
        trainer.log.say(
            f"note     the last evaluation scores {limit:,} of {n_tokens:,} tokens, a tenth of the time; python train_cli.py evaluate scores all"
        )
    if trainer.average:
        trainer.average.swap()
    score = trainer.task.evaluate(model, limit=limit, autocast=trainer.autocast())
    trainer.log.event("evaluation", step=state.step, **score.figures())
    part = trainer.evaluation_limit()  # by which the best so far was found
    here = trainer.task.evaluate(model, limit=part, autocast=trainer.autocast()) if part else score
    if not here.loss <= state.best and (held := trainer.files.best()):  # also where the last loss is NaN
        last = {name: weight.clone() for name, weight in weights(model).items()}
        set_weights(model, held)
        best = trainer.task.evaluate(model, limit=limit, autocast=trainer.autocast())
        if score.clearly_worse_than(best) or (trainer.out_of_patience() and score.loss > best.loss):
            return best
        set_weights(model, last)
    if math.isfinite(score.loss):
        state.best, state.best_step = score.loss, state.step
        trainer.files.save_best(trainer.content(score))
        trainer.tell_saved(checkpoint.BEST, score)
    return score


def verify_resume(trainer: Trainer) -> str:
    """Replays the run's last interval from the checkpoint before it, and compares every bit with what the run saved.

    Returns:
        a sentence with what was compared.

    Raises:
        UserError: when there is nothing to replay, or a bit differs.
    """
    before, newest = trainer.files.last_two()
    start, end = (content["training"]["progress"] for content in (before, newest))
    if start["rewinds"] != end["rewinds"]:
        raise UserError(
            f"a rewind lies between steps {start['step']} and {end['step']}, which cannot be replayed: train on and try again."
        )
    trainer.restore(before)
    trainer.replay = runlog.latest_by_step(runlog.read_events(trainer.log.folder), "step")
    trainer.log = runlog.RunLog(trainer.log.folder, active=False)
    while (step := trainer.progress.step) < end["step"]:
        if step not in trainer.replay:
            raise UserError(
                f"the log {trainer.log.folder / 'events.jsonl'} has lost step {step}: train on and try again."
            )
        trainer.progress.micro_batch = trainer.replay[step]["micro_batch"]
        trainer.step()
        if runlog.finite(trainer.loss) != trainer.replay[step]["loss"]:
            raise UserError(
                f"step {step}, replayed, has the loss {trainer.loss!r}; the run's log says {trainer.replay[step]['loss']!r}."
            )
    replayed = {
        "model": weights(trainer.model),
        **{k: v for k, v in trainer.training_state().items() if k not in ("progress", "budget")},
    }
    saved = {"model": newest["model"], **{k: newest["training"][k] for k in replayed if k != "model"}}
    pairs = list(zip(leaves(replayed), leaves(saved), strict=True))
    differing = list(dict.fromkeys(name for part in trainer.ranks.gather(unlike(pairs)) for name in part))
    between = f"steps {start['step']} to {end['step']}"
    if differing:
        raise UserError(
            f"{between}, replayed, differ from the run in {len(differing)} of {len(pairs)} values, first {differing[0]}. "
            "On a GPU that may be; on a CPU please report it."
        )
    return f"resume verified: {between} replayed; {len(pairs)} values of weights and optimizers identical to the last bit"


def unlike(pairs: list[tuple[tuple[str, Any], tuple[str, Any]]]) -> list[str]:
    """The names of those pairs of values that differ, on this rank."""
    return [name for (name, a), (_, b) in pairs if not same(a, b)]


def same(a: Any, b: Any) -> bool:
    return torch.equal(own_part(a).cpu(), own_part(b).cpu()) if isinstance(a, Tensor) else a == b


def leaves(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """The tensors and plain values of nested dicts and lists, with their paths, in order."""
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in leaves(tree[key], f"{name}.{key}")]
    if isinstance(tree, list | tuple):
        return [leaf for key, value in enumerate(tree) for leaf in leaves(value, f"{name}.{key}")]
    return [(name.lstrip("."), tree)]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: CUDA has a type for it, the CPU's allocator only words, and oneDNN, which finds no
    room for the code that it writes for a product, not even that (what it cannot do at all, it says of a "primitive descriptor")."""
    said = str(error).lower()
    words = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")
    onednn = said.endswith(("could not create a primitive", "could not create a memory object"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or onednn or any(word in said for word in words)
