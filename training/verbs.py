"""What is done with checkpoints: the verbs average, consolidate, export and import of `train_cli.py`."""

from __future__ import annotations

from pathlib import Path

from config import Parser, UserError


def average(argv: list[str]) -> int:
    """The mean of several checkpoints' weights, scored where the text is at hand by `evaluate`."""
    parser = Parser(
        prog="train_cli.py average",
        description="Averages the weights of a run's numbered checkpoints (made with --save_interval).",
    )
    parser.add_argument("run", help="a run's folder, such as checkpoints/my-run")
    parser.add_argument("--last", type=int, default=0, metavar="K", help="average the last K [all]")
    parser.add_argument(
        "--best", type=int, default=0, metavar="K", help="average the K with the lowest validation loss"
    )
    parser.add_argument("--out", default="", help="the file to write [average.pt in the run's folder]")
    args = parser.parse_args(argv)

    import checkpoint

    folder = Path(args.run)
    paths = checkpoint.numbered(folder)
    if args.best:
        losses = {path: checkpoint.load(path)["provenance"]["val_loss"] for path in paths}
        scored = sorted((path for path in paths if losses[path] is not None), key=losses.get)
        newest = [path for path in reversed(paths) if losses[path] is None]
        paths = sorted([*scored, *newest][: args.best])
        if len(scored) < len(paths):
            print(
                f"note     {len(scored)} of the numbered checkpoints of {folder} have a validation loss; the newest of the others are taken as "
                "well. An --eval_interval that divides --save_interval scores them."
            )
    elif args.last:
        paths = paths[-args.last :]
    if len(paths) < 2 and any(folder.glob("step_*.dcp")):
        raise UserError(
            f"the numbered checkpoints of {folder} are in shards: run python train_cli.py consolidate {folder} first."
        )
    if len(paths) < 2:
        raise UserError(
            f"{folder} has {len(paths)} numbered checkpoints to average; train with --save_interval N --keep K to have more."
        )
    out = Path(args.out) if args.out else folder / "average.pt"
    content = checkpoint.average(paths)
    content.pop("format")
    checkpoint.write(out, content)
    print(
        f"averaged steps {', '.join(map(str, content['provenance']['averaged']))} into {out}; score it with python train_cli.py evaluate {out}"
    )
    return 0


def consolidate(argv: list[str]) -> int:
    """Makes ordinary files of a run in shards."""
    parser = Parser(
        prog="train_cli.py consolidate",
        description="Writes best_model.pt, last.pt and the numbered checkpoints from the shards of a run that was trained with --fsdp.",
    )
    parser.add_argument("run", help="a run's folder, such as checkpoints/my-run")
    args = parser.parse_args(argv)

    from training.folders import consolidate_run

    written = consolidate_run(Path(args.run), numbered=True)
    print(f"wrote {', '.join(map(str, written))}; try python generate.py --checkpoint {written[0]}")
    return 0


def export(argv: list[str]) -> int:
    """Writes a checkpoint for other programs, and compares what they compute with ours before it says done."""
    parser = Parser(
        prog="train_cli.py export",
        description="Writes a checkpoint for other programs, tokenizer included.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="checkpoints/best_model.pt",
        help="a checkpoint or a run's folder [checkpoints/best_model.pt]",
    )
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument(
        "--format", choices=("hf", "gguf"), default="hf", help="hf for transformers and vLLM, gguf for llama.cpp and Ollama [hf]"
    )
    parser.add_argument(
        "--gguf_type",
        "--gguf-type",
        choices=("f32", "f16", "bf16", "q8_0"),
        help="what a gguf keeps matrices in; q8_0 is about one byte a weight [f32]",
    )
    args = parser.parse_args(argv)

    if args.format == "gguf":
        from training.gguf_export import write_folder

        print(*write_folder(args.checkpoint, Path(args.out), args.gguf_type or "f32"), sep="\n")
        print(f"done: ollama create my-model -f {args.out}/Modelfile, or llama-cli -m {args.out}/model.gguf")
        return 0
    if args.gguf_type:
        raise UserError(f"gguf_type is {args.gguf_type!r}, but the format is hf: pass --format gguf as well.")
    from training.export import write_folder

    print(write_folder(args.checkpoint, Path(args.out)))
    print(f"done: AutoModelForCausalLM.from_pretrained({args.out!r}) loads it")
    return 0


def import_(argv: list[str]) -> int:
    """Reads a transformers folder (GPT-2 or a dense Qwen3) as a checkpoint."""
    parser = Parser(
        prog="train_cli.py import",
        description="Reads a transformers folder with GPT-2 or a dense Qwen3 as a checkpoint.",
    )
    parser.add_argument("folder", help="the folder, with config.json, safetensors and the tokenizer's files")
    parser.add_argument("--out", required=True, help="the checkpoint to write, such as checkpoints/gpt2/best_model.pt")
    args = parser.parse_args(argv)

    import checkpoint
    from training.export import read_folder

    checkpoint.write(Path(args.out), read_folder(Path(args.folder)))
    print(f"imported into {args.out}; try python generate.py --checkpoint {args.out} --prompt Hello")
    return 0
