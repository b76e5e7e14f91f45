"""Precision, recall, density and coverage: real and generated features as unions of balls about each other.

A ball about a feature reaches to its k-th nearest neighbour within its own set, itself not counted.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK_NUMBERS = 2**25  # of a block of distances, 256 MiB


class Neighbours(NamedTuple):
    """precision: the share of generated features within a ball of a real one.
    recall: the share of real features within a ball of a generated one.
    density: in how many of the real balls a generated feature lies, over k; may exceed 1.
    coverage: the share of real balls with a generated feature in them."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(real: Float[np.ndarray, "N D"], generated: Float[np.ndarray, "M D"], k: int = 3) -> Neighbours:
    """All four, in blocks of distances.

    Args:
      real, generated: features; the figures depend on N and M, which belong beside them.
      k: published precision and recall have 3, density and coverage 5.

    Raises:
      ValueError: the widths differ, or a set has no k neighbours.

    Source: Kynkäänniemi et al. 2019 (precision, recall); Naeem et al. 2020 (density, coverage).
    """
    real, generated = (np.asarray(features, np.float64) for features in (real, generated))
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(f"two sets [N, D] of features; got {list(real.shape)} and {list(generated.shape)}.")
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(f"{len(real)} and {len(generated)} features do not have {k} neighbours each.")
    centre = real.mean(0)  # |x|^2 + |y|^2 - 2 x y loses the digits that the means have in common
    real, generated = real - centre, generated - centre
    real_radii, generated_radii = squared_radii(real, k), squared_radii(generated, k)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    precise, balls = 0, 0
    for rows, distances in _blocks(generated, real):
        inside = distances <= real_radii
        precise += int(inside.any(1).sum())
        balls += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (distances <= generated_radii[rows, None]).any(0)
    count = len(generated)
    return Neighbours(precise / count, float(recalled.mean()), balls / (k * count), float(covered.mean()))


def squared_radii(features: Float[np.ndarray, "N D"], k: int) -> Float[np.ndarray, "N"]:
    """The squared distance of each feature to its k-th nearest neighbour, itself not counted."""
    radii = np.empty(len(features))
    for rows, distances in _blocks(features, features):
        places = np.arange(len(distances))
        distances[places, places + rows.start] = np.inf  # by its place: rounding may put another nearer than itself
        radii[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, Float[np.ndarray, "R N"]]]:
    """Rows of a, and their squared distances to all of b."""
    squares = np.sum(b * b, axis=1)
    size = max(1, BLOCK_NUMBERS // len(b))
    for start in range(0, len(a), size):
        part = a[start : start + size]
        distances = np.sum(part * part, axis=1)[:, None] + squares - 2 * part @ b.T
        yield slice(start, start + len(part)), np.maximum(distances, 0)
