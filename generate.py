"""Writes text from a checkpoint, as it is made: `python generate.py --prompt "Once upon a time"`.

With neither a prompt nor a prompt file it writes one sample, then asks for prompts if it stands on a terminal. With `--image` or
`--audio` a model that sees or hears answers, as in a chat: `python generate.py --image cat.png --prompt "what is this"`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

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
    prompt, files = read_prompt(config), read_files(config)
    import torch

    import checkpoint
    import multimodal.fusion  # noqa: F401  the checkpoint may be of a model that sees and hears
    from inference import weights
    from training import distributed, process

    device = distributed.pick_device(config.device)
    process.tune_process(device)
    model, tokenizer, provenance = checkpoint.load_model(config.checkpoint, device)
    weights.prepare(model, getattr(torch, config.dtype))
    media = decoded(files, model.config)
    loss = provenance.get("val_loss")
    print(
        f"{provenance['run']}, step {provenance['step']}{f', validation loss {loss:.4f}' if loss else ''}",
        file=sys.stderr,
    )
    for number in range(config.num_samples):
        if config.num_samples > 1:
            print(f"{'' if number == 0 else chr(10)}--- sample {number + 1}")
        if media:
            answer(model, tokenizer, provenance, config, media, prompt, config.seed + number)
        else:
            write_one(model, tokenizer, provenance, config, prompt, config.seed + number)
    if not (prompt or media) and sys.stdin.isatty():
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


def answer(model, tokenizer, provenance: dict, config: GenerateConfig, media: list, prompt: str, seed: int) -> None:
    """The answer to pictures, then sounds, then the prompt, shown piece by piece.

    Raises:
        UserError: when the context has no room for them.
    """
    from inference.dialogue import Chat, Message, Trim
    from inference.engine import stream
    from inference.request import Settings

    chat = Chat(tokenizer, provenance.get("chat_template") or "", provenance["documents"], model.places)
    question = prompt or usual_question(config)
    asked = chat.prompt([Message("user", (*media, question))], model.config.block_size, config.max_new_tokens)
    if len(asked.ids) > model.config.block_size:
        raise UserError(f"all this takes {len(asked.ids)} tokens; the context of this model is {model.config.block_size}: leave some out.")
    settings = take(Settings, {**asdict(config), "seed": seed, "stop": (*config.stop, *asked.stop)})
    trim = Trim(asked.plain)  # a transcript's answer begins with a space that is no part of it
    for piece in stream(model, tokenizer, asked.ids, settings, asked.media):
        emit(trim(piece))
    print(flush=True)


def usual_question(config: GenerateConfig) -> str:
    """What is asked where there is no prompt, as in the embedded data: of a picture and a sound, the sound is the question."""
    from multimodal.embedded import DESCRIBE, TRANSCRIBE

    return "" if config.image and config.audio else DESCRIBE if config.image else TRANSCRIBE


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


def read_files(config: GenerateConfig) -> list[tuple[str, str, bytes]]:
    """The pictures, then the sounds, as they lie on the disk: modality, path and bytes of each.

    Raises:
        UserError: for one that cannot be read.
    """
    found = []
    for modality in ("image", "audio"):
        for path in getattr(config, modality):
            try:
                found.append((modality, path, Path(path).read_bytes()))
            except OSError as error:
                raise UserError(f"{path!r} cannot be read ({error.strerror}): check --{modality}.") from error
    return found


def decoded(files: list[tuple[str, str, bytes]], model_config) -> list:
    """The files as the model takes them.

    Raises:
        UserError: when it takes none of a kind, or one is no picture or sound for it.
    """
    from multimodal.decode import Unreadable, read_picture, read_sound

    readers: dict[str, Callable] = {"image": read_picture, "audio": read_sound}
    media = []
    for modality, path, data in files:
        kinds = getattr(model_config, "kinds", ())
        if modality not in kinds:
            takes = " and ".join(("text", *kinds))
            raise UserError(f"--{modality} {path}: this model takes {takes}: pass the --checkpoint of one with --modalities {modality}.")
        try:
            media.append(readers[modality](data, model_config))
        except Unreadable as error:
            raise UserError(f"{path!r} {error}: check --{modality}.") from error
    return media


if __name__ == "__main__":
    main()
