"""The two toy problems of Sohl-Dickstein et al. 2015, whose true likelihood is known: a swiss roll and a heartbeat.

Both are drawn in memory from their seed; training and validation have seeds of their own.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

ROLL_NOISE = 0.02  # deviation of the roll's isotropic noise, before the roll (6 units or so wide) is standardised
ROLL_ANGLES = (1.5 * math.pi, 4.5 * math.pi)
PULSE_LENGTH, PULSE_EVERY = 20, 5
SIZES = {"train": 200_000, "validation": 4096}
SEEDS = {"train": 0, "validation": 1}


class Vectors:
    """Vectors in memory as a data source: example i is {"image": [D]}, under the name that images go by."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.values[index]}


class Toy(NamedTuple):
    """What is known of a toy problem, in bits per example; the paper's two figures are from its table 1.

    truth: mean of the true log2-likelihood, which no model's bound can pass on average.
    null: L_null, of a model that knows only each dimension's variance, or a bit's rate.
    paper: K, the bound that the paper reached.
    """

    truth: float
    null: float
    paper: float


def swiss_roll(split: str = "train") -> Vectors:
    """Points (theta cos theta, theta sin theta) + noise, theta uniform in [1.5 pi, 4.5 pi], to mean 0 and variance 1.

    Args:
      split: "train" or "validation".
    """
    rng = _generator(split)
    theta = rng.uniform(*ROLL_ANGLES, SIZES[split])
    points = _curve(theta) + ROLL_NOISE * rng.normal(size=(len(theta), 2))
    mean, scale = roll_moments()
    return Vectors(((points - mean) / scale).astype(np.float32))


@functools.cache
def roll_moments() -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """The exact mean and standard deviation of each dimension before standardisation, by quadrature over theta."""
    points = _curve(_midpoints(100_000))
    mean = points.mean(axis=0)
    return mean, np.sqrt(points.var(axis=0) + ROLL_NOISE**2)


def swiss_roll_log2_likelihood(x: Float[np.ndarray, "B 2"], num_angles: int = 20_000) -> Float[np.ndarray, "B"]:
    """log2 p(x) of standardised points: the mean over theta of a Gaussian around the curve, by the midpoint rule.

    The points of the curve lie less than 0.007 apart, a third of the noise, where a midpoint rule over a Gaussian has no error
    left to speak of.

    Args:
      x: standardised points.
      num_angles: of the quadrature.
    """
    mean, scale = roll_moments()
    points, curve = np.asarray(x, np.float64) * scale + mean, _curve(_midpoints(num_angles))
    rows = []
    for point in points:  # one at a time: the whole matrix would take gigabytes
        exponent = -((curve - point) ** 2).sum(axis=1) / (2 * ROLL_NOISE**2)
        top = exponent.max()
        rows.append(top + math.log(np.exp(exponent - top).mean()))
    log_density = np.array(rows) - math.log(2 * math.pi * ROLL_NOISE**2) + np.log(scale).sum()
    return log_density / math.log(2)


def heartbeat(split: str = "train") -> Vectors:
    """Sequences of 20 bits, 1 at every fifth, with a uniform phase.

    Args:
      split: "train" or "validation".
    """
    phase = _generator(split).integers(0, PULSE_EVERY, SIZES[split])
    return Vectors(_beats(phase).astype(np.int32))


def heartbeat_log2_likelihood(x: Int[np.ndarray, "B 20"]) -> Float[np.ndarray, "B"]:
    """log2 p(x): -log2 5 for the five sequences that beat, -inf for all others."""
    beats = (np.asarray(x)[:, None] == _beats(np.arange(PULSE_EVERY))[None]).all(axis=-1).any(axis=-1)
    return np.where(beats, -math.log2(PULSE_EVERY), -np.inf)


def facts(name: str) -> Toy:
    """The known figures of "swiss_roll" or "heartbeat"; the roll's truth is computed.

    Source: Sohl-Dickstein et al. 2015, table 1.
    """
    if name == "heartbeat":
        rate = 1 / PULSE_EVERY
        entropy = -rate * math.log2(rate) - (1 - rate) * math.log2(1 - rate)
        return Toy(-math.log2(PULSE_EVERY), -PULSE_LENGTH * entropy, -2.414)
    return Toy(_roll_truth(), -math.log2(2 * math.pi * math.e), 2.35)


SOURCES = {"swiss_roll": swiss_roll, "heartbeat": heartbeat}
LOG2_LIKELIHOODS = {"swiss_roll": swiss_roll_log2_likelihood, "heartbeat": heartbeat_log2_likelihood}
SHAPES = {"swiss_roll": (2,), "heartbeat": (PULSE_LENGTH,)}
NUM_CLASSES = {"heartbeat": 2}  # of those that are categories


@functools.cache
def _roll_truth(num_angles: int = 400, num_nodes: int = 4) -> float:
    """Mean log2-likelihood over evenly spread angles and, by Gauss and Hermite's rule, over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    noise = ROLL_NOISE * np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    mean, scale = roll_moments()
    points = _curve(_midpoints(num_angles))[:, None] + noise[None]
    bits = swiss_roll_log2_likelihood((points.reshape(-1, 2) - mean) / scale).reshape(num_angles, -1)
    return float(bits.mean(axis=0) @ weights)


def _generator(split: str) -> np.random.Generator:
    if split not in SEEDS:
        raise ValueError(f"toys: split must be one of {tuple(SEEDS)}; got {split!r}.")
    return np.random.default_rng(SEEDS[split])


def _midpoints(count: int) -> Float[np.ndarray, "N"]:
    low, high = ROLL_ANGLES
    return low + (high - low) * (np.arange(count) + 0.5) / count


def _curve(theta: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N 2"]:
    return theta[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1)


def _beats(phase: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N 20"]:
    return (np.arange(PULSE_LENGTH)[None] % PULSE_EVERY == phase[:, None]).astype(np.int64)
