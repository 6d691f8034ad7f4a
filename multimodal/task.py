"""Pictures, sounds and text as a task: what the loop asks of the data. Its twin for text alone is `training/text.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from config import TrainConfig
from data import Batches
from model import IGNORE
from multimodal import judge, sheet
from multimodal.batches import Mixture, collate, cuts, media_row
from multimodal.corpus import MediaCorpus, is_held_out
from multimodal.embedded import PARTS, STORIES
from multimodal.fusion import Batch
from training.distributed import Ranks
from training.evaluate import Score, evaluate, ratio

ROWS = 64  # scored in one forward
# Of an answer's words so many are hidden from the model while it goes on with it (word dropout: Bowman et al. 2016, arXiv:1511.06349):
# else it learns, sooner than to look, which word follows which, and never says what it has not read.
WORD_DROPOUT = 0.3
SHOWN = 2  # examples of each part on a sheet
Counts = tuple[int, float, float, float, float]  # of a row: its part, nats, tokens foreseen, tokens, bytes


@dataclass(frozen=True)
class MediaScore(Score):
    """A part's loss is the mean over its rows of each row's nats per token, `loss` the mean over the parts, weighted by their shares. Bits
    per byte are those of the plain text, or where there is none of the answers.

    Attributes:
        parts: of each part its loss, the share of tokens that are foreseen, and of whole answers. Held-out parts are no part of
            the loss.
    """

    parts: dict[str, dict[str, float]] = field(default_factory=dict)

    def brief(self) -> str:
        """Whole answers that are foreseen, part by part."""
        return " ".join(f"{name} {100 * part['exact']:.0f}%" for name, part in self.parts.items() if "exact" in part and not is_held_out(name))


class MediaTask:
    """Answering about pictures and sounds, and going on with text.

    Attributes:
        folder: where sheets of examples go; None writes none.
    """

    def __init__(self, corpus: MediaCorpus, config: TrainConfig, block_size: int, ranks: Ranks, folder: Path | None = None):
        self.corpus, self.config, self.block_size, self.ranks, self.folder = corpus, config, block_size, ranks, folder
        self.tokenizer = corpus.tokenizer
        text = Batches(corpus.text.train, block_size, config.batch_size, config.seed) if corpus.text else None
        self.mixture = Mixture(
            corpus.train, text, STORIES, corpus.shares, config.batch_size, block_size, config.seed,
            augment={name: 0.0 if name in PARTS else config.augment for name in corpus.train.parts}, word_dropout=WORD_DROPOUT,
        )  # fmt: skip
        self.provenance = {"data": corpus.meta["source"], "data_hash": corpus.data_hash, "documents": True}
        self.lengths = torch.from_numpy(np.array(self.tokenizer.byte_lengths()))
        self.shown = [sample for some in corpus.val.some(SHOWN).values() for sample in some]
        self.sheets = 0

    def batch(self, step: int) -> tuple[Batch]:
        """This rank's share of a step's batch."""
        return (self.mixture.batch(step, self.ranks.rank, self.ranks.world),)

    def cuts(self, batch: tuple[Batch], micro: int) -> list[int]:
        """Where the micro-batches of a batch end: those of long rows have fewer."""
        return cuts(batch[0].lengths.tolist(), micro, micro * self.block_size)

    # ---- validation

    def validation_groups(self, share: float) -> list[np.ndarray]:
        """So many of the validation rows, evenly from every part (whose rows stand together), those of like length in one group."""
        places = self.corpus.val.rows["places"]
        some = np.arange(0, len(places), math.ceil(1 / share))
        order = some[np.argsort(places[some], kind="stable")]
        return [order[start : start + ROWS] for start in range(0, len(order), ROWS)]

    def evaluation_tokens(self) -> int:
        """How many tokens the complete evaluation reads."""
        rows = self.corpus.val.rows["places"]
        return int(rows.sum()) + (len(self.corpus.text.val) if self.corpus.text else 0)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, limit: int, autocast) -> MediaScore:
        """Every row, or as many of each part as make about `limit` tokens; the text gets its share of the limit."""
        share = min(1.0, limit / self.evaluation_tokens()) if limit else 1.0
        groups = self.validation_groups(share)
        was_training = model.training
        model.eval()
        rows: list[Counts] = []
        for turn in range(0, len(groups), self.ranks.world):
            mine = turn + self.ranks.rank
            group = groups[min(mine, len(groups) - 1)]  # ranks that share one model's weights call it equally often
            with autocast or torch.autocast(self.ranks.device.type, enabled=False):
                found = self.score_rows(model, group)
            rows += found if mine < len(groups) else []
        model.train(was_training)
        rows = [row for part in self.ranks.gather(rows) for row in part]
        text = None
        if self.corpus.text:
            some = int(share * len(self.corpus.text.val)) if share < 1 else 0
            text = evaluate(model, self.corpus.text, self.block_size, self.ranks, some, autocast)
        return self.score(rows, text)

    def score_rows(self, model: nn.Module, group: np.ndarray) -> list[Counts]:
        shards = self.corpus.val
        batch = collate([media_row(shards, int(n), self.block_size) for n in group], shards, self.block_size).to(self.ranks.device)
        nats, right = model(batch, reduction="none")  # (n,) each
        asked = batch.targets.cpu() != IGNORE
        row_of, targets = asked.nonzero()[:, 0], batch.targets.cpu()[asked]  # (n,) each
        sums = torch.zeros(4, len(group), dtype=torch.float64)  # which MPS does not have
        for line, values in zip(sums, (nats.cpu(), right.cpu(), torch.ones(len(row_of)), self.lengths[targets]), strict=True):
            line.index_add_(0, row_of, values.double())
        parts = shards.rows["part"][group].tolist()
        return [(part, *row) for part, row in zip(parts, sums.T.tolist(), strict=True)]

    def score(self, rows: list[Counts], text: Score | None) -> MediaScore:
        """From the counts of all rows."""
        names = self.corpus.val.parts
        part, nats, right, tokens, n_bytes = (np.array(column) for column in zip(*rows, strict=True))
        means = nats / tokens
        found = {
            name: {
                "loss": float(means[part == number].mean()),
                "accuracy": float(right[part == number].sum() / tokens[part == number].sum()),
                "exact": float((right == tokens)[part == number].mean()),
            }
            for number, name in enumerate(names)
            if (part == number).any()
        }
        shares = np.array([0 if is_held_out(name) else self.corpus.shares.get(name, 0) for name in names])
        counts = np.bincount(part, minlength=len(names))
        terms = means * (shares / np.maximum(counts, 1))[part]  # (n,)
        total = shares[counts > 0].sum()
        if text:
            found[STORIES] = {"loss": text.loss}
            terms, total = np.append(terms, self.corpus.shares[STORIES] * text.terms), total + self.corpus.shares[STORIES]
        se = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
        terms = terms / total if total else means / len(means)
        loss = math.fsum(terms)
        bpb, bpb_se = (text.bpb, text.bpb_se) if text else ratio(nats / math.log(2), n_bytes)
        return MediaScore(
            loss=loss, loss_se=se, perplexity=math.exp(min(loss, 700)), bpb=bpb, bpb_se=bpb_se, parts=found,
            tokens=int(tokens.sum()) + (text.tokens if text else 0), bytes=text.bytes if text else int(n_bytes.sum()), terms=terms,
        )  # fmt: skip

    # ---- what is shown

    def sample(self, model: nn.Module, seed: int) -> str:
        """Answers to a few rows of each part, beside the truth; with a folder, also as a picture. Plain text has no answers."""
        if not self.shown:
            return ""
        was_training = model.training
        model.eval()
        found = judge.examples(model, self.tokenizer, self.shown)
        model.train(was_training)
        self.sheets += 1
        if self.folder:
            sheet.draw(self.folder / f"examples_{self.sheets:03d}.png", found, model.config.audio_rate)
        return "\n".join(f"{each.asked} -> {each.answer}{'' if each.right else f' ({each.truth})'}" for each in found)
