"""Moments of features in batches: those of all at once, to rounding, whatever the batches and however many there are."""

import numpy as np
import pytest

from diffusion_jax.metrics import moments


def streamed(features, batch_size):
    total = None
    for i in range(0, len(features), batch_size):
        total = moments.add(total, moments.from_features(features[i : i + batch_size]))
    return total


@pytest.mark.parametrize("batch_size", [1, 7, 64, 256])
def test_no_batch_size_changes_the_moments(batch_size):
    features = np.random.default_rng(0).normal(3, 2, (500, 6)).astype(np.float32)
    total = streamed(features, batch_size)
    assert total.count == 500
    np.testing.assert_allclose(total.mean, features.astype(float).mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance(total), np.cov(features.astype(float).T), rtol=1e-11, atol=1e-13)


def test_rows_that_fill_a_batch_up_are_not_read():
    features = np.random.default_rng(0).normal(size=(5, 3))
    padded = np.concatenate([features, np.full((3, 3), np.nan)])
    total = moments.from_features(padded, np.arange(8) < 5)
    alone = moments.from_features(features)
    assert total.count == 5
    np.testing.assert_array_equal(total.scatter, alone.scatter)
    empty = moments.from_features(padded, np.zeros(8, bool))
    assert moments.add(alone, empty) is alone
    assert moments.add(empty, alone) is alone


def test_a_million_rows_far_from_zero_keep_ten_digits_of_their_spread():
    """The mean is 1e6 times the spread, where sums of squares less the mean's square would keep four digits."""
    half, offset = 500_000, 1e6
    total = None
    for start in range(0, half, 25_000):  # +-(1..half) / half: the variance is known
        values = np.arange(start + 1, start + 25_001) / half
        values = np.stack([np.concatenate([values, -values]), np.concatenate([-values, values])], 1)
        total = moments.add(total, moments.from_features(values + offset))
    variance = 2 * (half + 1) * (2 * half + 1) / 6 / half / (2 * half - 1)
    expected = variance * np.array([[1, -1], [-1, 1]])
    assert total.count == 2 * half
    np.testing.assert_allclose(total.mean, offset, rtol=1e-15)
    np.testing.assert_allclose(moments.covariance(total), expected, rtol=1e-10)


def test_what_has_no_moments_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        moments.from_features(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        moments.from_features(np.zeros(3))
    with pytest.raises(ValueError, match="one entry"):
        moments.from_features(np.zeros((3, 1)), np.ones(2, bool))
    with pytest.raises(ValueError, match="at least 2"):
        moments.covariance(moments.from_features(np.zeros((1, 2))))
