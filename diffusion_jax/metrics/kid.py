"""Kernel Inception distance: the squared maximum mean discrepancy of features under a cubic kernel, without bias.

Unlike FID its expectation does not depend on the number of examples, so that small sets can be compared.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK = 2048  # rows of the kernel matrix held at a time, squared


class KID(NamedTuple):
    """mean and spread: over the subsets, the spread being their standard deviation."""

    mean: float
    spread: float


def kernel_distance(a: Float[np.ndarray, "M D"], b: Float[np.ndarray, "N D"]) -> float:
    """The unbiased estimate of the squared discrepancy from all of both sets; it may be below 0.

        k(x, y) = (x . y / D + 1)^3
        mean of k over pairs of a  +  mean over pairs of b  -  2 mean of k(a, b),    a pair being of two different rows

    Args:
      a, b: features, at least two of each.

    Raises:
      ValueError: the widths differ, or a set has fewer than two rows.

    Source: Bińkowski et al. 2018, equation 4.
    """
    a, b = _checked(a, b)
    return _mean_of_pairs(a) + _mean_of_pairs(b) - 2 * _sum(a, b) / (len(a) * len(b))


def kid(
    a: Float[np.ndarray, "M D"],
    b: Float[np.ndarray, "N D"],
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KID:
    """KID as its authors report it: the mean and standard deviation of the estimate over random subsets.

    Args:
      a, b: features.
      num_subsets, subset_size: each subset draws so many different rows of each set.
      seed: of the draws.

    Raises:
      ValueError: as kernel_distance; or a set is smaller than a subset.
    """
    a, b = _checked(a, b)
    if subset_size > min(len(a), len(b)) or subset_size < 2 or num_subsets < 1:
        raise ValueError(f"subsets of {subset_size} cannot be drawn of {len(a)} and {len(b)} features.")
    rng = np.random.default_rng(seed)
    draws = (
        kernel_distance(a[rng.permutation(len(a))[:subset_size]], b[rng.permutation(len(b))[:subset_size]])
        for _ in range(num_subsets)
    )
    values = np.array(list(draws))
    return KID(float(values.mean()), float(values.std()))


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(features, np.float64) for features in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets [N, D] of at least two features each; got {list(a.shape)} and {list(b.shape)}.")
    return a, b


def _mean_of_pairs(a: np.ndarray) -> float:
    itself = np.sum((np.sum(a * a, axis=1) / a.shape[1] + 1) ** 3)
    return (_sum(a, a) - itself) / (len(a) * (len(a) - 1))


def _sum(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of the kernel over all rows of both, a block at a time."""
    total = 0.0
    for i in range(0, len(a), BLOCK):
        for j in range(0, len(b), BLOCK):
            total += float(np.sum((a[i : i + BLOCK] @ b[j : j + BLOCK].T / a.shape[1] + 1) ** 3))
    return total
