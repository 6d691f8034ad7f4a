"""What the front door of training does for a model that sees and hears, where it differs from text: data, plan, report, evaluation."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config import MediaModelConfig, TrainConfig
from model import flops_per_token
from multimodal import judge, sheet
from multimodal.corpus import MediaCorpus, open_corpus
from multimodal.embedded import DESCRIBE, PARTS, STORIES, TRANSCRIBE
from multimodal.encoders import AUDIO, DOWNSAMPLING, IMAGE, IMAGE_TOKENS, flops_per_vector
from multimodal.samples import Picture
from multimodal.task import MediaTask
from tokenizer import Tokenizer
from training.distributed import Ranks

JUDGED, OWN_JUDGED = 200, 500  # rows of each part that answers are judged on
PADDED = 2.3  # what padding and many short rows cost beside the arithmetic, measured on two cores
ON_THE_SHEET = 3  # of each part


def find_corpus(
    config: TrainConfig, model: MediaModelConfig, wanted: int, ready: Tokenizer | None, say: Callable[[str], None], progress: bool
) -> MediaCorpus:
    """The rows that --data names, and a line or two about them. The arguments are those of `open_corpus`."""
    corpus = open_corpus(config, model, wanted, ready, progress)
    total = sum(corpus.shares.values())
    say(
        f"data     {corpus.meta['train']['rows']:,} rows with {corpus.meta['train']['pictures']:,} pictures and "
        f"{corpus.meta['train']['sounds']:,} sounds to train, {corpus.meta['val']['rows']:,} rows to validate, "
        f"{corpus.tokenizer.kind} of {corpus.tokenizer.vocab_size:,}"
    )
    say(f"mix      {', '.join(f'{name} {100 * share / total:.0f} %' for name, share in corpus.shares.items())}")
    for line in corpus.meta["skipped"]:
        say(f"note     {line}")
    return corpus


def plan_hints(corpus: MediaCorpus, model: MediaModelConfig) -> dict[str, float]:
    """What the plan cannot know of rows with media: how long they are on average, and what their encoders cost beside the GPT."""
    rows, media, shares = corpus.train.rows, corpus.train.media, corpus.shares
    vectors = -(-(media.sounds[-1] / max(1, len(media.sounds) - 1)) // DOWNSAMPLING)  # of a sound, on average
    places = arithmetic = 0.0
    for name, share in shares.items():
        if name == STORIES:
            places += share * model.block_size
            continue
        own = rows[rows["part"] == corpus.train.parts.index(name)]
        places += share * own["places"].mean()
        seen, heard = own["pictures"].mean() * IMAGE_TOKENS, own["sounds"].mean() * vectors
        arithmetic += share * (seen * flops_per_vector(model, IMAGE) + heard * flops_per_vector(model, AUDIO))
    encoders = arithmetic / (places * flops_per_token(model))
    # Plain numbers: what follows from them stands in checkpoints, which hold no others.
    return {"row_tokens": float(places / sum(shares.values())), "more_flops": float(1 + encoders), "slower": PADDED}


def judged(corpus: MediaCorpus, model, tokenizer: Tokenizer) -> tuple[list[judge.Verdict], list[judge.Example]]:
    """The answers to every part: to fresh rows of the embedded ones, to the validation rows of a person's own; to none that the block has
    no room for."""
    parts = [part for part in corpus.shares if part in PARTS]
    fresh = judge.embedded_rows(parts, model.config, JUDGED)
    rows = {name: [row for row in some if judge.fits(row, tokenizer, model.config)] for name, some in fresh.items()} | {
        name: some for name, some in corpus.val.some(OWN_JUDGED).items() if name in corpus.shares and name not in PARTS
    }
    found = [judge.judge(model, tokenizer, name, some) for name, some in rows.items() if some]
    return [verdict for verdict, _ in found], [example for _, examples in found for example in examples[:ON_THE_SHEET]]


def write_media(folder: Path, examples: list[judge.Example], rate: int) -> list[str]:
    """Writes the pictures and sounds of some examples as files; for each example the flags that show it to `generate.py`, with what was
    asked last."""
    import soundfile
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    commands = []
    for number, example in enumerate(examples, 1):
        flags, written = [], Counter()
        for part in example.sample.media:
            flag, ending = ("--image", "png") if isinstance(part, Picture) else ("--audio", "wav")
            written[flag] += 1
            name = folder / f"{number}{f'_{written[flag]}' if written[flag] > 1 else ''}.{ending}"
            if isinstance(part, Picture):
                Image.fromarray(part.pixels).save(name)
            else:
                soundfile.write(name, part.wave, rate)
            flags += [flag, str(name)]
        last = [turn for turn in example.sample.turns if turn.role == "user"][-1:]
        asked = "".join(part for turn in last for part in turn.parts if isinstance(part, str))
        if asked not in ("", DESCRIBE, TRANSCRIBE):
            flags += ["--prompt", asked]
        commands.append(shlex.join(flags))
    return commands


def report(corpus: MediaCorpus, model, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Prints how well the model answers, draws a sheet of its answers into a folder, and returns the figures; nothing of plain text,
    where nothing is answered."""
    verdicts, examples = judged(corpus, model, tokenizer)
    if not examples:
        return {}
    path = folder / "examples.png"
    sheet.draw(path, examples, model.config.audio_rate)
    commands = write_media(folder / "examples", examples, model.config.audio_rate)
    print("", *judge.table(verdicts), f"\nexamples {path}", "Ask it about one of them, or about files of your own:", sep="\n")
    print(*(f"  python generate.py {flags}" for flags in commands[::ON_THE_SHEET]), sep="\n")
    return {verdict.part: judge.figures(verdict) for verdict in verdicts}


def evaluate(model, tokenizer: Tokenizer, config: TrainConfig, ranks: Ranks, provenance: dict[str, Any], folder: Path) -> None:
    """Scores a trained model: the loss of its parts, then its answers with their controls, of which a sheet goes into a folder."""
    corpus = find_corpus(config, model.config, 0, tokenizer, print, config.progress)
    score = MediaTask(corpus, config, model.config.block_size, ranks).evaluate(model, 0, None)
    print(f"{provenance['run']} step {provenance['step']} on {corpus.meta['source']}:")
    print(f"{score.loss:.4f} ± {score.loss_se:.4f} nats per token, {score.bpb:.4f} ± {score.bpb_se:.4f} bits per byte")
    for name, part in score.parts.items():
        print(f"  {name:<28}" + "  ".join(f"{key} {value:.4f}" for key, value in part.items()))
    report(corpus, model, tokenizer, folder)
