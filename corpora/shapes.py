"""Drawn shapes, and what can be said of them: pictures to learn seeing from, made on the spot.

A scene holds one thing, or two of which the first is left of the other or above it. `draw` paints it, `caption` describes
it, `questions` asks about it; all follow from the scene alone. Some pairs of colour and shape never occur in training (`HELD_OUT`):
a model that names them in a picture has learned colours and shapes, and no list of pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (214, 40, 40), "orange": (245, 140, 25), "yellow": (245, 225, 50), "green": (40, 160, 60),
    "blue": (40, 80, 215), "purple": (140, 50, 170), "white": (250, 250, 250), "black": (15, 15, 15),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = {"small": (0.12, 0.15), "large": (0.19, 0.23)}  # radius, of the picture's side
COLUMNS, ROWS = ("left", "", "right"), ("top", "", "bottom")
OPPOSITE = {"left of": "right of", "above": "below"}
HELD_OUT = frozenset(
    pair for number, pair in enumerate(itertools.product(COLOURS, SHAPES)) if number % 7 == 3
)  # 7 of 48 pairs, of all shapes and most colours


@dataclass(frozen=True)
class Thing:
    """One drawn thing. `x` and `y` are its middle, from the left and the top, 0 to 1; `turn` in radians."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    turn: float

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Where it is, in words of a grid of three by three."""
        column, row = (min(2, int(3 * at)) for at in (self.x, self.y))
        return f"{ROWS[row]} {COLUMNS[column]}".strip() or "middle"


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. With two things, `relation` is the first one's to the second."""

    things: tuple[Thing, ...]
    relation: str
    seed: int  # of its background and noise


def scenes(n: int, seed: int, things: int = 1, held_out: bool = False) -> Iterator[Scene]:
    """`n` scenes of one or two things. Held-out ones hold only pairs of colour and shape that no other scene has."""
    random = np.random.default_rng((seed, things, held_out))
    pairs = [pair for pair in itertools.product(COLOURS, SHAPES) if (pair in HELD_OUT) == held_out]
    for _ in range(n):
        yield one_thing(random, pairs) if things == 1 else two_things(random, pairs)


def one_thing(random: np.random.Generator, pairs: list[tuple[str, str]]) -> Scene:
    column, row = random.integers(3, size=2)
    x, y = (np.array((column, row)) + 0.5) / 3 * 0.78 + 0.11 + random.uniform(-0.03, 0.03, size=2)
    return Scene((thing(random, pairs, x, y),), "", int(random.integers(2**32)))


def two_things(random: np.random.Generator, pairs: list[tuple[str, str]]) -> Scene:
    """Two things of different colour and different shape, so that each can be asked for by either."""
    relation = list(OPPOSITE)[random.integers(2)]
    along = random.uniform(0.22, 0.27), random.uniform(0.73, 0.78)
    across = random.uniform(0.38, 0.62, size=2)
    first, second = zip(along, across, strict=True) if relation == "left of" else zip(across, along, strict=True)
    one = thing(random, pairs, *first)
    others = [(colour, shape) for colour, shape in pairs if colour != one.colour and shape != one.shape]
    return Scene((one, thing(random, others, *second)), relation, int(random.integers(2**32)))


def thing(random: np.random.Generator, pairs: list[tuple[str, str]], x: float, y: float) -> Thing:
    colour, shape = pairs[random.integers(len(pairs))]
    size = list(SIZES)[random.integers(2)]
    return Thing(colour, shape, size, float(x), float(y), float(random.uniform(*SIZES[size])), float(random.uniform(-0.2, 0.2)))


# ---- what is said of it


def caption(scene: Scene) -> str:
    """One thing with its place, or two with how they stand to each other."""
    first = scene.things[0]
    if len(scene.things) == 1:
        return f"a {first.name}, {first.place}"
    return f"a {first.name} {scene.relation} a {scene.things[1].name}"


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions with their answers, in words that `corpora.speech` can say."""
    asked = [("how many", "one" if len(scene.things) == 1 else "two")]
    for each in scene.things:
        it = "it" if len(scene.things) == 1 else None
        asked += [
            (f"what colour is {it or 'the ' + each.shape}", each.colour),
            (f"what shape is {it or each.colour}", each.shape),
            (f"what size is {it or 'the ' + each.shape}", each.size),
            (f"where is {it or 'the ' + each.shape}", each.place),
        ]
    if scene.relation:
        first, second = scene.things
        for this, word, that in ((first, scene.relation, second), (second, OPPOSITE[scene.relation], first)):
            asked.append((f"what is {word} the {that.shape}", f"a {this.name}"))
    return asked


# ---- the picture


def draw(scene: Scene, side: int = 32) -> np.ndarray:
    """The scene as (side, side, 3) uint8, its edges antialiased."""
    random = np.random.default_rng(scene.seed)
    grid = (np.arange(side) + 0.5) / side
    grey, slope = random.uniform(105, 180), random.uniform(-30, 30, size=2)
    shade = grey + slope[0] * (grid[None] - 0.5) + slope[1] * (grid[:, None] - 0.5)  # (side, side)
    picture = shade[..., None] + random.uniform(-10, 10, size=3)  # (side, side, 3)
    for each in scene.things:
        across, down = grid[None] - each.x, grid[:, None] - each.y
        cos, sin = math.cos(each.turn), math.sin(each.turn)
        u, v = (cos * across + sin * down) / each.radius, (cos * down - sin * across) / each.radius
        cover = np.clip(0.5 - distance(each.shape, u, v) * each.radius * side, 0, 1)[..., None]
        paint = np.clip(np.array(COLOURS[each.colour]) + random.uniform(-14, 14, size=3), 0, 255)
        picture = picture * (1 - cover) + paint * cover
    picture += random.normal(0, random.uniform(0, 5), size=picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far points are outside a shape of radius 1 (negative inside), about: exact near its edge is enough to smooth it.

    `u` runs right, `v` down. Polygons are the formulas of Quilez, iquilezles.org/articles/distfunctions2d.
    """
    if shape == "circle":
        return np.hypot(u, v) - 0.95
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.8
    if shape == "triangle":
        return np.maximum(0.866 * np.abs(u) - 0.5 * v, v) - 0.5
    if shape == "cross":
        long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        return np.maximum(long - 1.0, short - 0.3)
    if shape == "star":
        return star(u, v)
    x, y = np.abs(u), 0.55 - v * 1.05  # the heart stands on its tip
    upper = np.hypot(x - 0.45, y - 0.75) - 0.5
    lower = np.maximum(0.75 * x - 0.66 * (y + 0.45), y - 0.75)
    return np.minimum(upper, lower)


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points: each point of the plane is folded into one half of a spike, where the edge is one line."""
    angle, r = np.arctan2(u, -v), np.hypot(u, v)
    folded = np.abs((angle + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)  # 0 at a spike, pi / 5 between two
    tip, dent = np.array((0.0, 1.05)), 0.45 * np.array((math.sin(math.pi / 5), math.cos(math.pi / 5)))
    along = dent - tip
    normal = np.array((-along[1], along[0])) / np.hypot(*along)
    return (r * np.sin(folded) - tip[0]) * normal[0] + (r * np.cos(folded) - tip[1]) * normal[1]
