"""The toy problems: their likelihoods against sums, enumeration and a second quadrature."""

import itertools

import numpy as np
import pytest

from diffusion_jax.data import toys


def test_the_swiss_roll_is_standardised():
    points = toys.swiss_roll().values
    assert points.shape == (toys.SIZES["train"], 2)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(points.var(axis=0), 1, atol=0.01)


@pytest.mark.parametrize("name", toys.SOURCES)
def test_data_are_the_same_every_time_and_differ_by_split(name):
    train, validation = toys.SOURCES[name]("train").values, toys.SOURCES[name]("validation").values
    np.testing.assert_array_equal(train, toys.SOURCES[name]("train").values)
    assert not np.array_equal(train[: len(validation)], validation)
    assert train.shape[1:] == toys.SHAPES[name]
    with pytest.raises(ValueError, match="split must be one of"):
        toys.SOURCES[name]("test")


def test_the_rolls_density_integrates_to_one_over_a_small_square():
    # A window across the roll's outermost turn: its probability by the density, and by counting 2 million draws.
    mean, scale = toys.roll_moments()
    middle = (np.array([13.0 * np.cos(13.0), 13.0 * np.sin(13.0)]) - mean) / scale
    half, side = 0.03, 81
    offsets = (np.arange(side) + 0.5) / side * 2 * half - half
    grid = middle + np.stack(np.meshgrid(offsets, offsets), axis=-1).reshape(-1, 2)
    probability = 2.0 ** toys.swiss_roll_log2_likelihood(grid) * (2 * half / side) ** 2
    rng = np.random.default_rng(5)
    theta = rng.uniform(*toys.ROLL_ANGLES, 2_000_000)
    draws = theta[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1)
    draws = (draws + toys.ROLL_NOISE * rng.normal(size=draws.shape) - mean) / scale
    share = (np.abs(draws - middle) < half).all(axis=1).mean()
    np.testing.assert_allclose(probability.sum(), share, rtol=0.05)


def test_the_rolls_mean_log_likelihood_is_that_of_draws_and_above_the_papers_bound():
    facts = toys.facts("swiss_roll")
    bits = toys.swiss_roll_log2_likelihood(toys.swiss_roll("validation").values[:1000])
    assert abs(bits.mean() - facts.truth) < 4 * bits.std() / np.sqrt(len(bits))
    assert facts.null < facts.paper < facts.truth < facts.paper + 0.4


def test_a_finer_quadrature_changes_nothing():
    points = toys.swiss_roll("validation").values[:50]
    coarse, fine = (toys.swiss_roll_log2_likelihood(points, n) for n in (20_000, 60_000))
    np.testing.assert_allclose(coarse, fine, atol=1e-6)


def test_heartbeats_are_five_of_all_sequences_and_equally_likely():
    rows = toys.heartbeat().values
    sequences, counts = np.unique(rows, axis=0, return_counts=True)
    assert (sequences.sum(axis=1) == 4).all()
    np.testing.assert_allclose(counts / counts.sum(), np.full(5, 0.2), atol=0.005)
    every = np.array(list(itertools.product((0, 1), repeat=12)))  # a head of 12 bits, then one beat's own tail
    every = np.concatenate([every, np.tile(sequences[0][12:], (len(every), 1))], axis=1)
    bits = toys.heartbeat_log2_likelihood(np.concatenate([sequences, every]))
    assert np.isfinite(bits).sum() == 5 + 1
    np.testing.assert_allclose(np.exp2(bits[:5]).sum(), 1)
    assert toys.facts("heartbeat").truth == pytest.approx(-np.log2(5))
