"""The Fréchet distance between two Gaussians: FID if their features are Inception's, FD for any other network."""

import numpy as np
from jaxtyping import Float


def frechet_distance(
    mean_a: Float[np.ndarray, "D"],
    covariance_a: Float[np.ndarray, "D D"],
    mean_b: Float[np.ndarray, "D"],
    covariance_b: Float[np.ndarray, "D D"],
) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    With factors A = F^T F and B = G^T G the last trace is the sum of the singular values of F G^T. These are real and
    not negative whatever the ranks, where the root of A B itself gains imaginary parts once there are fewer examples
    than features.

    Args:
      mean_a, mean_b: means.
      covariance_a, covariance_b: symmetric and positive semi-definite up to rounding.

    Raises:
      ValueError: the shapes do not fit each other, a number is not finite, or a covariance is no such matrix.

    Source: Heusel et al. 2017 (FID); Dowson and Landau 1982.
    """
    means = [np.asarray(mean, np.float64) for mean in (mean_a, mean_b)]
    covariances = [np.asarray(covariance, np.float64) for covariance in (covariance_a, covariance_b)]
    shapes = [array.shape for array in (*means, *covariances)]
    width = means[0].size
    if shapes != [(width,), (width,), (width, width), (width, width)]:
        raise ValueError(f"means are [D] and covariances [D, D]; got {shapes}.")
    if not all(np.isfinite(array).all() for array in (*means, *covariances)):
        raise ValueError("a mean or a covariance is NaN or infinite.")
    root = np.linalg.svd(_factor(covariances[0]) @ _factor(covariances[1]).T, compute_uv=False).sum()
    return float(np.sum((means[0] - means[1]) ** 2) + sum(map(np.trace, covariances)) - 2 * root)


def _factor(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "R D"]:
    """F with F^T F = covariance; as many rows as it has rank."""
    values, vectors = np.linalg.eigh(covariance)
    rounding = values[-1] * len(values) * np.finfo(np.float64).eps
    # Statistics that others stored were often summed in float32.
    if values[0] < -1e-3 * max(values[-1], 0) or not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6):
        raise ValueError("a covariance is not symmetric and positive semi-definite.")
    kept = values > rounding  # the rest is rounding, whose root would be far larger than itself
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T
