"""Procedurally drawn scenes with exact captions: the vocabulary, the geometry, the splits and the renderer.

A scene holds one object, or two of different colours that do not touch; its caption says everything about it but where
exactly things are: "a small blue diamond above a large orange triangle on a white background". Scenes are pure
functions of (seed, index, split), so that a data set of them is random access, needs no files and never ends, and they
are measured in units of the image side, so that one scene renders at every resolution (exact super-resolution pairs).
"""

import dataclasses
import functools
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Any two colours are at least 110 grey levels apart in RGB, and so is each of them from each background.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 20, 40),
    "orange": (250, 125, 0),
    "yellow": (255, 235, 45),
    "green": (25, 155, 50),
    "cyan": (40, 210, 235),
    "blue": (30, 60, 225),
    "purple": (130, 20, 160),
    "pink": (255, 125, 200),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
RELATIONS = ("left of", "right of", "above", "below")
SPLITS = ("train", "validation", "test")

# Half the extent of an object in units of the image side, uniform in [low, high], by the number of objects: at 32 pixels
# a lone object is 15 to 16 (small) or 23 to 25 (large) pixels wide; of two, 8 to 10 or 12 to 13, for two large ones must
# fit side by side. The size words compare within a picture of that kind.
RADII: dict[int, dict[str, tuple[float, float]]] = {
    1: {"small": (0.23, 0.25), "large": (0.36, 0.39)},
    2: {"small": (0.13, 0.15), "large": (0.19, 0.21)},
}
SIZES = tuple(RADII[1])
MARGIN = 0.03  # from an object's bounding box to the image's edge
GAP = 0.09  # between two bounding boxes along the relation's axis: two empty pixels at the least at 32 pixels

# One pair for each colour and each shape; a caption with any of them is in the test split alone.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(zip(COLOURS, SHAPES[3:] + SHAPES[:3], strict=True))


class ObjectWords(NamedTuple):
    """What a caption says of one object."""

    size: str
    colour: str
    shape: str


@dataclasses.dataclass(frozen=True)
class Description:
    """What a caption says: one or two objects, the first's relation to the second (None for one), the background."""

    objects: tuple[ObjectWords, ...]
    relation: str | None
    background: str


@dataclasses.dataclass(frozen=True)
class Object:
    """One drawn object. `x` (rightwards) and `y` (downwards) are its centroid and `radius` is half its extent, all in
    units of the image side."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects, the relation of the first to the second (None for one) and the background's name."""

    objects: tuple[Object, ...]
    relation: str | None
    background: str


def describe(scene: Scene) -> Description:
    """Returns what the scene's caption says."""
    objects = tuple(ObjectWords(thing.size, thing.colour, thing.shape) for thing in scene.objects)
    return Description(objects, scene.relation, scene.background)


def caption(description: Description) -> str:
    """Returns the one caption of a description; `parse_caption` is its inverse.

    >>> caption(Description((ObjectWords("large", "red", "circle"),), None, "black"))
    'a large red circle on a black background'
    """
    things = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in description.objects]
    return f" {description.relation} ".join(things) + f" on a {description.background} background"


def _one_of(words: Sequence[str]) -> str:
    return f"({'|'.join(words)})"


_OBJECT = f"a {_one_of(SIZES)} {_one_of(tuple(COLOURS))} {_one_of(SHAPES)}"
_CAPTION = re.compile(f"{_OBJECT}(?: {_one_of(RELATIONS)} {_OBJECT})? on a {_one_of(tuple(BACKGROUNDS))} background")


def parse_caption(text: str) -> Description:
    """Returns the description whose caption is `text`.

    Raises:
        ValueError: if `text` is not a caption that `caption` could have written.
    """
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"text is not a scene's caption: got {text!r}, want 'a SIZE COLOUR SHAPE [RELATION a SIZE COLOUR SHAPE] on "
            f"a BACKGROUND background' with SIZE in {SIZES}, COLOUR in {tuple(COLOURS)}, SHAPE in {SHAPES}, RELATION "
            f"in {RELATIONS} and BACKGROUND in {tuple(BACKGROUNDS)}"
        )
    words = match.groups()
    first, relation, second, background = ObjectWords(*words[:3]), words[3], words[4:7], words[7]
    if relation is None:
        return Description((first,), None, background)
    if first.colour == second[1]:
        raise ValueError(f"the two objects of a scene have different colours: got {first.colour} twice in {text!r}")
    return Description((first, ObjectWords(*second)), relation, background)


def split_of(description: Description) -> str:
    """Returns the one split that a caption belongs to: the three share no caption.

    "test" if an object is one of HELD_OUT_PAIRS, else "validation" for one caption in ten, picked by its CRC, else
    "train". Swapping the objects of a validation caption ("A left of B", "B right of A") may give a training caption.
    """
    if any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in description.objects):
        return "test"
    return "validation" if zlib.crc32(caption(description).encode()) % 10 == 0 else "train"


def _draw_description(rng: np.random.Generator, max_objects: int) -> Description:
    """Draws each choice uniformly, except that the second object has another colour than the first."""
    count = int(rng.integers(1, max_objects + 1))
    colours, first = tuple(COLOURS), int(rng.integers(len(COLOURS)))
    second = (first + int(rng.integers(1, len(COLOURS)))) % len(COLOURS)
    sizes, shapes = rng.integers(len(SIZES), size=2), rng.integers(len(SHAPES), size=2)
    objects = (
        ObjectWords(SIZES[sizes[0]], colours[first], SHAPES[shapes[0]]),
        ObjectWords(SIZES[sizes[1]], colours[second], SHAPES[shapes[1]]),
    )
    relation = RELATIONS[rng.integers(len(RELATIONS))] if count == 2 else None
    return Description(objects[:count], relation, tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))])


def _place(
    rng: np.random.Generator, radii: Sequence[float], relation: str | None, spread: float
) -> list[tuple[float, float]]:
    """Draws the centres (x, y) inside the margin: a lone one in the middle part `spread` of it; two apart along the
    relation's axis by the gap or more, with an offset across it of at most half the distance along it, so that nobody
    could name another relation."""
    low, high = MARGIN + np.asarray(radii), 1.0 - MARGIN - np.asarray(radii)
    if relation is None:
        x, y = 0.5 + spread * (rng.uniform(low[0], high[0], size=2) - 0.5)
        return [(float(x), float(y))]
    near, far = (0, 1) if relation in ("left of", "above") else (1, 0)
    distance = rng.uniform(radii[0] + radii[1] + GAP, high[far] - low[near])
    along, across = np.empty(2), np.empty(2)
    along[near] = rng.uniform(low[near], high[far] - distance)
    along[far] = along[near] + distance
    across[0] = rng.uniform(low[0], high[0])
    across[1] = rng.uniform(max(low[1], across[0] - distance / 2), min(high[1], across[0] + distance / 2))
    x, y = (along, across) if relation in ("left of", "right of") else (across, along)
    return [(float(x[0]), float(y[0])), (float(x[1]), float(y[1]))]


def draw_scene(seed: int, index: int, split: str = "train", max_objects: int = 2, spread: float = 1.0) -> Scene:
    """Draws scene number `index` of a split, a pure function of its arguments.

    Args:
        seed: names the whole data set, 0 <= seed < 2**64.
        index: the scene's number, 0 <= index < 2**64; no scene depends on another.
        split: one of SPLITS (see `split_of`); splits, seeds and indices have independent random streams.
        max_objects: 1 for one object, 2 for one or two with equal probability (before the split refuses captions).
        spread: how far a lone object strays from the middle: 1 anywhere inside the margin, 0 never (easier to learn).

    Raises:
        ValueError: if an argument is out of its range.
    """
    if split not in SPLITS:
        raise ValueError(f"split is one of {SPLITS}: got {split!r}")
    if max_objects not in (1, 2):
        raise ValueError(f"max_objects is 1 or 2: got {max_objects!r}")
    if not 0 <= spread <= 1:
        raise ValueError(f"spread is in [0, 1]: got {spread}")
    if not (0 <= seed < 2**64 and 0 <= index < 2**64):
        raise ValueError(f"seed and index are in [0, 2**64): got {seed} and {index}")
    # Philox maps (key, counter) to random bits: what names a scene is the key and the counter's high words, which the
    # draws, counted in the low words, never reach.
    key = np.array([seed, index], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, max_objects, SPLITS.index(split)]))
    description = _draw_description(rng, max_objects)
    while split_of(description) != split:
        description = _draw_description(rng, max_objects)
    radii = [rng.uniform(*RADII[len(description.objects)][thing.size]) for thing in description.objects]
    objects = tuple(
        Object(thing.colour, thing.shape, thing.size, x, y, radius)
        for thing, radius, (x, y) in zip(
            description.objects, radii, _place(rng, radii, description.relation, spread), strict=True
        )
    )
    return Scene(objects, description.relation, description.background)


def _loops(shape: str) -> list[np.ndarray]:
    """Returns the closed outlines [N, 2] of a shape, in any position and scale; a hole runs the other way round."""
    turn = 2.0 * np.pi * np.arange(64) / 64.0
    circle = np.stack([np.sin(turn), -np.cos(turn)], axis=1)
    if shape == "circle":
        return [circle]
    if shape == "ring":
        return [circle, 0.5 * circle[::-1]]
    if shape == "heart":
        y = -13.0 * np.cos(turn) + 5.0 * np.cos(2.0 * turn) + 2.0 * np.cos(3.0 * turn) + np.cos(4.0 * turn)
        return [np.stack([16.0 * np.sin(turn) ** 3, y], axis=1)]
    if shape == "star":
        spikes = np.pi * np.arange(10) / 5.0
        return [np.stack([np.sin(spikes), -np.cos(spikes)], axis=1) * np.tile([1.0, 0.45], 5)[:, None]]
    if shape == "cross":
        a, b = 0.36, 1.0
        half = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return [np.array(half + [(-x, -y) for x, y in half])]
    corners = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1), (1.15, 0.8), (-1.15, 0.8)],
        "diamond": [(0, -1), (0.85, 0), (0, 1), (-0.85, 0)],
    }
    return [np.array(corners[shape], np.float64)]


@functools.cache
def shape_edges(shape: str) -> np.ndarray:
    """Returns the outline of a shape of radius 1 as directed edges [E, 4] of (x0, y0, x1, y1), its centroid at (0, 0).

    The largest |coordinate| is 1, for a square 0.9, lest it look larger than the others."""
    edges = np.concatenate([np.concatenate([loop, np.roll(loop, -1, axis=0)], axis=1) for loop in _loops(shape)])
    x0, y0, x1, y1 = edges.T
    cross = x0 * y1 - x1 * y0
    centroid = np.array([np.sum((x0 + x1) * cross), np.sum((y0 + y1) * cross)]) / (3.0 * np.sum(cross))
    edges = edges - np.tile(centroid, 2)
    return edges * ((0.9 if shape == "square" else 1.0) / np.abs(edges).max())


@functools.cache
def shape_area(shape: str) -> float:
    """Returns the area of a shape of radius 1."""
    x0, y0, x1, y1 = shape_edges(shape).T
    return float(np.sum(x0 * y1 - x1 * y0) / 2.0)


def coverage(shape: str, x: float, y: float, radius: float, image_size: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Returns the fraction of each pixel that a shape covers, exactly (antialiasing without samples).

    The area of a polygon right of the line x = c within a pixel row is the sum over its directed edges of
    integral max(0, x_edge(y) - c) dy; a pixel's coverage is the difference of that between its two sides.

    Args:
        shape: one of SHAPES.
        x: centroid, rightwards, in units of the image side; what is outside the image is cut off.
        y: centroid, downwards.
        radius: half the extent, in units of the image side.
        image_size: pixels per side.

    Returns:
        ((rows, columns), cover): where the shape's bounding box is in the image, and float64 in [0, 1] of that shape.
    """
    edges = (shape_edges(shape) * radius + np.array([x, y, x, y])) * image_size
    low = np.clip(np.floor(edges.reshape(-1, 2).min(axis=0)), 0, image_size).astype(int)
    high = np.clip(np.ceil(edges.reshape(-1, 2).max(axis=0)), low, image_size).astype(int)
    x0, y0, x1, y1 = edges.T
    rows = np.arange(low[1], high[1])[:, None]
    start, stop = np.minimum(np.maximum(y0, rows), rows + 1), np.minimum(np.maximum(y1, rows), rows + 1)  # [R, E]
    row, edge = np.nonzero(start != stop)
    start, stop = start[row, edge], stop[row, edge]  # [P], the pieces of edges within one row each
    slope, x0, y0 = ((x1 - x0) / np.where(y1 == y0, 1.0, y1 - y0))[edge], x0[edge], y0[edge]
    sides = np.arange(low[0], high[0] + 1)
    first, last = (x0 + (start - y0) * slope)[:, None] - sides, (x0 + (stop - y0) * slope)[:, None] - sides  # [P, C+1]
    least, most = np.minimum(first, last), np.maximum(first, last)
    crossing = np.maximum(most, 0.0) ** 2 / (2.0 * np.maximum(most - least, 1e-12))
    right = np.where(least >= 0.0, (least + most) / 2.0, crossing) * (stop - start)[:, None]
    area = (row == rows - low[1]).astype(np.float64) @ right  # [R, C+1]
    cover = np.clip(area[:, :-1] - area[:, 1:], 0.0, 1.0)
    return (slice(low[1], high[1]), slice(low[0], high[0])), cover


def render(scene: Scene, image_size: int) -> np.ndarray:
    """Draws a scene; returns uint8 [image_size, image_size, 3]. Coverage is exact, so that a render of twice the size,
    averaged over 2 by 2 pixels, is the smaller one up to rounding."""
    image = np.empty((image_size, image_size, 3))
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        box, cover = coverage(thing.shape, thing.x, thing.y, thing.radius, image_size)
        image[box] += cover[..., None] * (np.array(COLOURS[thing.colour]) - image[box])
    return (image + 0.5).astype(np.uint8)
