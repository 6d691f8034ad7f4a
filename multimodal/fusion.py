"""A GPT that sees and hears: what its encoders make of a picture or a sound takes the place of words in the row.

Nothing else about the GPT changes: it stays causal, and its cache, its head and its loss are those of `model.py`. In the ids of a
row each vector of a picture or a sound has a place of its own, a negative number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from config import MediaModelConfig, UserError
from model import GPT, IGNORE, MODELS, KVCache, head_loss, token_losses
from multimodal.encoders import (
    AUDIO,
    FRAME_MULTIPLE,
    IMAGE,
    IMAGE_TOKENS,
    TOKEN_MULTIPLE,
    AudioEncoder,
    ImageEncoder,
    audio_tokens,
    inside,
    rounded,
)
from multimodal.samples import Picture, Sound
from multimodal.spectrogram import frames_of, log_mel

# Weights of how ill pictures and sounds fit their words, beside the loss of the answers. Sounds have the lesser one: what is pulled hard
# towards a word has little room to say which word of the sentence it is, and answers then repeat words or leave some out.
SEEN_WEIGHT, HEARD_WEIGHT = 0.3, 0.1


@dataclass
class Batch:
    """Rows of conversations, with the pictures and sounds that stand in them. A slice of it is a batch of some of its rows.

    Attributes:
        idx: (B, T) ids, IMAGE and AUDIO where a vector of a picture or a sound stands.
        targets: (B, T), IGNORE where nothing is learned.
        weights: (B, T) how much each target counts; a row's sum is its share of the loss, over a whole step 1 on average.
        lengths: (B,) tokens of each row; what is behind them is padding.
        pictures: (N, S, S, 3) uint8, and `picture_rows` (N,) the rows that they stand in, in order.
        spectrograms: (M, F, MELS), `frames` (M,) of each, and `sound_rows` (M,).
        seen: (N, L) ids of the words of each picture, IGNORE behind them; none where nobody knows them. `heard` (M, L) of each sound.
        words: (W,) ids of all that is seen in the step's pictures, those of other micro-batches and ranks too.
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
    seen: Tensor
    heard: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.idx)

    def __getitem__(self, rows: slice) -> Batch:
        """Some rows, hardly longer than the longest of them."""
        lengths = self.lengths[rows]
        T, start, stop = rounded(int(lengths.max()), TOKEN_MULTIPLE), *rows.indices(len(self))[:2]
        shown = (self.picture_rows >= start) & (self.picture_rows < stop)
        said = (self.sound_rows >= start) & (self.sound_rows < stop)
        frames = self.frames[said]
        most = rounded(int(frames.max()), FRAME_MULTIPLE) if len(frames) else 0
        return Batch(
            self.idx[rows, :T], self.targets[rows, :T], self.weights[rows, :T], lengths,
            self.pictures[shown], self.picture_rows[shown] - start,
            self.spectrograms[said, :most], frames, self.sound_rows[said] - start, self.seen[shown], self.heard[said], self.words,
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

    @torch.no_grad()
    def take_over(self, weights: dict[str, Tensor]) -> None:
        """Starts from the weights of another model. An encoder that it does not bring begins with vectors as large as its words."""
        fresh = [kind for kind in self.config.kinds if not any(name.startswith(f"{kind}.") for name in weights)]
        own = {name: weight for name, weight in self.state_dict().items() if name.split(".")[0] in fresh}
        super().take_over({**own, **weights})
        for kind in fresh:
            getattr(self, kind).reset_parameters(float(self.wte.weight[: self.config.vocab_size].std()))

    def freeze(self, parts: Sequence[str]) -> None:
        """Leaves some parts as they are in training: `image`, `audio`, or `gpt`, which is all the rest.

        Raises:
            UserError: for a part that this model does not have, or when nothing is left to train.
        """
        for part in parts:
            if part not in ("gpt", *self.config.kinds):
                raise UserError(f"freeze names {part!r}; this model has {', '.join(('gpt', *self.config.kinds))}.")
        for name, weight in self.named_parameters():
            part = name.split(".")[0]
            weight.requires_grad_((part if part in ("image", "audio") else "gpt") not in parts)
        if not any(weight.requires_grad for weight in self.parameters()):
            raise UserError(f"freeze is {','.join(parts)!r}, which leaves nothing to train: leave one out.")

    def forward(
        self, idx: Tensor | Batch, targets: Tensor | None = None, cache: KVCache | None = None, reduction: str = "mean"
    ) -> Tensor:
        """The loss of a batch in nats: the mean over its rows of each one's weighted cross-entropy, and how badly the vectors of what is seen
        and heard fit the known words, times `SEEN_WEIGHT` and `HEARD_WEIGHT`. With the reduction `none`, (2, n): each target's loss, and
        whether it was the likeliest token. Called with plain ids it is `GPT.forward`."""
        if not isinstance(idx, Batch):
            return super().forward(idx, targets, cache, reduction)
        batch = idx
        seen = self.image(batch.pictures) if len(batch.pictures) else None  # (N, IMAGE_TOKENS, C)
        heard = self.audio(batch.spectrograms, batch.frames) if len(batch.frames) else None  # (M, F / DOWNSAMPLING, C)
        x = self.hidden(batch.idx, x=self.read(batch, seen, heard))  # (B, T, C)
        asked = batch.targets != IGNORE
        x, targets, weights = x[asked], batch.targets[asked], batch.weights[asked]  # (n, C), (n,), (n,)
        if reduction == "none":
            return torch.stack((token_losses(x, self.head.weight[: self.config.vocab_size], targets), self.logits(x).argmax(-1) == targets))
        loss = head_loss(x, self.head.weight, targets, weights / len(batch), self.config.vocab_size)
        if seen is not None:
            loss = loss + SEEN_WEIGHT * self.seen_words_loss(batch, seen).sum() / len(batch)
        if heard is not None:
            loss = loss + HEARD_WEIGHT * self.heard_words_loss(batch, heard).sum() / len(batch)
        return loss

    def seen_words_loss(self, batch: Batch, seen: Tensor) -> Tensor:
        """The loss of each picture whose words are known, in nats, (N,): its vectors, on the whole, should be like the embeddings of these
        words, and not like those of the step's other words (captions as bags of labels: Joulin et al. 2016, arXiv:1511.02251)."""
        fits = self.image.words(seen.mean(1), self.wte(batch.words)).float()  # (N, W)
        there = (batch.seen[..., None] == batch.words).any(1).float()  # (N, W)
        return F.binary_cross_entropy_with_logits(fits, there, reduction="none").sum(1) * (batch.seen != IGNORE).any(1)

    def heard_words_loss(self, batch: Batch, heard: Tensor) -> Tensor:
        """The loss of each sound whose words are known, in nats a word, (M,): its vectors, one after the other, should be like the
        embeddings of these words in their order, with anything between them (CTC, Graves et al. 2006; beside a decoder's own loss:
        Kim et al. 2017, arXiv:1609.06773). Ears that learn from answers alone take several times as long."""
        fits = self.audio.words(heard, self.wte.weight[: self.config.vocab_size])  # (M, T, V)
        fits = torch.cat((fits, self.audio.blank(heard)), dim=-1).float().log_softmax(-1).transpose(0, 1)  # (T, M, V + 1)
        lengths = (batch.heard != IGNORE).sum(1)
        words, places = batch.heard.clamp(min=0), audio_tokens(batch.frames)
        losses = F.ctc_loss(fits, words, places, lengths, blank=self.config.vocab_size, reduction="none", zero_infinity=True)
        return losses * (lengths > 0) / lengths.clamp(min=1)

    def read(self, batch: Batch, seen: Tensor | None, heard: Tensor | None) -> Tensor:
        """The embeddings of a batch's rows, (B, T, C): of its words, and what the encoders made of its pictures (N, IMAGE_TOKENS, C) and of
        its sounds (M, F / DOWNSAMPLING, C)."""
        seen = None if seen is None else seen.flatten(0, 1)
        heard = None if heard is None else own(heard, batch.frames)
        x = self.wte(batch.idx.clamp(min=0))
        for encoder, place, found in ((self.image, IMAGE, seen), (self.audio, AUDIO, heard)):
            if found is not None:
                x = put(x, batch.idx == place, found)
            elif encoder is not None and self.training:  # a gradient of zero, as where another rank has the step's pictures
                x = x + 0 * sum(weight.sum() for weight in encoder.parameters() if weight.requires_grad)
        return x

    # ---- for the engine

    def places(self, medium: Picture | Sound) -> list[int]:
        """The ids of its places: negative, and others for other content, so that what is kept of one text is not taken for the
        beginning of another."""
        content = medium.pixels if isinstance(medium, Picture) else medium.wave
        first = int.from_bytes(hashlib.blake2b(content.tobytes(), digest_size=7).digest(), "big")
        return [-1 - (first << 7 | n % 128) for n in range(token_count(medium, self.config))]

    @torch.no_grad()
    def encode(self, media: Sequence[Picture | Sound]) -> Tensor:
        """The vectors of pictures and sounds, in their order: (n, C)."""
        weight = self.wte.weight
        found = []
        for each in media:
            if isinstance(each, Picture):
                found.append(self.image(torch.tensor(each.pixels)[None].to(weight.device))[0])
            else:
                mel = log_mel(torch.tensor(each.wave), self.config.audio_rate).to(weight.device)
                found.append(self.audio(mel[None], torch.tensor([len(mel)], device=weight.device))[0])
        return torch.cat(found).to(weight.dtype)

    def fuse(self, idx: Tensor, vectors: Tensor) -> Tensor:
        """Embeddings of ids (B, T), those of the negative ones taken from `vectors` (n, C) in order: (B, T, C)."""
        return put(self.wte(idx.clamp(min=0)), idx < 0, vectors)


def own(heard: Tensor, frames: Tensor) -> Tensor:
    """The vectors of all sounds, one after the other, without padding: (M, F / DOWNSAMPLING, C) to (n, C)."""
    return heard[inside(audio_tokens(frames), heard.size(1))]


def put(x: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """Embeddings (B, T, C) with others (n, C) at the n true places (B, T)."""
    return x.masked_scatter(places[..., None], vectors.to(x.dtype))


def token_count(medium: Picture | Sound, config: MediaModelConfig) -> int:
    """How many places a picture or a sound takes in a row."""
    if isinstance(medium, Picture):
        return IMAGE_TOKENS
    return audio_tokens(frames_of(len(medium.wave), config.audio_rate))


MODELS[MultimodalGPT.kind] = (MultimodalGPT, MediaModelConfig)
