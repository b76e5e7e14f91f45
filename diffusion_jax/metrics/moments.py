"""Mean and covariance of features that come in batches, kept so that a million of them lose no digits.

moments = None
for features in batches:                       # [B, D], of any B
    moments = add(moments, from_features(features))
moments.mean, covariance(moments)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


class Moments(NamedTuple):
    """What a Gaussian fitted to features is made of, in float64.

    count: N, the features seen.
    mean: [D].
    scatter: [D, D], the sum of (x - mean) (x - mean)^T.
    """

    count: int
    mean: Float[np.ndarray, "D"]
    scatter: Float[np.ndarray, "D D"]


def from_features(features: ArrayLike, mask: ArrayLike | None = None) -> Moments:
    """The moments of one batch.

    Args:
      features: [B, D], of any float type; the sums are float64's.
      mask: [B], False for the rows that only fill the batch up; none of their numbers is read.

    Raises:
      ValueError: the features are no matrix, the mask has another length, or a feature is not finite.
    """
    values = np.asarray(features)
    if values.ndim != 2:
        raise ValueError(f"features are [B, D]; got {list(values.shape)}.")
    if mask is not None:
        if np.shape(mask) != values.shape[:1]:
            raise ValueError(f"one entry of the mask for each feature; got {np.shape(mask)}, {len(values)} features.")
        values = values[np.asarray(mask, bool)]
    if not np.isfinite(values).all():
        raise ValueError("a feature is NaN or infinite: look at the images and at the network's weights.")
    values = values.astype(np.float64)
    count, width = values.shape
    mean = values.mean(0) if count else np.zeros(width)
    centred = values - mean
    return Moments(count, mean, centred.T @ centred)


def add(a: Moments | None, b: Moments) -> Moments:
    """The moments of both sets together; None is the empty set.

        mean = mean_a + (N_b / N) delta,   scatter = scatter_a + scatter_b + (N_a N_b / N) delta delta^T,
        delta = mean_b - mean_a

    Sums of x x^T, from which the mean's square is subtracted at the end, would lose the digits that the mean has more
    than the spread. Source: Chan, Golub and LeVeque 1979.
    """
    if a is None or a.count == 0:
        return b
    if b.count == 0:
        return a
    count, delta = a.count + b.count, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(delta, delta) * (a.count / count * b.count)
    return Moments(count, a.mean + delta * (b.count / count), scatter)


def covariance(moments: Moments) -> Float[np.ndarray, "D D"]:
    """scatter / (N - 1), as every published FID has it.

    Raises:
      ValueError: there are fewer than two features.
    """
    if moments.count < 2:
        raise ValueError(f"a covariance needs at least 2 features; got {moments.count}.")
    return moments.scatter / (moments.count - 1)
