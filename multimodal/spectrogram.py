"""Sound as a picture of its pitches: the logarithm of its energy in bands of the mel scale, a hundred times a second."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

MELS = 40  # bands
FRAMES = 100  # a second
WINDOW = 0.032  # seconds that a frame looks at


@torch.no_grad()
def log_mel(wave: Tensor, rate: int) -> Tensor:
    """Of a wave (n,) or waves (N, n) within -1 to 1: (..., frames, MELS), most of it between -1 and 1.5.

    Scaled as Whisper's (Radford et al. 2022, arXiv:2212.04356, section 2.2): what is 80 dB below the loudest is floor.
    """
    hop, size = rate // FRAMES, 2 ** math.ceil(math.log2(WINDOW * rate))
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.stft(wave, size, hop, window=window, return_complex=True, pad_mode="constant")  # (..., bins, frames + 1)
    power = spectrum[..., : frames_of(wave.size(-1), rate)].abs().square()
    energy = (mel_bands(rate, size).to(wave.device) @ power).mT  # (..., frames, MELS)
    loud = energy.clamp(min=1e-10).log10()
    floor = loud.amax(dim=(-2, -1), keepdim=True) - 8
    return (loud.maximum(floor) + 4) / 4


def frames_of(samples: int, rate: int) -> int:
    """How many frames a sound of so many samples has."""
    return max(1, samples // (rate // FRAMES))


@functools.cache
def mel_bands(rate: int, size: int) -> Tensor:
    """Triangles that overlap by half, evenly spaced in mels (O'Shaughnessy 1987): (MELS, size / 2 + 1)."""

    def mels(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    edges = torch.linspace(float(mels(torch.tensor(20.0))), float(mels(torch.tensor(rate / 2))), MELS + 2)
    bins = mels(torch.linspace(0, rate / 2, size // 2 + 1))
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
