"""Writes text from a checkpoint, as it is made: `python generate.py --prompt "Once upon a time"`.

With neither a prompt nor a prompt file it writes one sample, then asks for prompts if it stands on a terminal.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from config import GenerateConfig, Parser, UserError, add_flags, take


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="generate.py", description="Writes text from a checkpoint.")
    add_flags(parser, GenerateConfig)
    given = vars(parser.parse_args(argv))
    try:
        write(take(GenerateConfig, given))
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print()
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed its end
        sys.stderr.close()
        sys.exit(141)


def write(config: GenerateConfig) -> None:
    """Loads the model, then writes what was asked for."""
    prompt = read_prompt(config)
    import torch

    import checkpoint
    from inference import weights
    from training import calibrate, distributed

    device = distributed.pick_device(config.device)
    calibrate.tune_process(device)
    model, tokenizer, provenance = checkpoint.load_model(config.checkpoint, device)
    weights.prepare(model, getattr(torch, config.dtype))
    loss = provenance.get("val_loss")
    print(
        f"{provenance['run']}, step {provenance['step']}{f', validation loss {loss:.4f}' if loss else ''}",
        file=sys.stderr,
    )
    for number in range(config.num_samples):
        if config.num_samples > 1:
            print(f"{'' if number == 0 else chr(10)}--- sample {number + 1}")
        write_one(model, tokenizer, provenance, config, prompt, config.seed + number)
    if not prompt and sys.stdin.isatty():
        converse(model, tokenizer, provenance, config)


def write_one(model, tokenizer, provenance: dict, config: GenerateConfig, prompt: str, seed: int) -> None:
    """One text, shown piece by piece, after its prompt."""
    from inference.engine import stream
    from inference.request import Settings
    from inference.sampling import start_ids

    emit(prompt)
    ids = start_ids(tokenizer, prompt, provenance["documents"])
    for piece in stream(model, tokenizer, ids, take(Settings, {**asdict(config), "seed": seed})):
        emit(piece)
    print(flush=True)


def converse(model, tokenizer, provenance: dict, config: GenerateConfig) -> None:
    """Asks for prompts until the end of input; each answer has a seed of its own."""
    seed = config.seed
    while True:
        try:
            prompt = input("\nprompt (empty line or Ctrl-D ends)> ")
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            print(f"that was no {error.encoding} text; once more:")
            continue
        if not prompt:
            return
        seed += 1
        write_one(model, tokenizer, provenance, config, prompt, seed)


def emit(text: str) -> None:
    """Shows text on any terminal: what its encoding cannot show becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def read_prompt(config: GenerateConfig) -> str:
    """The prompt, from the flag or a file.

    Raises:
        UserError: when both are given, or the file cannot be read as text.
    """
    if config.prompt and config.prompt_file:
        raise UserError("--prompt and --prompt_file are both given: leave one out.")
    if not config.prompt_file:
        return config.prompt
    try:
        if config.prompt_file == "-":
            return sys.stdin.buffer.read().decode()
        with open(config.prompt_file, "rb") as file:
            return file.read().decode()
    except OSError as error:
        raise UserError(
            f"the prompt file {config.prompt_file!r} cannot be read ({error.strerror}): check --prompt_file."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt file {config.prompt_file!r} is no UTF-8 text (byte {error.start}): convert it with iconv."
        ) from error


if __name__ == "__main__":
    main()
