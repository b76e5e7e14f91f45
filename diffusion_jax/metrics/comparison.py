"""From the features of two sets of pictures to all figures that they allow."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics import moments as moments_module
from diffusion_jax.metrics.features import Features
from diffusion_jax.metrics.frechet import frechet_distance
from diffusion_jax.metrics.inception_score import inception_score
from diffusion_jax.metrics.kid import kernel_distance, kid
from diffusion_jax.metrics.neighbours import neighbours
from diffusion_jax.metrics.sets import Statistics

KINDS = ("pool", "spatial")  # of features, that means and covariances are of


class Gathered(NamedTuple):
    """The features of a set.

    statistics: the mean and covariance of each kind.
    pool: [N, D], which KID and the neighbours need.
    logits: [N, K], which the Inception Score needs; None where the network has none.
    """

    statistics: Statistics
    pool: Float[np.ndarray, "N D"]
    logits: Float[np.ndarray, "N K"] | None


class Protocol(NamedTuple):
    """kid_subsets, kid_subset_size: of KID; a set smaller than a subset gives subsets of its own size.
    neighbours: k of precision, recall, density and coverage.
    splits: of the Inception Score.
    seed: of the subsets and the splits."""

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    splits: int = 10
    seed: int = 0


def gather(name: str, batches: Iterable[Features]) -> Gathered:
    """Streams batches of features into what the figures need.

    Args:
      name: of the set.
      batches: arrays [B, D] by name, with "pool" among them.

    Raises:
      ValueError: there are fewer than two pictures, or a feature is not finite.
    """
    totals: dict[str, moments_module.Moments | None] = dict.fromkeys(KINDS)
    kept: dict[str, list[np.ndarray]] = {"pool": [], "logits": []}
    for batch in batches:
        for kind in KINDS:
            if kind in batch:
                totals[kind] = moments_module.add(totals[kind], moments_module.from_features(batch[kind]))
        for kind, parts in kept.items():
            if kind in batch:
                parts.append(np.asarray(batch[kind], np.float32))
    found = {
        kind: (total.mean, moments_module.covariance(total)) for kind, total in totals.items() if total is not None
    }
    if not found:
        raise ValueError(f"{name} holds no pictures.")
    logits = np.concatenate(kept["logits"]) if kept["logits"] else None
    return Gathered(Statistics(name, found), np.concatenate(kept["pool"]), logits)


def own_figures(made: Gathered, protocol: Protocol) -> dict[str, float]:
    """The figures of a set alone: the Inception Score and its spread, where there are logits."""
    if made.logits is None:
        return {}
    score = inception_score(made.logits, min(protocol.splits, len(made.logits)), protocol.seed)
    return {"inception_score": score.mean, "inception_score_spread": score.spread}


def figures(
    made: Gathered,
    statistics: Statistics,
    real: Float[np.ndarray, "N D"] | None,
    protocol: Protocol,
    frechet: str = "fid",
) -> dict[str, float]:
    """The figures of a set beside real pictures.

    Args:
      made: the set that is judged.
      statistics: of the real pictures, for FID, and for sFID where both have the spatial features.
      real: their "pool" features, for KID and the neighbours; None where only statistics are there.
      frechet: what the distance of the "pool" features is called.

    Returns:
      fid or fd, sfid, kid and kid_spread, precision, recall, density, coverage; those that can be had.

    Raises:
      ValueError: the statistics are of another network's features.
    """
    found = {
        name: frechet_distance(*made.statistics.moments[kind], *statistics.moments[kind])
        for kind, name in zip(KINDS, (frechet, "sfid"), strict=True)
        if kind in made.statistics.moments and kind in statistics.moments
    }
    if real is None:
        return found
    smaller = min(len(made.pool), len(real))
    if smaller < protocol.kid_subset_size:
        found["kid"] = kernel_distance(real, made.pool)
    else:
        score = kid(real, made.pool, protocol.kid_subsets, protocol.kid_subset_size, protocol.seed)
        found |= {"kid": score.mean, "kid_spread": score.spread}
    if smaller > protocol.neighbours:
        found |= neighbours(real, made.pool, protocol.neighbours)._asdict()
    return found


def over_seeds(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The mean and the spread of each figure over sets that differ in their seed alone.

    The spread is the standard deviation of one set about the others', sum (x - mean)^2 / (n - 1) under the root.

    Args:
      rows: the figures of two sets or more; a figure that one of them lacks is left out.

    Returns:
      {"mean": figures, "spread": figures}.

    Raises:
      ValueError: there are fewer than two sets.

    >>> over_seeds([{"fid": 3.0}, {"fid": 5.0}])["mean"]
    {'fid': 4.0}
    """
    if len(rows) < 2:
        raise ValueError(f"a spread is of at least 2 sets; got {len(rows)}.")
    columns = {name: [row[name] for row in rows] for name in rows[0] if all(name in row for row in rows)}
    return {
        "mean": {name: float(np.mean(values)) for name, values in columns.items()},
        "spread": {name: float(np.std(values, ddof=1)) for name, values in columns.items()},
    }
