"""The front door of training: `python train_cli.py --preset quick`, and the verbs plan, evaluate, average, consolidate, export, import,
compare, watch.

Each verb is one function that reads from top to bottom like the story of what it does.
"""

from __future__ import annotations

import sys
import time

STARTED = time.monotonic()  # a budget counts from here: loading torch is part of it

import argparse  # noqa: E402
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import errno  # noqa: E402
import itertools  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable  # noqa: E402
from datetime import datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from config import (  # noqa: E402
    PRESETS,
    ROOT,
    MediaModelConfig,
    ModelConfig,
    Parser,
    TrainConfig,
    UserError,
    add_flags,
    seconds,
    settings,
    take,
)
from training.verbs import average, consolidate, export, import_  # noqa: E402

EXIT = {"SIGINT": 130, "SIGTERM": 143}
MAY_CHANGE = {  # what a resumed run may do otherwise than before
    "preset", "time", "max_iters", "eval_interval", "eval_tokens", "patience", "save_interval", "keep", "sample_tokens",
    "device", "compile", "attention", "out_dir", "log_dir", "run", "resume", "verify_resume", "progress", "micro_batch_size",
    "threads",
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Runs a verb. What a person can mend is said in a sentence, with exit code 2."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # idle threads soon let other programs have the core
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # some consoles do not know every sign of a sample, or of ours
    argv = sys.argv[1:] if argv is None else argv
    verb, rest = (argv[0], argv[1:]) if argv and argv[0] in VERBS else ("train", argv)
    try:
        code = VERBS[verb](rest)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:  # `| head` closed its end
        sys.stderr.close()
        code = 141
    except (OSError, RuntimeError, MemoryError) as error:
        if not (sentence := advice(error)):
            raise
        print(f"\n{sentence}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\nstopped; nothing was lost that had been saved.", file=sys.stderr)
        code = 130
    sys.exit(code)


def advice(error: Exception) -> str:
    """What to do about an error that is the machine's limit and no fault of ours; nothing for others."""
    if isinstance(error, OSError):
        mendable = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EFBIG)
        where = f"{error.filename} " if error.filename else "a file "
        told = f"{where}could not be used ({error.strerror}): make room, or choose other folders with --out_dir and --log_dir."
        return told if error.errno in mendable else ""
    from train import out_of_memory

    if not out_of_memory(error):
        return ""
    return (
        "out of memory. Pass a smaller --n_embd, --n_layer, --vocab_size, --block_size or --micro_batch_size; "
        "what had been saved is intact."
    )


# ---- train and plan


def parse_training(verb: str, argv: list[str]) -> dict[str, Any]:
    """The flags that were given, by name."""
    parser = Parser(
        prog=f"train_cli.py{' ' + verb if verb else ''}",
        description="Trains a GPT. Other verbs: " + ", ".join(v for v in VERBS if v != "train"),
    )
    parser.add_argument(
        "--list_presets",
        "--list-presets",
        action="store_true",
        help="show the presets with their size and time on this machine",
    )
    if verb == "plan":
        parser.add_argument("--measure", action="store_true", help="compile the model once, to know what that is worth here")
    add_flags(parser, TrainConfig, MediaModelConfig)
    return vars(parser.parse_args(argv))


def train(argv: list[str]) -> int:
    """Data, plan, model, loop, report."""
    given = parse_training("", argv)
    if given.pop("list_presets"):
        return list_presets()
    from training import distributed, sizing

    values = {**sizing.recipe(given), **settings(given)}
    config = take(TrainConfig, values)
    if not config.resume and not config.verify_resume:
        take(shape_of(values), values)  # an impossible shape is refused before the data is read
    ranks = distributed.start(config.device)
    try:
        return train_on(ranks, given, values, config)
    finally:
        distributed.stop()


def train_on(ranks, given: dict[str, Any], values: dict[str, Any], config: TrainConfig) -> int:
    """What `train` does once the ranks know each other. `given` is what was typed, `values` the same over a preset, a recipe or a
    checkpoint, `config` the part of it that is about training."""
    import checkpoint
    from train import Trainer, fit, open_files, verify_resume
    from training import build, calibrate, process, runlog, sizing
    from training.files import in_shards

    out_dir, log_dir = place("out_dir", given, config), place("log_dir", given, config)
    run = ranks.broadcast(lambda: choose_run(config, out_dir))
    folder = out_dir / run
    say = print if ranks.first else (lambda *_: None)
    saved = None
    if config.resume or config.verify_resume:
        files = open_files(folder, ranks, ranks.broadcast(lambda: in_shards(folder)))
        saved, path = files.newest(say)
        config, values = resumed_settings(saved, given, ranks)
        say(f"resuming {folder} from {path.name}, step {saved['training']['progress']['step']}")
    process.tune_process(ranks.device, config.threads)
    with contextlib.ExitStack() as held:
        ranks.broadcast(lambda: held.enter_context(lock(folder)))
        if not saved:
            ranks.broadcast(lambda: refuse_used(folder))
        if config.fsdp:
            from training.folders import require_one_folder

            require_one_folder(folder, ranks)
        start = None if saved else build.start_from(config, ranks)
        if start:
            values = started_settings(start, values)
        asked = saved["provenance"]["asked_vocab_size"] if saved else asked_vocab_size(given, values)
        corpus, config = find_corpus(config, given, values, asked, saved or start, say, ranks)
        require_one_text(corpus, ranks)
        if saved and saved["provenance"]["data_hash"] != corpus.data_hash:
            raise UserError(
                f"the data changed since this run began (data {config.data!r}): give it the same text again, or start a new run without --resume."
            )
        if sizing.wanted(given):
            values |= ranks.broadcast(lambda: sizing.settle(given, config, len(corpus.train), corpus.tokenizer.vocab_size, ranks))
            config = take(TrainConfig, values)
            say(sizing.line(values, config))
        model_config = take(shape_of(values), {**values, "vocab_size": corpus.tokenizer.vocab_size})
        plan = ranks.gather(make_plan(model_config, config, ranks, corpus))[0]  # probes differ a little
        held.enter_context(calibrate.attending(plan.attention))
        model = build.model_of_run(model_config, config, start, ranks, plan.dtype, plan.compile, fresh=not saved)
        for line in plan.lines():
            say(line)
        log = runlog.RunLog(log_dir / run, ranks.first, config.progress)
        task = make_task(corpus, config, model.config, ranks, log.folder if ranks.first else None)
        task.provenance["asked_vocab_size"] = asked
        trainer = Trainer(model, task, config, plan, ranks, folder, log, STARTED)
        if config.verify_resume:
            say(verify_resume(trainer))
            return 0
        if ranks.first:
            checkpoint.clean_temporaries(folder)
        if saved:
            trainer.files = files  # which know what they passed over
            take_up(trainer, saved, path, given, say)
        else:
            log.event(
                "start",
                run=run,
                model=dataclasses.asdict(model.config),
                train=dataclasses.asdict(config),
                plan=dataclasses.asdict(plan),
                entropy=corpus.meta["entropy"],
            )
        try:
            summary = fit(trainer)
        finally:
            log.close()
        if ranks.first:
            report(trainer, summary, corpus, folder)
    return EXIT.get(summary["stop_reason"], 0)


def take_up(trainer, saved: dict[str, Any], path: Path, given: dict[str, Any], say) -> None:
    """Puts a trainer where its checkpoint left off, with the micro-batch of this sitting and, if another was typed, its --time."""
    trainer.restore(trainer.files.fill(saved, path))
    trainer.remember_best()
    trainer.progress.micro_batch = trainer.plan.micro_batch_size
    if "time" in given and given["time"] != saved["provenance"]["train_config"]["time"]:
        trainer.budget = 0.0  # `begin` sets another
    elif trainer.done():
        say(done_already(trainer.config))
    trainer.log.event("resume", step=trainer.progress.step)


def place(name: str, given: dict[str, Any], config: TrainConfig) -> Path:
    """A folder: the one that was typed, from the working directory; the default one, beside the toolkit."""
    return Path(getattr(config, name)) if name in given else ROOT / getattr(config, name)


def choose_run(config: TrainConfig, out_dir: Path) -> str:
    """The run's name: the one given, the newest one to resume, or preset and date (two of one second get a number)."""
    if config.run:
        return config.run
    if config.resume or config.verify_resume:
        states = [*out_dir.glob("*/last.pt"), *out_dir.glob("*/last_*.dcp")]
        runs = sorted((path.stat().st_mtime, path.parent.name) for path in states)
        if not runs:
            raise UserError(
                f"there is no run to resume in {out_dir}/: start one without --resume, or name its folder with --out_dir."
            )
        return runs[-1][1]
    dated = f"{config.preset or 'train'}-{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([dated], (f"{dated}-{nth}" for nth in itertools.count(2)))
    return next(name for name in names if not (out_dir / name).exists())


def refuse_used(folder: Path) -> None:
    """A new run never takes the place of one that has been trained.

    Raises:
        UserError: when the folder holds steps that would be lost.
    """
    import checkpoint
    from training.files import in_shards

    step = 0
    try:
        step = checkpoint.load_newest(folder, lambda _: None)[0]["training"]["progress"]["step"]
    except checkpoint.OtherVersion:
        raise
    except UserError:  # nothing there that could be gone on with
        pass
    if in_shards(folder):
        from training.folders import steps_done

        step = max(step, steps_done(folder))
    if step:
        raise UserError(
            f"{folder} holds a run of {step} steps: pass --resume to go on with it, or another name with --run."
        )
    if (folder / checkpoint.BEST).exists() and not (folder / checkpoint.LAST).exists():
        raise UserError(
            f"{folder} holds a model, {checkpoint.BEST}, that a run would replace: pass another name with --run. "
            f"To train it further, pass --init_from {folder} as well."
        )


def asked_vocab_size(given: dict[str, Any], values: dict[str, Any]) -> int:
    """The size that a trained tokenizer should have; the default of 50,257 is GPT-2's and asks nothing of others."""
    return values.get("vocab_size", 0) if "vocab_size" in given or values.get("tokenizer") == "bpe" else 0


def resumed_settings(saved: dict, given: dict[str, Any], ranks) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of the run that goes on, with those flags that may change.

    Raises:
        UserError: naming a flag that would make it another run.
    """
    was = {**saved["provenance"]["train_config"], **{k: v for k, v in saved["config"].items() if k != "kind"}}
    known = {item.name for config in (TrainConfig, MediaModelConfig) for item in dataclasses.fields(config)}
    if unknown := sorted(set(was) - known):
        raise UserError(
            f"this run has settings that this version does not know ({', '.join(unknown)}): resume it with the version that began it, "
            f"{saved['provenance']['code']}, or a later one; or start a new run from its weights with --init_from."
        )
    began = vars(take(TrainConfig, {})) | vars(take(MediaModelConfig, {})) | was  # a setting that it did not know yet had its default
    for name, value in given.items():
        if name == "vocab_size" and value in (0, saved["provenance"]["asked_vocab_size"]):
            continue
        if name in began and name not in MAY_CHANGE and value != began[name]:
            raise UserError(
                f"{name} is {value!r} but the run was started with {began[name]!r}: leave --{name} out to resume, "
                "or start a new run without --resume."
            )
    changed = {name: value for name, value in given.items() if name in MAY_CHANGE}
    if "max_iters" in changed and "time" not in changed and was["time"]:
        raise UserError(
            f"max_iters is {changed['max_iters']}, but this run is measured in time (--time {was['time']}): "
            'pass --time, or --time "" to count steps.'
        )
    provenance = saved["provenance"]
    kept = {name: provenance[name] for name in ("dtype", "optimizer", "compile", "attention", "threads") if name in provenance}
    if "device" in given:
        kept.pop("attention", None)  # another device may not have it
    if provenance["world"] == ranks.world:
        kept["micro_batch_size"] = saved["training"]["progress"]["micro_batch"]
    values = {**was, **kept, **changed, "resume": True}
    return take(TrainConfig, values), values


def done_already(config: TrainConfig) -> str:
    """What makes a run that was trained to its end go further."""
    if config.time:
        return f"note     its --time {config.time} is used up: pass another, such as --time 1m, to train that much longer"
    return f"note     its {config.max_iters:,} steps are done: pass a larger --max_iters to train on"


def shape_of(values: dict[str, Any]) -> type[ModelConfig]:
    """The dataclass of the model's shape: with modalities, that of one that sees or hears."""
    if not values.get("modalities"):
        return ModelConfig
    import multimodal.fusion  # noqa: F401  such models are known from here on

    return MediaModelConfig


def started_settings(start: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that starts from another model: its shape, and what it takes in beside what was asked for."""
    shape = {name: value for name, value in start["config"].items() if name not in ("kind", "dropout", "word_dropout", "modalities")}
    kinds = [*start["config"].get("modalities", "").split(","), *values.get("modalities", "").split(",")]
    return {**values, **shape, "modalities": ",".join(dict.fromkeys(filter(None, map(str.strip, kinds))))}


def make_plan(model_config: ModelConfig, config: TrainConfig, ranks, corpus):
    """The plan of a run on a corpus."""
    from training import plan

    if not isinstance(model_config, MediaModelConfig):
        return plan.make_plan(model_config, config, ranks, len(corpus.train))
    from multimodal.run import plan_hints

    if config.compile == "auto":  # rows of every length: what compiling wins, compiling again for each loses
        config = dataclasses.replace(config, compile="off")
    return plan.make_plan(model_config, config, ranks, **plan_hints(corpus, model_config))


def make_task(corpus, config: TrainConfig, model_config: ModelConfig, ranks, folder: Path | None):
    """What the loop trains on; sheets of examples go to a folder."""
    if not isinstance(model_config, MediaModelConfig):
        from training.text import TextTask

        return TextTask(corpus, config, model_config.block_size, ranks)
    from multimodal.task import MediaTask

    return MediaTask(corpus, config, model_config.block_size, ranks, folder)


def find_corpus(config: TrainConfig, given: dict[str, Any], values: dict[str, Any], vocab_size: int, before: dict | None, say, ranks):
    """The tokenised corpus, with the tokenizer of a checkpoint `before` where there is one; where GPT-2's was only the default
    and cannot be had, a bpe of the corpus takes its place."""
    import tokenizer as tokenizers
    from data import holds_shards, prepare
    from sources import find_source

    own = tokenizers.from_dict(before["tokenizer"]) if before else None
    if holds_shards(config.data):
        if values.get("modalities"):
            raise UserError(
                f"--data {config.data} holds token shards, which are text only: pass the rows with pictures and sounds, or leave --modalities out."
            )
        return open_shards(config.data, own, "the model to start from"), config
    if values.get("modalities"):
        from multimodal.run import find_corpus as find_media

        shape = take(MediaModelConfig, {**values, "vocab_size": 0})
        return find_media(config, shape, vocab_size, own, say, config.progress and ranks.first), config
    source = find_source(config)
    if source.why:
        say(source.why)
    # Shards are named by the tokenizer that was passed on, or by the recipe of one that is learned (`data.prepare`): a resumed run finds
    # its own only in the way in which it made them.
    ready = own if config.init_from or config.tokenizer == "gpt2" else None
    if not ready and config.tokenizer == "gpt2":
        try:
            ready = tokenizers.load_gpt2()
        except UserError as error:
            if "tokenizer" in given:
                raise
            say(f"tokenizer: a bpe of the corpus, because {str(error).splitlines()[0]}")
            config = dataclasses.replace(config, tokenizer="bpe")
    corpus = prepare(config, source, vocab_size, ready, progress=config.progress and ranks.first)
    counts = corpus.meta["train"], corpus.meta["val"]
    say(
        f"data     {corpus.meta['source']}: {counts[0]['tokens']:,} tokens to train, {counts[1]['tokens']:,} to validate, "
        f"{corpus.tokenizer.kind} of {corpus.tokenizer.vocab_size:,}"
    )
    for line in corpus.meta["skipped"]:
        say(f"note     {line}")
    held_out = counts[1]["bytes"] / (counts[0]["bytes"] + counts[1]["bytes"])
    if not source.val and held_out > 2 * config.val_fraction:
        say(
            f"note     {held_out:.0%} of the text validate, since documents stay whole: join the files to one to hold out {config.val_fraction:.0%}"
        )
    return corpus, config


def open_shards(folder: Path | str, tokenizer, whose: str):
    """A folder of token shards, for a model that has this tokenizer, if it has one.

    Raises:
        UserError: when the shards have another.
    """
    from data import open_corpus

    corpus = open_corpus(Path(folder))
    if tokenizer and corpus.tokenizer.to_dict() != tokenizer.to_dict():
        raise UserError(f"the shards in {folder} have another tokenizer than {whose}: pass the text as --data.")
    return corpus


def require_one_text(corpus, ranks) -> None:
    """Makes sure that all hosts read the same text with the same tokenizer.

    Raises:
        UserError: on every rank, when they do not.
    """
    found = ranks.gather(corpus.data_hash)
    if len(set(found)) > 1:
        apart = ", ".join(f"rank {rank}" for rank, key in enumerate(found) if key != found[0])
        raise UserError(
            f"the text is another on {apart} than on rank 0: give every host the same files under --data, and the same --tokenizer."
        )


@contextlib.contextmanager
def lock(folder: Path):
    """Holds a run's folder for this process.

    Raises:
        UserError: when another process trains there, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock")
        held.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is training in {folder}: wait for it, or choose another name with --run."
        ) from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --out_dir.") from error
    try:
        yield
    finally:
        held.release()


def report(trainer, summary: dict[str, Any], corpus, folder: Path) -> None:
    """Publishes the files, draws the curve, and shows what came of it."""
    import checkpoint
    from training import runlog
    from training.units import count, duration, size

    logs = trainer.log.folder
    entropy = corpus.meta["entropy"]
    runlog.write_summary(logs, {**summary, "entropy": entropy})
    if trainer.config.fsdp and summary["val_loss"] is not None:
        write_single_files(folder)
    checkpoint.publish(folder)
    picture = runlog.draw(logs, folder.name, entropy)
    if summary["val_loss"] is None:
        print(
            f"\nstopped by {summary['stop_reason']} after step {summary['steps']}, saved: go on with python train_cli.py --resume --run {folder.name}"
        )
        return
    print(
        f"\n{folder.name}: {summary['steps']:,} steps in {duration(summary['seconds'])}, "
        f"{count(summary['tokens'])} tokens, {summary['tokens_per_second']:,.0f} tokens/s, "
        f"peak memory {size(summary['peak_memory_bytes'])}"
    )
    print(
        f"validation: {summary['val_loss']:.4f} nats per token, perplexity {summary['perplexity']:.2f}, "
        f"{summary['val_bpb']:.4f} ± {summary['val_bpb_se']:.4f} bits per byte"
    )
    if entropy:
        print(
            f"the text's true entropy is {entropy:.4f} bits per byte: "
            f"the model is {100 * (summary['val_bpb'] / entropy - 1):.1f} % above what is possible"
        )
    if isinstance(trainer.model.config, MediaModelConfig) and (folder / checkpoint.BEST).exists():
        from multimodal.run import report as report_answers

        model, tokenizer, _ = checkpoint.load_model(folder / checkpoint.BEST)
        answers = report_answers(corpus, model, tokenizer, logs)
        runlog.write_summary(logs, {**summary, "entropy": entropy, "answers": answers})
    elif not trainer.config.fsdp:
        show_samples(folder, corpus)
    print(
        f"\ncurve {picture} · model {folder / checkpoint.BEST} · more: python generate.py --checkpoint {folder / checkpoint.BEST}"
    )


def write_single_files(folder: Path) -> None:
    """best_model.pt and last.pt of a run in shards; where memory is too small for them the run is not lost, and says so."""
    from training.folders import consolidate_run

    try:
        consolidate_run(folder)
    except UserError as error:
        print(f"\nnot written: {', '.join(('best_model.pt', 'last.pt'))}. {error}")


def show_samples(folder: Path, corpus) -> None:
    """Two texts from the best model; stories are judged as well."""
    import checkpoint
    from inference import engine
    from inference.request import Settings
    from inference.sampling import start_ids

    model, tokenizer, provenance = checkpoint.load_model(folder / checkpoint.BEST)
    if corpus.meta["source"] == "stories":
        from training.judge import judge_stories

        for line in judge_stories(model, tokenizer, 100, temperature=0.8).lines():
            print(line)
    print("\nIt writes:")
    prompt = start_ids(tokenizer, "", provenance["documents"])
    for text in engine.texts(model, tokenizer, prompt, [Settings(max_new_tokens=220, seed=seed) for seed in (1, 2)]):
        print("\n" + "\n".join("  " + line for line in text.strip().splitlines()))


def make_plan_only(argv: list[str]) -> int:
    """Shows what a run would take, and trains nothing."""
    given = parse_training("plan", argv)
    measure = given.pop("measure")
    if given.pop("list_presets"):
        return list_presets()

    from training import distributed, plan, process, sizing

    values = {**sizing.recipe(given), **settings(given)}
    config = take(TrainConfig, values)
    ranks = distributed.Ranks(0, 1, distributed.pick_device(config.device))
    process.tune_process(ranks.device, config.threads)
    if sizing.wanted(given):
        tokens, vocab_size = sizing.text_size(config, values["vocab_size"])
        values |= {"vocab_size": vocab_size} | sizing.settle(given, config, tokens, vocab_size, ranks)
        config = take(TrainConfig, values)
        print(sizing.line(values, config))
    values["vocab_size"] = values.get("vocab_size") or {"char": 128, "byte": 257}.get(config.tokenizer, 50257)
    model_config = take(shape_of(values), values)
    told = plan.make_plan(model_config, config, ranks)
    print("config   " + ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(model_config).items()))
    for line in [*plan.machine_lines(model_config, told.dtype, ranks.device, measure), *told.lines()]:
        print(line)
    return 0


def list_presets() -> int:
    """A table of the presets with what each takes on this machine."""
    from training import calibrate, distributed, plan, process
    from training.units import count, duration, size

    ranks = distributed.Ranks(0, 1, distributed.pick_device("auto"))
    process.tune_process(ranks.device)
    small = ModelConfig()
    fastest = min(calibrate.seconds_per_token(small, ranks.device, dtype) for dtype in ("float32", "bfloat16"))
    rate = plan.flops_per_token(small) / fastest  # what a model of the default size reaches here
    print(f"{'preset':<16}{'model':<38}{'parameters':>11}{'memory':>10}{'steps':>9}{'time here':>12}")
    for name, preset in PRESETS.items():
        values = {"vocab_size": 128 if preset.get("tokenizer") == "char" else 50257, **preset}
        model_config, config = take(shape_of(values), values), take(TrainConfig, values)
        parameters = plan.count_parameters(model_config)
        tokens = config.max_iters * config.batch_size * model_config.block_size
        taken = seconds(config.time) if config.time else tokens * plan.flops_per_token(model_config) / rate
        micro = plan.choose_micro_batch(model_config, config, parameters, "float32", config.batch_size, ranks.device)
        shape = f"{model_config.architecture}, {model_config.n_layer} × {model_config.n_embd}, block {model_config.block_size}"
        room = size(plan.memory(model_config, config, parameters, "float32", micro, "adamw", ranks.device))
        steps = "" if config.time else f"{config.max_iters:,}"
        print(f"{name:<16}{shape:<38}{count(parameters):>11}{room:>10}{steps:>9}{duration(taken):>12}")
    return 0


# ---- what is done with checkpoints


def evaluate(argv: list[str]) -> int:
    """Scores a checkpoint on a validation text; of stories it also judges what the model writes."""
    parser = Parser(prog="train_cli.py evaluate", description="Scores a checkpoint on the validation part of a text.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="checkpoints/best_model.pt",
        help="a checkpoint or a run's folder [checkpoints/best_model.pt]",
    )
    parser.add_argument("--data", default="", help="the text; by default the one the model was trained on")
    parser.add_argument(
        "--stories", type=int, default=0, metavar="N", help="write N stories and judge their grammar and facts"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the written stories; 1 samples the model as it is [1.0]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps [auto]")
    args = parser.parse_args(argv)

    import checkpoint
    import data
    from sources import find_source
    from training import distributed, process
    from training.evaluate import evaluate as score_text

    ranks = distributed.Ranks(0, 1, distributed.pick_device(args.device))
    process.tune_process(ranks.device)
    model, tokenizer, provenance = checkpoint.load_model(args.checkpoint, ranks.device)
    trained = provenance.get("train_config", {})
    other = {"data": args.data, "mix": "", "strict": False} if args.data else {}  # what was asked of the run's own data is not asked of it
    config = take(TrainConfig, {"data": "auto", **trained, **other})
    if isinstance(model.config, MediaModelConfig):
        from multimodal.run import evaluate as evaluate_media

        evaluate_media(model, tokenizer, config, ranks, provenance, ROOT / config.log_dir / provenance["run"])
        return 0
    own = data.DATA / provenance.get("data_hash", "")  # the run's text, as it was then
    where = own if not args.data and data.holds_shards(own) else config.data
    if data.holds_shards(where):
        corpus = open_shards(where, tokenizer, args.checkpoint)
    else:
        corpus = data.prepare(config, find_source(config), 0, tokenizer)
    score = score_text(model, corpus, model.config.block_size, ranks)
    print(f"{provenance['run']} step {provenance['step']} on {corpus.meta['source']}:")
    print(f"{score.loss:.4f} ± {score.loss_se:.4f} nats per token, perplexity {score.perplexity:.2f}")
    print(f"{score.bpb:.4f} ± {score.bpb_se:.4f} bits per byte ({score.tokens:,} tokens, {score.bytes:,} bytes)")
    if corpus.meta["entropy"]:
        print(
            f"true entropy {corpus.meta['entropy']:.4f} bits per byte: {100 * (score.bpb / corpus.meta['entropy'] - 1):.1f} % above it"
        )
    if args.stories:
        from training.judge import judge_stories

        for line in judge_stories(model, tokenizer, args.stories, args.temperature).lines():
            print(line)
    return 0


def compare(argv: list[str]) -> int:
    """Runs side by side, from their logs: what the page of training shows."""
    description = "Shows runs side by side: a table, then curves, plans, checkpoints and samples of the runs that are named, or of the newest."
    parser = Parser(prog="train_cli.py compare", description=description)
    parser.add_argument("runs", nargs="*", help="names of runs [all]")
    parser.add_argument("--log_dir", "--log-dir", default="", help="folder of the logs [logs]")
    args = parser.parse_args(argv)

    from training.compare import read_runs, table
    from training.terminal import page

    runs = read_runs(Path(args.log_dir or ROOT / "logs"), args.runs)
    newest = max(runs, key=lambda run: run.last_time)
    encoding = sys.stdout.encoding or "utf-8"  # some terminals know no blocks to draw with
    print(f"{table(runs)}\n\n{page(runs if args.runs else [newest])}".encode(encoding, "replace").decode(encoding))
    return 0


def watch(argv: list[str]) -> int:
    """The page of training in the browser."""
    parser = Parser(prog="train_cli.py watch", description="Shows the runs in the browser while they are trained.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8001, help="port to listen on; 0 takes a free one [8001]")
    parser.add_argument("--log_dir", "--log-dir", default=argparse.SUPPRESS, help="folder of the logs [logs]")
    given = vars(parser.parse_args(argv))

    from config import ServeConfig
    from server.watch import run

    run(ServeConfig.from_env(os.environ, **given))
    return 0


def of_any_kind(verb: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """A verb that reads checkpoints, those of models that see and hear as well."""

    def run(argv: list[str]) -> int:
        if not {"-h", "--help"} & set(argv):  # help need not wait for torch
            import multimodal.fusion  # noqa: F401  such models are known from here on
        return verb(argv)

    return run


VERBS = {
    "train": train,
    "plan": make_plan_only,
    "evaluate": of_any_kind(evaluate),
    "average": of_any_kind(average),
    "consolidate": of_any_kind(consolidate),
    "export": of_any_kind(export),
    "import": import_,
    "compare": compare,
    "watch": watch,
}


if __name__ == "__main__":
    main()
