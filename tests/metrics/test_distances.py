"""FID, KID, the Inception Score and the neighbours: against other implementations on the same features, and by hand."""

import pathlib

import numpy as np
import pytest

from diffusion_jax.metrics import kid as kid_module
from diffusion_jax.metrics import moments
from diffusion_jax.metrics import neighbours as neighbours_module
from diffusion_jax.metrics.frechet import frechet_distance
from diffusion_jax.metrics.inception_score import inception_score
from diffusion_jax.metrics.kid import kernel_distance, kid
from diffusion_jax.metrics.neighbours import neighbours, squared_radii

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden/metrics.npz")
REAL, MADE = GOLDEN["real"], GOLDEN["fake"]


def fid(a, b):
    a, b = (moments.from_features(x) for x in (a, b))
    return frechet_distance(a.mean, moments.covariance(a), b.mean, moments.covariance(b))


def test_fid_is_that_of_torch_fidelity_torchmetrics_and_scipy():
    for name in ("fid_torch_fidelity", "fid_torchmetrics", "fid_scipy"):
        np.testing.assert_allclose(fid(REAL, MADE), GOLDEN[name], rtol=1e-6)


def test_fid_of_fewer_examples_than_features_is_that_of_torchmetrics():
    np.testing.assert_allclose(fid(REAL[:15], MADE[:20]), GOLDEN["fid_few_torchmetrics"], rtol=1e-6)


def test_the_distance_of_commuting_gaussians_is_that_of_their_axes():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    a, b, shift = rng.uniform(0, 3, 5), rng.uniform(0, 3, 5), rng.normal(size=5)
    a[0] = b[1] = 0.0  # of lower rank
    got = frechet_distance(shift, turn * a @ turn.T, np.zeros(5), turn * b @ turn.T)
    np.testing.assert_allclose(got, shift @ shift + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rtol=1e-12)


@pytest.mark.parametrize("count", [3, 40])
def test_a_set_has_no_distance_to_itself_of_whatever_rank(count):
    features = np.random.default_rng(0).normal(5, 1, (count, 20))
    assert abs(fid(features, features)) < 1e-11


def test_distances_of_what_is_no_gaussian_are_refused():
    one, eye = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match="means are"):
        frechet_distance(one, eye, np.zeros(3), eye)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(one, eye * np.nan, one, eye)
    with pytest.raises(ValueError, match="semi-definite"):
        frechet_distance(one, -eye, one, eye)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance(one, np.array([[1.0, 0.5], [0.0, 1.0]]), one, eye)


def test_kid_of_all_features_is_that_of_torch_fidelity_and_torchmetrics():
    for name in ("kid_torchmetrics_full", "kid_torch_fidelity_full"):
        np.testing.assert_allclose(kernel_distance(REAL[:120], MADE), GOLDEN[name], rtol=1e-10)


def test_kid_of_subsets_has_the_mean_and_spread_of_torch_fidelity():
    mean, spread = GOLDEN["kid_torch_fidelity"]  # of 2000 subsets
    got = kid(REAL, MADE, num_subsets=1000, subset_size=60)
    assert abs(got.mean - mean) < 4 * spread * np.sqrt(1 / 1000 + 1 / 2000)
    np.testing.assert_allclose(got.spread, spread, rtol=0.1)


def test_kid_is_without_bias():
    """Of two small sets of one distribution the mean is 0, where a biased estimate is above it."""
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(5, 3)), rng.normal(size=(4, 3))) for _ in range(4000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(4000)


def test_blocks_change_nothing(monkeypatch):
    whole = kernel_distance(REAL, MADE), neighbours(REAL, MADE, 3)
    monkeypatch.setattr(kid_module, "BLOCK", 37)
    monkeypatch.setattr(neighbours_module, "BLOCK_NUMBERS", 11 * len(REAL))
    np.testing.assert_allclose(kernel_distance(REAL, MADE), whole[0], rtol=1e-11)
    assert neighbours(REAL, MADE, 3) == whole[1]


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_and_coverage_are_those_of_prdc(k):
    np.testing.assert_allclose(neighbours(REAL, MADE, k), GOLDEN[f"prdc_{k}"], atol=1e-9)


def test_precision_and_recall_are_those_of_torch_fidelity():
    """Its first set is the generated one."""
    got = neighbours(REAL, MADE, 3)
    np.testing.assert_allclose([got.recall, got.precision], GOLDEN["prc_torch_fidelity_real_first"], atol=1e-6)


def test_neighbours_on_a_line_are_those_counted_by_hand():
    real, made = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [1.5], [9.0]])
    np.testing.assert_allclose(squared_radii(real, 1), [1.0, 1.0, 4.0])
    # Balls of the real: [-1, 1], [0, 2], [1, 5]. 0.5 lies in two of them, 1.5 in two, 9 in none.
    # Balls of the generated: [-0.5, 1.5], [0.5, 2.5], [1.5, 16.5].
    assert neighbours(real, made, 1) == (2 / 3, 1.0, 4 / 3, 1.0)


def test_neighbours_far_from_zero_are_those_near_it():
    far = 1e8 * np.ones(REAL.shape[1])
    assert neighbours(REAL + far, MADE + far, 3) == neighbours(REAL, MADE, 3)


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="subsets of 1000"):
        kid(REAL, MADE)
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(REAL[:1], MADE)
    with pytest.raises(ValueError, match="do not have 3"):
        neighbours(REAL[:3], MADE, 3)
    with pytest.raises(ValueError, match="cannot be split"):
        inception_score(np.zeros((3, 2)), num_splits=4)


def test_the_inception_score_is_that_of_torch_fidelity():
    got = inception_score(GOLDEN["logits"], num_splits=5, seed=None)
    np.testing.assert_allclose(got, GOLDEN["isc_torch_fidelity"], rtol=1e-5)


def test_the_inception_score_of_sure_and_balanced_classes_is_their_number():
    logits = 100 * np.tile(np.eye(7), (10, 1))
    np.testing.assert_allclose(inception_score(logits, num_splits=1), (7, 0), atol=1e-6)
    np.testing.assert_allclose(inception_score(0 * logits, num_splits=3), (1, 0), atol=1e-12)
