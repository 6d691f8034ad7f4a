"""Rows to batches: which rows, how augmented, how padded. The batch of step k is a pure function of (seed, k)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Batches
from model import IGNORE
from multimodal.encoders import AUDIO, FRAME_MULTIPLE, IMAGE, IMAGE_TOKENS, TOKEN_MULTIPLE, audio_tokens, rounded
from multimodal.fusion import Batch
from multimodal.shards import Shards
from multimodal.spectrogram import MELS

PERIOD = 1024  # rows after which the order of the parts repeats
ROTATION, ZOOM, SHIFT, BRIGHTNESS = 0.15, 0.12, 0.08, 0.25  # of pictures: radians, scale, of the side, brightness and contrast
TEMPO, PITCH, LOUDNESS, MASKED = 0.1, 0.06, 0.1, 6  # of sounds: share of the length, of the bands, log10 / 4, bands or frames


class Mixture:
    """The training batches of several parts: text of its own, and rows with pictures and sounds.

    Args:
        shards: rows with media.
        text: rows of plain text, all tokens of which are learned; None where there is none.
        shares: how often a row of each part is drawn, in any unit. `text` stands under its own name.
        augment: how far the pictures and sounds of each part are augmented; 1 is as far as they stand it, 0 not at all.
        word_dropout: share of an answer's words that are hidden from what goes on with it.
    """

    def __init__(
        self, shards: Shards, text: Batches | None, text_name: str, shares: dict[str, float],
        batch_size: int, block_size: int, seed: int, augment: dict[str, float], word_dropout: float = 0.0,
    ):  # fmt: skip
        self.shards, self.text, self.batch_size, self.block_size, self.seed = shards, text, batch_size, block_size, seed
        self.augment, self.word_dropout = augment, word_dropout
        self.names = [name for name in (*shards.parts, text_name) if shares.get(name)]
        self.own = {name: np.flatnonzero(shards.rows["part"] == shards.parts.index(name)) for name in self.names if name in shards.parts}
        self.order = interleave([shares[name] for name in self.names], PERIOD)
        self.before = np.stack([np.cumsum(self.order == part) - (self.order == part) for part in range(len(self.names))])
        self.epochs: dict[tuple[str, int], np.ndarray] = {}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """This rank's share of a step's rows, sorted by length, so that those of a micro-batch are alike."""
        first = step * self.batch_size
        rows = [self.draw(n) for n in range(first, first + self.batch_size)]
        rows.sort(key=lambda row: row.places)
        words = torch.from_numpy(np.unique(np.concatenate([[], *(self.shards.seen[n] for row in rows for n, _ in row.pictures)]))).long()
        return collate(rows[rank::world], self.shards, self.block_size, words, mean_root(rows))

    def draw(self, n: int) -> Row:
        """Row n of the endless sequence."""
        round_, place = divmod(n, PERIOD)
        part = self.order[place]
        name = self.names[part]
        number = round_ * int((self.order == part).sum()) + int(self.before[part, place])  # of its own part
        if name not in self.own:
            return text_row(self.text.row(number))
        own = self.own[name]
        epoch, at = divmod(number, len(own))
        random = np.random.default_rng((self.seed, n))
        return media_row(self.shards, int(own[self.shuffled(name, epoch)[at]]), self.block_size, random, self.augment[name], self.word_dropout)

    def shuffled(self, name: str, epoch: int) -> np.ndarray:
        """The order of a part's rows in one epoch."""
        if (name, epoch) not in self.epochs:
            self.epochs.pop((name, epoch - 2), None)
            random = np.random.default_rng((self.seed, epoch, self.names.index(name)))
            self.epochs[name, epoch] = random.permutation(len(self.own[name]))
        return self.epochs[name, epoch]


def interleave(shares: list[float], length: int) -> np.ndarray:
    """Parts in turn, each as often as its share says and as evenly as can be: (length,) numbers of parts."""
    wanted = np.array(shares) / sum(shares)
    given, order = np.zeros(len(shares)), []
    for n in range(1, length + 1):
        part = int(np.argmax(wanted * n - given))
        given[part] += 1
        order.append(part)
    return np.array(order)


class Row:
    """A row on its way into a batch: ids with every place of its media, what is learned of them, and how its media are augmented."""

    def __init__(self, ids: np.ndarray, learned: np.ndarray, pictures: list, sounds: list, inputs: np.ndarray | None = None):
        self.ids, self.learned, self.pictures, self.sounds = ids, learned, pictures, sounds
        self.inputs = ids if inputs is None else inputs
        self.places = len(ids) - 1
        self.asked = int(learned[1:].sum())


def text_row(ids: np.ndarray) -> Row:
    return Row(ids, np.ones(len(ids), bool), [], [])


def media_row(
    shards: Shards, n: int, block_size: int, random: np.random.Generator | None = None, augment: float = 0.0, word_dropout: float = 0.0
) -> Row:
    """A row of the shards, as it is, or (with `random`) augmented. Sounds that are spoken slower have more places, as long as the block has
    room for them."""
    ids, learned, pictures, sounds = shards.row(n)
    frames = [int(shards.media.sounds[sound + 1] - shards.media.sounds[sound]) for sound in sounds]
    warps = [None] * len(frames)
    if random is not None and augment:
        warps = [random.uniform(-1, 1, 7) * augment for _ in frames]
        slower = [max(1, round(length * (1 + TEMPO * warp[0]))) for length, warp in zip(frames, warps, strict=True)]
        room = block_size + 1 - len(ids) + len(frames) - len(pictures) * (IMAGE_TOKENS - 1)
        if sum(map(audio_tokens, slower)) <= room:
            frames = slower
    counts = np.ones(len(ids), int)
    counts[ids == IMAGE] = IMAGE_TOKENS
    counts[ids == AUDIO] = [audio_tokens(length) for length in frames]
    shown = [(picture, random.uniform(-1, 1, 7) * augment if random is not None and augment else None) for picture in pictures]
    heard = list(zip(sounds, frames, warps, strict=True))
    inputs = ids
    if random is not None and word_dropout:
        inputs = np.where(learned & (random.random(len(ids)) < word_dropout), ids[0], ids)  # hidden: read as the end of text that begins a row
    ids, learned = with_ends(ids, learned)
    return Row(*(np.repeat(part, counts) for part in (ids, learned)), shown, heard, np.repeat(inputs, counts))


def with_ends(ids: np.ndarray, learned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets: after every answer the end of text is to be said, though what is read there is the next turn. A model that was told so only
    after the last answer would not stop after the others."""
    ends = np.flatnonzero(learned[:-1] & ~learned[1:]) + 1
    ids, learned = ids.copy(), learned.copy()
    ids[ends], learned[ends] = ids[0], True
    return ids, learned


def mean_root(rows: list[Row]) -> float:
    """The square root of how many words are learned of a row, on average."""
    return float(np.mean([math.sqrt(row.asked) for row in rows]))


def collate(rows: list[Row], shards: Shards, block_size: int, words: Tensor | None = None, root: float = 0.0) -> Batch:
    """Rows as tensors, padded. A row counts as the root of how many words are learned of it, and they share that: if all words counted
    alike a story would drown thirty answers of one word, if all rows did they would drown the story (square averaging: Chen et al.
    2024, arXiv:2412.05271).

    Args:
        words: ids of all that is seen in the pictures of the step.
        root: the `mean_root` of the step's rows, where these are but some of them.
    """
    root = root or mean_root(rows)
    T = min(block_size, rounded(max(row.places for row in rows), TOKEN_MULTIPLE))
    idx = torch.zeros(len(rows), T, dtype=torch.int64)
    targets, weights = torch.full_like(idx, IGNORE), torch.zeros(len(rows), T)
    for n, row in enumerate(rows):
        ids, learned = torch.from_numpy(row.ids.astype(np.int64)), torch.from_numpy(row.learned)
        idx[n, : row.places] = torch.from_numpy(row.inputs[:-1].astype(np.int64))
        targets[n, : row.places] = torch.where(learned[1:], ids[1:], IGNORE)
        weights[n, : row.places] = learned[1:] / (math.sqrt(row.asked) * root)
    pictures = [picture for row in rows for picture in row.pictures]
    sounds = [sound for row in rows for sound in row.sounds]
    spectrograms, frames = spectrogram_batch(shards, sounds)
    spectrograms = F.pad(spectrograms, (0, 0, 0, -spectrograms.size(1) % FRAME_MULTIPLE))  # (M, F, MELS)
    picture_rows = [n for n, row in enumerate(rows) for _ in row.pictures]
    sound_rows = [n for n, row in enumerate(rows) for _ in row.sounds]
    return Batch(
        idx=idx, targets=targets, weights=weights, lengths=torch.tensor([row.places for row in rows]),
        pictures=picture_batch(shards, pictures), picture_rows=torch.tensor(picture_rows, dtype=torch.int64),
        spectrograms=spectrograms, frames=frames, sound_rows=torch.tensor(sound_rows, dtype=torch.int64),
        seen=pad([shards.seen[number] for number, _ in pictures]), heard=pad([shards.heard[number] for number, _, _ in sounds]),
        words=torch.empty(0, dtype=torch.int64) if words is None else words,
    )  # fmt: skip


def cuts(lengths: list[int], micro: int, most: int) -> list[int]:
    """Where micro-batches end, for rows sorted by length, the shortest first: such as [24, 40, 48, 64].

    There are len(lengths) / micro of them, cut so that together they hold the fewest padded tokens, and none more than `most`, what
    `micro` rows of a full block hold. Dynamic programming over the ends that are multiples of `unit`: a CPU likes few sizes.
    """
    unit = math.gcd(micro, max(8, len(lengths) // 32))
    ends = np.arange(unit, len(lengths) + 1, unit)  # (E,) where a piece may end, and the next one begin
    longest = [min(most // micro, rounded(lengths[end - 1], TOKEN_MULTIPLE)) for end in ends]  # a block need be no multiple, as in `collate`
    places = (ends - (ends - unit)[:, None]) * np.array(longest, float)  # (E begin, E end)
    places[(places <= 0) | (places > most)] = np.inf
    cost, came_from = places[0], []  # (E,) of all pieces up to an end, and where the last of them began
    for _ in range(len(lengths) // micro - 1):
        sums = cost[:-1, None] + places[1:]
        came_from.append(sums.argmin(0))
        cost = sums.min(0)
    last = len(ends) - 1
    found = [last] + [last := int(each[last]) for each in reversed(came_from)]
    return [int(ends[n]) for n in reversed(found)]


def pad(rows: list[np.ndarray]) -> Tensor:
    """Rows of ids with IGNORE behind the shorter ones: (N, L)."""
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IGNORE) if rows else torch.empty(0, 0, dtype=torch.int64)


def picture_batch(shards: Shards, pictures: list[tuple[int, np.ndarray | None]]) -> Tensor:
    """Pictures, turned, shifted, scaled and lit as their warps say: (N, S, S, 3) uint8."""
    if not pictures:
        return torch.empty(0, 1, 1, 3, dtype=torch.uint8)
    plain = torch.from_numpy(np.stack([shards.media.pictures[number] for number, _ in pictures]))
    if all(warp is None for _, warp in pictures):
        return plain
    warps = stacked([warp for _, warp in pictures])  # (N, 7)
    angle, scale = ROTATION * warps[:, 0], 1 + ZOOM * warps[:, 1:3]
    cos, sin = angle.cos(), angle.sin()
    maps = torch.stack(
        (torch.stack((cos * scale[:, 0], -sin * scale[:, 1], 2 * SHIFT * warps[:, 3]), 1),
         torch.stack((sin * scale[:, 0], cos * scale[:, 1], 2 * SHIFT * warps[:, 4]), 1)), 1)  # fmt: skip
    x = plain.permute(0, 3, 1, 2).float()  # (N, 3, S, S)
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast, bright = 1 + BRIGHTNESS * warps[:, 5], 128 * BRIGHTNESS * warps[:, 6]
    x = (x - 128) * contrast[:, None, None, None] + 128 + bright[:, None, None, None]
    return x.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def stacked(warps: list[np.ndarray | None]) -> Tensor:
    """Bends as one tensor, zero for what is left as it is: (N, 7)."""
    return torch.tensor(np.stack([np.zeros(7) if warp is None else warp for warp in warps]), dtype=torch.float32)


def spectrogram_batch(shards: Shards, sounds: list[tuple[int, int, np.ndarray | None]]) -> tuple[Tensor, Tensor]:
    """Spectrograms, stretched to their frames and augmented: (M, F, MELS) and frames (M,)."""
    frames = torch.tensor([length for _, length, _ in sounds], dtype=torch.int64)
    if not sounds:
        return torch.empty(0, 0, MELS), frames
    own = [torch.from_numpy(shards.media.spectrogram(number).astype(np.float32)) for number, _, _ in sounds]
    padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)  # (M, F_in, MELS)
    if all(warp is None for *_, warp in sounds):
        return padded, frames
    warps = stacked([warp for *_, warp in sounds])  # (M, 7)
    lengths = torch.tensor([len(each) for each in own])
    out = int(frames.max())
    at = (torch.arange(out) + 0.5)[None] * (lengths / frames)[:, None]  # (M, F): where each frame comes from,
    at = at.minimum(lengths[:, None] - 0.5)  # and never from the padding, which depends on the company
    band = (torch.arange(MELS) + 0.5)[None] * (1 + PITCH * warps[:, 1:2]) + 2 * warps[:, 2:3]  # (M, MELS): another tract
    grid = torch.stack(torch.broadcast_tensors((2 * band / MELS - 1)[:, None], (2 * at / padded.size(1) - 1)[..., None]), -1)
    x = F.grid_sample(padded[:, None], grid, padding_mode="border", align_corners=False)[:, 0]  # (M, F, MELS)
    x = x + LOUDNESS * warps[:, 3, None, None]
    low, early = (warps[:, 4] + 1) / 2 * MELS, (warps[:, 5] + 1) / 2 * frames
    wide = MASKED * warps[:, 6].abs()
    hidden = between(torch.arange(MELS)[None], low, wide)[:, None] | between(torch.arange(out)[None], early, wide)[..., None]
    floor = x.amin(dim=(1, 2), keepdim=True)
    x = torch.where(hidden, floor, x)
    return x * (torch.arange(out) < frames[:, None])[..., None], frames


def between(places: Tensor, start: Tensor, width: Tensor) -> Tensor:
    return (places >= start[:, None]) & (places < (start + width)[:, None])
