"""Eyes and ears: a picture or a sound becomes a few vectors that stand among the embeddings of the words.

Both are built alike: convolutions that take in details and shrink the picture, then a few of the GPT's own blocks in which every
place looks at every other, then a projection to the width of the GPT. Convolutions come first because small models learn to see
sooner with them than with attention alone (Xiao et al. 2021, arXiv:2106.14881).

Shapes: N pictures or sounds, C = n_embd, F frames of the spectrogram.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import MediaModelConfig, ModelConfig
from model import Block, rotary_table
from multimodal.spectrogram import FRAMES, MELS

GRID = 8  # places a side after the convolutions
IMAGE_TOKENS = (GRID // 2) ** 2  # vectors of a picture
DOWNSAMPLING = 8  # frames to a vector of a sound
TOKEN_MULTIPLE, FRAME_MULTIPLE = 16, 64  # tokens of rows, and frames of sounds, are padded to multiples of these: see `rounded`
TEMPO_ROOM = 1.25  # room for sounds that training slows down
IMAGE, AUDIO = -1, -2  # ids of the places of pictures and sounds in training


def rounded(n: int, step: int) -> int:
    """The next multiple of `step`. A CPU's kernels are made for each shape that comes, at a cost of many steps: so few shapes come."""
    return -(-n // step) * step


def audio_tokens(frames: int | Tensor) -> int | Tensor:
    """How many vectors a sound of so many frames becomes: 12.5 a second."""
    return -(-frames // DOWNSAMPLING)


class Encoder(nn.Module):
    """The blocks that both share, and the projection to the GPT.

    Args:
        width: of what is projected, in multiples of C.
        places: how many the blocks have at most.
    """

    def __init__(self, config: MediaModelConfig, width: int, places: int):
        super().__init__()
        shape = ModelConfig(
            architecture="modern", vocab_size=1, n_layer=config.encoder_layers, n_head=config.n_head, n_embd=config.n_embd,
            block_size=places, dropout=config.dropout,
        )  # fmt: skip
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layer))
        cos, sin = rotary_table(shape)
        self.register_buffer("cos", cos, persistent=False)  # (places, 1, D / 2)
        self.register_buffer("sin", sin, persistent=False)
        self.norm = nn.LayerNorm(width * config.n_embd)
        self.proj = nn.Linear(width * config.n_embd, config.n_embd)
        # The logits' scale and minus their bias (as SigLIP has: Zhai et al. 2023, arXiv:2303.15343). Of shape (1,): FSDP splits dimension 0.
        self.sharpness, self.doubt = nn.Parameter(torch.tensor([4.0])), nn.Parameter(torch.tensor([3.0]))
        self.register_load_state_dict_pre_hook(rows_of_one)

    def reset_parameters(self, std: float) -> None:
        """Blocks begin as the identity; what comes out is as large as the embedding of a word, `std`."""
        for block in self.blocks:
            block.attn.causal = False
            for matrix in (module for module in block.modules() if isinstance(module, nn.Linear)):
                nn.init.normal_(matrix.weight, std=0.02)
            for matrix in block.output_projections():
                nn.init.zeros_(matrix.weight)
        nn.init.normal_(self.proj.weight, std=std / math.sqrt(self.proj.in_features))
        nn.init.zeros_(self.proj.bias)

    def words(self, vectors: Tensor, embeddings: Tensor) -> Tensor:
        """How well each vector fits each word: (N, T, C) and embeddings (V, C) to logits (N, T, V)."""
        return self.sharpness * (vectors @ embeddings.T.to(vectors.dtype)) - self.doubt


def rows_of_one(encoder: Encoder, state: dict, prefix: str, *_unused) -> None:
    """Older checkpoints hold these numbers without a dimension."""
    for name in ("sharpness", "doubt"):
        if prefix + name in state:
            state[prefix + name] = state[prefix + name].view(1)


class Conv(nn.Module):
    """A 3 × 3 convolution, GroupNorm of one group, GELU."""

    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, b)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


class ImageEncoder(Encoder):
    """Pictures (N, S, S, 3) uint8 to (N, IMAGE_TOKENS, C)."""

    def __init__(self, config: MediaModelConfig):
        super().__init__(config, 1, IMAGE_TOKENS)
        C, count = config.n_embd, int(math.log2(config.image_size / GRID))
        widths = [3, *(C // 4 + C // 2 * n // max(1, count - 1) for n in range(count - 1)), 3 * C // 4]
        self.convs = nn.ModuleList(conv for a, b in itertools.pairwise(widths) for conv in (Conv(a, b, 2), Conv(b, b, 1)))
        self.widen = nn.Linear(4 * widths[-1], C)
        self.places = nn.Parameter(torch.empty(IMAGE_TOKENS, C))
        self.reset_parameters(config.embedding_std)

    def reset_parameters(self, std: float) -> None:
        super().reset_parameters(std)
        nn.init.normal_(self.places, std=0.5)

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures.to(self.places.dtype) / 127.5 - 1).permute(0, 3, 1, 2)  # (N, 3, S, S)
        for conv in self.convs:
            x = conv(x)  # half the side at every second
        x = F.pixel_unshuffle(x, 2)  # (N, 4 C', GRID / 2, GRID / 2)
        x = self.widen(x.flatten(2).mT) + self.places  # (N, IMAGE_TOKENS, C)
        still = torch.ones_like(self.cos), torch.zeros_like(self.sin)  # places are learned: nothing is turned
        for block in self.blocks:
            x = block(x, still)
        return self.proj(self.norm(x))  # (N, IMAGE_TOKENS, C)


class AudioEncoder(Encoder):
    """Spectrograms (N, F, MELS), each with its own number of frames, to (N, F / DOWNSAMPLING, C)."""

    def __init__(self, config: MediaModelConfig):
        super().__init__(config, 2, 2 * audio_tokens(rounded(math.ceil(TEMPO_ROOM * config.audio_seconds * FRAMES), FRAME_MULTIPLE)))
        C = config.n_embd
        self.convs = nn.ModuleList(nn.Conv1d(a, C, 3, stride, padding=1) for a, stride in ((MELS, 2), (C, 2)))
        self.blank = nn.Linear(C, 1)
        self.reset_parameters(config.embedding_std)

    def forward(self, spectrograms: Tensor, frames: Tensor) -> Tensor:
        """`frames` (N,): how many of each are its own. What lies behind them changes nothing."""
        spectrograms = F.pad(spectrograms, (0, 0, 0, -spectrograms.size(1) % DOWNSAMPLING))
        x = spectrograms.to(self.proj.weight.dtype).mT  # (N, MELS, F)
        x = level(x, inside(frames, x.size(2))[:, None])
        for conv in self.convs:
            frames = -(-frames // conv.stride[0])
            x = F.gelu(conv(x))  # (N, C, F')
            x = x * inside(frames, x.size(2))[:, None]
        x, own = x.mT, inside(frames, x.size(2))  # (N, F / 4, C)
        rotary = self.cos[: x.size(1)], self.sin[: x.size(1)]
        for block in self.blocks:
            x = block(x, rotary, own[:, None, None])
        x = (x * own[..., None]).unflatten(1, (-1, 2)).flatten(2)  # (N, F / DOWNSAMPLING, 2 C)
        return self.proj(self.norm(x))


def level(x: Tensor, own: Tensor) -> Tensor:
    """Spectrograms (N, MELS, F) less the mean of each band over the sound's own frames (N, 1, F), and 0 elsewhere: so what a microphone
    or a room adds to a band throughout is gone before anything is learned (cepstral mean normalisation: Atal 1974)."""
    x = x * own
    return (x - x.sum(2, keepdim=True) / own.sum(2, keepdim=True)) * own


def flops_per_vector(config: MediaModelConfig, place: int) -> float:
    """Arithmetic of training for each vector that an encoder makes, as `model.flops_per_token` counts it: of a picture for IMAGE, of a
    sound for AUDIO. Attention is left out: its rows are short."""
    C = config.n_embd
    block = 4 * C * C + 3 * C * ModelConfig(architecture="modern", n_head=config.n_head, n_embd=C).n_inner
    if place == AUDIO:
        convs = 3 * C * (DOWNSAMPLING // 2 * MELS + DOWNSAMPLING // 4 * C)
        return 6 * (convs + 2 * config.encoder_layers * block + 2 * C * C)
    convs = 9 * (C // 4) * (3 + C // 4) * (config.image_size / 2) ** 2 + 9 * (3 * C // 4) * C * GRID * GRID  # the first and the last
    return 6 * (convs / IMAGE_TOKENS + 3 * C * C + config.encoder_layers * block + C * C)


def inside(lengths: Tensor, places: int) -> Tensor:
    """True where a place belongs to its row: lengths (N,) to (N, places)."""
    return torch.arange(places, device=lengths.device) < lengths[:, None]
