"""The Inception Score: are the classes of single pictures sure, and those of all pictures many?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special


class InceptionScore(NamedTuple):
    """mean and spread: over the splits, the spread being their standard deviation."""

    mean: float
    spread: float


def inception_score(logits: Float[np.ndarray, "N K"], num_splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """exp(mean over x of KL(p(y | x) || p(y))) of each split, p(y) being the split's own mean.

    It grows with a split's size: state N and the splits beside it.

    Args:
      logits: of a classifier, of the pictures scored. The published scores are of Inception's 1008 logits without the
        last layer's bias.
      num_splits: parts of nearly equal size (the paper: 10 of 5,000).
      seed: of the shuffle before the split; None keeps the order.

    Raises:
      ValueError: the logits are no finite matrix, or are fewer than the splits.

    Source: Salimans et al. 2016.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(f"logits are finite, [N, K]; got {list(logits.shape)}.")
    if not 1 <= num_splits <= len(logits):
        raise ValueError(f"{len(logits)} pictures cannot be split in {num_splits}.")
    if seed is not None:
        logits = logits[np.random.default_rng(seed).permutation(len(logits))]
    scores = []
    for part in np.array_split(special.log_softmax(logits, axis=1), num_splits):
        marginal = special.logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp(np.mean(np.sum(np.exp(part) * (part - marginal), axis=1))))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
