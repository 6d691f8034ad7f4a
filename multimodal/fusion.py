"""A GPT that sees and hears: what its encoders make of a picture or a sound takes the place of words in the row.

Nothing else about the GPT changes: it stays causal, and its cache, its head and its loss are those of `model.py`. In the ids of a
row each vector of a picture or a sound has a place of its own, a negative number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config import MediaModelConfig
from model import GPT, IGNORE, MODELS, HeadLoss, KVCache
from multimodal.encoders import SLOTS, AudioEncoder, ImageEncoder, sound_slots
from multimodal.samples import Picture, Sound
from multimodal.spectrogram import frames_of, log_mel

IMAGE, AUDIO = -1, -2  # ids of the places of pictures and sounds in training


@dataclass
class Batch:
    """Rows of conversations, with the pictures and sounds that stand in them. A slice of it is a batch of some of its rows.

    Attributes:
        idx: (B, T) ids, IMAGE and AUDIO where a vector of a picture or a sound stands.
        targets: (B, T), IGNORE where nothing is learned.
        weights: (B, T) how much each target counts; a row's sum is its share of the loss.
        lengths: (B,) tokens of each row; what is behind them is padding.
        pictures: (N, S, S, 3) uint8, and `picture_rows` (N,) the rows that they stand in, in order.
        spectrograms: (M, F, MELS), `frames` (M,) of each, and `sound_rows` (M,).
    """

    idx: Tensor
    targets: Tensor
    weights: Tensor
    lengths: Tensor
    pictures: Tensor
    picture_rows: Tensor
    spectrograms: Tensor
    frames: Tensor
    sound_rows: Tensor

    def __len__(self) -> int:
        return len(self.idx)

    def __getitem__(self, rows: slice) -> Batch:
        """Some rows, no longer than the longest of them."""
        lengths = self.lengths[rows]
        T, start, stop = int(lengths.max()), *rows.indices(len(self))[:2]
        seen = (self.picture_rows >= start) & (self.picture_rows < stop)
        heard = (self.sound_rows >= start) & (self.sound_rows < stop)
        frames = self.frames[heard]
        F = int(frames.max()) if len(frames) else 0
        return Batch(
            self.idx[rows, :T], self.targets[rows, :T], self.weights[rows, :T], lengths,
            self.pictures[seen], self.picture_rows[seen] - start,
            self.spectrograms[heard, :F], frames, self.sound_rows[heard] - start,
        )  # fmt: skip

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(*(part.to(device, non_blocking=non_blocking) for part in vars(self).values()))


class MultimodalGPT(GPT):
    """`model(batch)` is the loss of a `Batch`; with plain ids it is the GPT that it is built on."""

    kind = "multimodal"

    def __init__(self, config: MediaModelConfig):
        super().__init__(config)
        self.image = ImageEncoder(config) if "image" in config.kinds else None
        self.audio = AudioEncoder(config) if "audio" in config.kinds else None

    def forward(
        self, idx: Tensor | Batch, targets: Tensor | None = None, cache: KVCache | None = None, reduction: str = "mean"
    ) -> Tensor:
        """The loss of a batch in nats: each row's own, weighted, and of those the mean. Other calls are `GPT.forward`."""
        if not isinstance(idx, Batch):
            return super().forward(idx, targets, cache, reduction)
        x, targets, weights = self.scored(idx)
        return HeadLoss.apply(x, self.head.weight, targets, weights / len(idx), self.config.vocab_size)

    def scored(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Where something is to be predicted: the residual stream (n, C), targets (n,), weights (n,)."""
        x = self.hidden(batch.idx, x=self.read(batch))  # (B, T, C)
        places = batch.targets != IGNORE
        return x[places], batch.targets[places], batch.weights[places]

    def read(self, batch: Batch) -> Tensor:
        """The embeddings of a batch's rows, (B, T, C)."""
        seen = self.look(batch.pictures).flatten(0, 1) if len(batch.pictures) else None
        heard = self.listen(batch.spectrograms, batch.frames) if len(batch.frames) else None
        x = self.wte(batch.idx.clamp(min=0))
        for encoder, place, found in ((self.image, IMAGE, seen), (self.audio, AUDIO, heard)):
            if found is not None:
                x = put(x, batch.idx == place, found)
            elif encoder is not None and self.training and torch.distributed.is_initialized():
                x = x + 0 * sum(weight.sum() for weight in encoder.parameters())  # other ranks' gradients wait for ours
        return x

    def look(self, pictures: Tensor) -> Tensor:
        """(N, S, S, 3) to (N, SLOTS, C)."""
        return self.image(pictures)

    def listen(self, spectrograms: Tensor, frames: Tensor) -> Tensor:
        """(M, F, MELS) to the vectors of all, one after the other, (n, C)."""
        heard = self.audio(spectrograms, frames)  # (M, F / SHRINK, C)
        own = torch.arange(heard.size(1), device=heard.device) < sound_slots(frames)[:, None]
        return heard[own]

    # ---- for the engine

    def places(self, medium: Picture | Sound) -> list[int]:
        """The ids of its places: negative, and others for other content, so that what is kept of one text is not taken for the
        beginning of another."""
        content = medium.pixels if isinstance(medium, Picture) else medium.wave
        first = int.from_bytes(hashlib.blake2b(content.tobytes(), digest_size=7).digest(), "big")
        return [-1 - (first << 7 | n % 128) for n in range(slots(medium, self.config))]

    @torch.no_grad()
    def encode(self, media: Sequence[Picture | Sound]) -> Tensor:
        """The vectors of pictures and sounds, in their order: (n, C)."""
        weight = self.wte.weight
        found = []
        for each in media:
            if isinstance(each, Picture):
                found.append(self.look(torch.from_numpy(each.pixels)[None].to(weight.device))[0])
            else:
                mel = log_mel(torch.from_numpy(each.wave), self.config.audio_rate).to(weight.device)
                found.append(self.listen(mel[None], torch.tensor([len(mel)], device=weight.device)))
        return torch.cat(found).to(weight.dtype)

    def fuse(self, idx: Tensor, vectors: Tensor) -> Tensor:
        """Embeddings of ids (B, T), those of the negative ones taken from `vectors` (n, C) in order: (B, T, C)."""
        return put(self.wte(idx.clamp(min=0)), idx < 0, vectors)


def put(x: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """Embeddings (B, T, C) with others (n, C) at the n true places (B, T)."""
    return x.masked_scatter(places[..., None], vectors.to(x.dtype))


def slots(medium: Picture | Sound, config: MediaModelConfig) -> int:
    """How many places a picture or a sound takes in a row."""
    if isinstance(medium, Picture):
        return SLOTS
    return sound_slots(frames_of(len(medium.wave), config.audio_rate))


MODELS[MultimodalGPT.kind] = (MultimodalGPT, MediaModelConfig)
