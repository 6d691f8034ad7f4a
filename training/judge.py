"""Lets a model write stories, and judges them by the rules of the embedded corpus."""

from __future__ import annotations

from dataclasses import dataclass

from corpora import stories
from inference import engine
from inference.request import Settings
from model import GPT
from tokenizer import Tokenizer


@dataclass(frozen=True)
class Judgement:
    """Of `written` stories so many are grammatical, and so many have facts that hold together as well; `faults` are the others' first ones."""

    written: int
    grammatical: int
    consistent: int
    faults: list[str]

    def lines(self) -> list[str]:
        share = [100 * part / self.written for part in (self.grammatical, self.consistent)]
        told = f"of {self.written} stories it writes, {share[0]:.0f} % are grammatical and {share[1]:.0f} % are consistent as well"
        return [told, *[f"  e.g. {fault}" for fault in self.faults[:3]]]


def judge_stories(
    model: GPT, tokenizer: Tokenizer, count: int, temperature: float = 1.0, first_seed: int = 0
) -> Judgement:
    """Writes `count` stories with successive seeds and judges each."""
    settings = [
        Settings(max_new_tokens=model.config.block_size - 1, temperature=temperature, seed=seed)
        for seed in range(first_seed, first_seed + count)
    ]
    texts = engine.texts(model, tokenizer, [tokenizer.eot], settings)
    verdicts = [stories.judge(text) for text in texts]
    return Judgement(
        written=count,
        grammatical=sum(verdict.grammatical for verdict in verdicts),
        consistent=sum(verdict.consistent for verdict in verdicts),
        faults=[verdict.reason for verdict in verdicts if not verdict.consistent],
    )
