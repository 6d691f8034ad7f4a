"""Text as a task: what the loop asks of a corpus. Another modality is another class with these same methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from config import TrainConfig
from data import Batches, Corpus
from inference import engine
from inference.request import Settings
from inference.sampling import start_ids
from training.distributed import Ranks
from training.evaluate import Score, evaluate


class TextTask:
    """Predicting the next token of a corpus.

    Attributes:
        corpus: where the text comes from; its tokenizer is the model's.
    """

    def __init__(self, corpus: Corpus, config: TrainConfig, block_size: int, ranks: Ranks):
        self.corpus, self.config, self.block_size, self.ranks = corpus, config, block_size, ranks
        self.tokenizer = corpus.tokenizer
        self.batches = Batches(corpus.train, block_size, config.batch_size, config.seed)
        self.documents = corpus.meta["train"]["documents"] > 1
        self.provenance = {"data": corpus.meta["source"], "data_hash": corpus.data_hash, "documents": self.documents}

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """This rank's share of a step's batch, what the model is called with: each tensor's first dimension is sequences."""
        return self.batches.batch(step, self.ranks.rank, self.ranks.world)

    def cuts(self, batch: tuple[Tensor, ...], micro: int) -> list[int]:
        """Where the micro-batches of a batch end: all have `micro` sequences."""
        return list(range(micro, len(batch[0]) + 1, micro))

    def evaluate(self, model: nn.Module, limit: int, autocast) -> Score:
        """The validation score, over every token or over about `limit`, evenly spaced."""
        return evaluate(model, self.corpus, self.block_size, self.ranks, limit, autocast)

    def evaluation_tokens(self) -> int:
        """How many tokens the complete evaluation scores."""
        return len(self.corpus.val) - 1

    @torch.no_grad()
    def sample(self, model: nn.Module, seed: int) -> str:
        """A piece of text from the model as it is."""
        was_training = model.training
        model.eval()
        settings = Settings(max_new_tokens=self.config.sample_tokens, seed=seed)
        prompt = start_ids(self.tokenizer, "", self.documents)
        [text] = engine.texts(model, self.tokenizer, prompt, [settings])
        model.train(was_training)
        return text
