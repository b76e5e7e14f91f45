"""Reads a picture of a scene back, without learning, and says how much of a caption it shows.

Analysis by synthesis: what differs from the background is split into connected components; each one's colour is the
nearest of the palette, and its shape the one that, drawn by the renderer of the training set at the component's own
centroid and area, leaves the smallest squared error of coverage. A shape that none of them explains is no shape.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from diffusion_jax.data import scenes

MAX_COLOUR_DISTANCE = 70.0  # grey levels in RGB from a name's own colour; the nearest two names are 113 apart
FOREGROUND_DISTANCE = 45.0  # grey levels from the background; the nearest colour is 113 from its background
# Squared error of coverage over area, beyond what the noise explains. Of real renders at 32 pixels 99.5 % stay below
# 0.006, with noise of standard deviation 16 below 0.035; a small object blurred by 1.5 pixels has 0.05 to 0.12.
MAX_SHAPE_ERROR = 0.05
MAX_NOISE = 16.0  # grey levels, standard deviation: no more than that is forgiven, lest a noisy border excuse a blob
MIN_AREA = 0.4 * scenes.RADII[2]["small"][0] ** 2 * min(map(scenes.shape_area, scenes.SHAPES))  # of the image: a speck
# Radius between small and large, in image sides, by the number of objects.
SIZE_BORDERS = {count: (radii["small"][1] + radii["large"][0]) / 2.0 for count, radii in scenes.RADII.items()}
MAX_COMPONENTS = 4  # the largest ones are read, all are counted
MIN_IMAGE_SIZE = 24


class Component(NamedTuple):
    """One thing seen. `colour` and `shape` are None when no name fits; x, y and radius are in image sides."""

    size: str
    colour: str | None
    shape: str | None
    x: float
    y: float
    radius: float
    shape_error: float


class Reading(NamedTuple):
    """What a picture shows: the number of things, the largest of them, the background's name (None if no name fits)."""

    count: int
    components: tuple[Component, ...]
    background: str | None


class Scores(NamedTuple):
    """What of a caption a picture shows. `colour`, `shape` and `size` are right if they are for every object of the
    caption, `colour_and_shape` is the fraction of its objects with both right; `relation` is true if none is stated;
    `all` says that count, colour, shape, size, relation and background are right."""

    count: bool
    colour: bool
    shape: bool
    size: bool
    relation: bool
    background: bool
    colour_and_shape: float
    all: bool


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= MAX_COLOUR_DISTANCE else None


def _background(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the background's colour [3] and the noise's variance per channel, from the image's outermost pixels.

    The median says which pixels are background; their mean is what noise that was cut off at 0 or 255 leaves."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    near = border[np.linalg.norm(border - np.median(border, axis=0), axis=1) < 2.0 * FOREGROUND_DISTANCE]
    if len(near) == 0:
        return np.median(border, axis=0), 0.0
    return near.mean(axis=0), min(float(near.var(axis=0).mean()), MAX_NOISE**2)


def _fit(shape: str, cover: np.ndarray, x: float, y: float, area: float) -> tuple[float, float]:
    """Returns (squared error / area, radius) of a shape with the given centroid and area; area in image sides."""
    radius = float(np.sqrt(area / scenes.shape_area(shape)))
    box, drawn = scenes.coverage(shape, x, y, radius, len(cover))
    inside = cover[box]
    error = np.sum(cover**2) - np.sum(inside**2) + np.sum((inside - drawn) ** 2)
    return float(error / (area * cover.size)), radius


def _read_component(
    image: np.ndarray, near: np.ndarray, solid: np.ndarray, background: np.ndarray, noise: float, size_border: float
) -> Component:
    """Reads one component.

    Args:
        image: float [N, N, 3].
        near: bool [N, N], the pixels that belong to this component rather than to another or to the background.
        solid: bool [N, N], those of them that differ clearly from the background.
        background: float [3].
        noise: variance per channel.
        size_border: the radius between small and large.
    """
    size = len(image)
    offset = image - background
    distance = np.linalg.norm(offset, axis=-1)
    core = solid & (distance >= 0.8 * np.percentile(distance[solid], 90))
    axis = offset[core].mean(axis=0)  # from the background to the object's own colour
    contrast = max(float(axis @ axis), FOREGROUND_DISTANCE**2)
    cover = np.where(near, offset @ axis / contrast, 0.0)
    if cover.sum() < MIN_AREA * cover.size:  # no one colour explains it: a texture; its mask says where it is
        cover = solid.astype(np.float64)
    area = cover.sum() / size**2
    centres = (np.arange(size) + 0.5) / size
    x, y = cover.sum(axis=0) @ centres / cover.sum(), cover.sum(axis=1) @ centres / cover.sum()
    fits = {shape: _fit(shape, cover, x, y, area) for shape in scenes.SHAPES}
    shape = min(fits, key=fits.__getitem__)
    error, radius = fits[shape]
    error -= noise / contrast * near.sum() / cover.sum()
    return Component(
        size="small" if radius < size_border else "large",
        colour=_nearest(background + axis, scenes.COLOURS),
        shape=shape if error <= MAX_SHAPE_ERROR else None,
        x=float(x),
        y=float(y),
        radius=radius,
        shape_error=float(error),
    )


def read_scene(image: np.ndarray) -> Reading:
    """Reads a picture.

    Args:
        image: uint8 [N, N, 3], N >= 24.

    Raises:
        ValueError: if the image is not such an array.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise ValueError(f"image is uint8 [N, N, 3]: got {image.dtype} {list(image.shape)}")
    if len(image) < MIN_IMAGE_SIZE:
        raise ValueError(f"image has at least {MIN_IMAGE_SIZE} pixels per side: got {len(image)}")
    image = image.astype(np.float64)
    background, noise = _background(image)
    # The median over 3 by 3 pixels finds the components under noise; what it rounds off comes back with `near`.
    smooth = ndimage.median_filter(image, size=(3, 3, 1))
    mask = np.linalg.norm(smooth - background, axis=-1) > FOREGROUND_DISTANCE
    labels, number = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    kept = [label for label in np.argsort(-areas[1:], kind="stable") + 1 if areas[label] >= MIN_AREA * mask.size]
    labels = np.where(np.isin(labels, kept), labels, 0)
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    territory = np.where(distance <= 2.5, labels[tuple(nearest)], 0)
    size_border = SIZE_BORDERS[1 if len(kept) == 1 else 2]
    components = tuple(
        _read_component(image, territory == label, labels == label, background, noise, size_border)
        for label in kept[:MAX_COMPONENTS]
    )
    return Reading(len(kept), components, _nearest(background, scenes.BACKGROUNDS))


def _relation(first: Component, second: Component) -> str:
    """Returns the relation of the first to the second along the axis where their centroids are further apart."""
    right, down = second.x - first.x, second.y - first.y
    if abs(right) >= abs(down):
        return "left of" if right > 0 else "right of"
    return "above" if down > 0 else "below"


def _match(reading: Reading, objects: Sequence[scenes.ObjectWords]) -> tuple[Component | None, ...]:
    """Returns one component (or None, when there are too few) for each object of the caption: the assignment with the
    most colours right, among those the most shapes, among those the most sizes."""

    def right(assignment: tuple[Component | None, ...]) -> tuple[int, int, int]:
        pairs = [(seen, said) for seen, said in zip(assignment, objects, strict=True) if seen is not None]
        return (
            sum(seen.colour == said.colour for seen, said in pairs),
            sum(seen.shape == said.shape for seen, said in pairs),
            sum(seen.size == said.size for seen, said in pairs),
        )

    missing = [None] * max(0, len(objects) - len(reading.components))
    return max(itertools.permutations([*reading.components, *missing], len(objects)), key=right)


def check(image: np.ndarray, description: scenes.Description) -> Scores:
    """Says how much of a description a picture shows.

    Args:
        image: uint8 [N, N, 3], N >= 24.
        description: what the caption says. Its objects that are missing count as wrong in every attribute; things that
            it does not mention make the count wrong.

    Raises:
        ValueError: if the image is not such an array.
    """
    reading = read_scene(image)
    matched = _match(reading, description.objects)
    pairs = list(zip(matched, description.objects, strict=True))
    colours = [seen is not None and seen.colour == said.colour for seen, said in pairs]
    shapes = [seen is not None and seen.shape == said.shape for seen, said in pairs]
    sizes = [seen is not None and seen.size == said.size for seen, said in pairs]
    seen = [component for component in matched if component is not None]
    relation = description.relation is None or (len(seen) == 2 and _relation(*seen) == description.relation)
    count, background = reading.count == len(pairs), reading.background == description.background
    return Scores(
        count=count,
        colour=all(colours),
        shape=all(shapes),
        size=all(sizes),
        relation=relation,
        background=background,
        colour_and_shape=float(np.mean(np.logical_and(colours, shapes))),
        all=count and all(colours) and all(shapes) and all(sizes) and relation and background,
    )


def score(images: np.ndarray | Sequence[np.ndarray], captions: Sequence[str]) -> dict[str, float]:
    """Returns the mean of each field of `Scores` over a batch.

    Args:
        images: uint8 [B, N, N, 3], B >= 1.
        captions: B captions. "relation" is the mean over those that state one, and is left out if none does.

    Raises:
        ValueError: if the lengths differ or are 0, an image is no such array, or a caption is not a scene's.
    """
    if len(images) != len(captions) or len(captions) == 0:
        raise ValueError(f"one caption per image, and at least one: got {len(images)} images, {len(captions)} captions")
    descriptions = [scenes.parse_caption(text) for text in captions]
    results = [check(image, description) for image, description in zip(images, descriptions, strict=True)]
    stated = [result.relation for result, said in zip(results, descriptions, strict=True) if said.relation is not None]
    columns = {name: [getattr(result, name) for result in results] for name in Scores._fields} | {"relation": stated}
    return {name: float(np.mean(values)) for name, values in columns.items() if values}
