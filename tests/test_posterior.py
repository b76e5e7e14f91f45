"""The reverse step as a Gaussian: Bayes' rule on any schedule, and every mean with every variance of the originals."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, scales

from diffusion_jax import guidance, posterior, schedules
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = pathlib.Path(__file__).parent / "golden"
TABLE = schedules.from_betas(schedules.linear_betas(50))
MEANS = {
    "EPSILON": PARAMETERIZATIONS["eps"],
    "START_X": PARAMETERIZATIONS["x0"],
    "PREVIOUS_X": posterior.previous_mean(50),
}
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED": "learned", "LEARNED_RANGE": "learned_range"}


def close_to_largest(ours, expected, unclipped=None):
    """Each example has a divisor of its own, so each is judged by its own largest entry (before clipping)."""
    largest = np.abs(expected if unclipped is None else unclipped).max(axis=(1, 2, 3), keepdims=True)
    error = np.abs(np.broadcast_to(ours, expected.shape) - expected)
    assert (error <= 1e-5 * largest).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.6003, 0.5997), (0.3, 0.0)])
def test_the_posterior_is_the_forward_process_by_bayes(name, t, s, x64):
    """q(x_s | x0) and q(x_t | x_s) are Gaussian: their product as a function of x_s, completed to a square."""
    x0, x_t = (jnp.asarray(np.random.default_rng(seed).normal(size=(2, 3))) for seed in (0, 1))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(SCHEDULES[name], t, x0), scales(SCHEDULES[name], s, x0)
    ratio = alpha_t / alpha_s
    added = sigma_t**2 - ratio**2 * sigma_s**2
    ours = posterior.posterior(SCHEDULES[name], x0, x_t, t, s)
    if s == 0:
        np.testing.assert_allclose(ours.mean, x0, atol=1e-12)
        np.testing.assert_array_equal(ours.variance, 0)
        assert np.isfinite(ours.log_variance).all()
        return
    precision = 1 / sigma_s**2 + ratio**2 / added
    mean = (alpha_s * x0 / sigma_s**2 + ratio * x_t / added) / precision
    np.testing.assert_allclose(ours.mean, mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.variance, jnp.broadcast_to(1 / precision, (2, 3)), rtol=1e-8)
    np.testing.assert_allclose(ours.log_variance, jnp.log(ours.variance), rtol=1e-12)


def test_small_and_large_variances_bracket_the_learned_range():
    x_t, raw = jnp.ones((3, 2)), jnp.array([[-1.0, -1], [0, 0], [1, 1]])
    prediction = Prediction(0.5 * x_t, x_t, raw)
    small, large, learned = (
        posterior.model_step(schedules.cosine, prediction, x_t, 0.6, 0.5, name)
        for name in ("small", "large", "learned_range")
    )
    expected = np.stack(
        [small.log_variance[0], (small.log_variance + large.log_variance)[1] / 2, large.log_variance[2]]
    )
    np.testing.assert_allclose(learned.log_variance, expected, rtol=1e-6)
    np.testing.assert_allclose(learned.mean, small.mean)


def test_a_given_last_variance_is_used_where_the_step_lands_on_the_data():
    x = jnp.ones((2, 3))
    steps = posterior.posterior(TABLE, x, x, np.array([0.02, 0.5]), np.array([0.0, 0.4]), last_log_variance=-3.0)
    np.testing.assert_allclose(steps.log_variance[0], -3.0)
    np.testing.assert_allclose(steps.log_variance[1], np.log(steps.variance[1]), rtol=1e-6)


@pytest.mark.parametrize("t", [0.02, 1.0])
@pytest.mark.parametrize("name", posterior.VARIANCES)
@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_the_first_and_the_last_step_are_finite_in_values_and_gradients(schedule_name, name, t):
    schedule, x = SCHEDULES[schedule_name], jnp.full((1, 3), 0.3)
    for s in (0.0, 0.01):

        def step(x0, raw, s=s):
            return posterior.model_step(schedule, Prediction(x0, x0, raw), x, t, s, name)

        value, pullback = jax.vjp(step, x, x)
        for array in jax.tree.leaves((value, pullback(value))):
            assert jnp.isfinite(array).all()


def test_wrong_variances_are_refused_with_what_to_do():
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="variance must be one of .*; got 'fixed'"):
        posterior.model_step(TABLE, Prediction(x, x), x, 0.5, 0.4, "fixed")
    with pytest.raises(ValueError, match="the denoiser predicts none. Use 'small' or 'large'"):
        posterior.model_step(TABLE, Prediction(x, x), x, 0.5, 0.4, "learned_range")


def test_q_posterior_equals_the_originals():
    golden = np.load(GOLDEN / "ddpm_posterior_and_guidance.npz")
    x0, x_t = (jnp.asarray(golden[name]) for name in ("x_start", "x_t"))
    ours = posterior.posterior(TABLE, x0, x_t, (golden["t"] + 1) / 50, golden["t"] / 50)
    for field, name in zip(ours, ("mean", "variance", "log_variance_clipped"), strict=True):
        np.testing.assert_allclose(field, golden[f"q_posterior_{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clipped", ["clip", "noclip"])
@pytest.mark.parametrize(("mean", "variance"), list(itertools.product(MEANS, VARIANCES)))
def test_every_mean_with_every_variance_equals_the_originals(mean, variance, clipped):
    golden = np.load(GOLDEN / "ddpm_posterior_and_guidance.npz")
    output, raw = np.split(golden["model_output_6ch"], 2, axis=1)
    x_t, t, s = jnp.asarray(golden["x_t"]), (golden["t"] + 1) / 50, golden["t"] / 50
    raw_prediction = MEANS[mean].from_output(jnp.asarray(output), x_t, t, TABLE)._replace(raw_variance=jnp.asarray(raw))

    def denoiser(x_t, t, cond):
        return raw_prediction

    prediction = guidance.clip_x0(denoiser, TABLE)(x_t, t, {}) if clipped == "clip" else raw_prediction
    step = posterior.model_step(TABLE, prediction, x_t, t, s, VARIANCES[variance])
    if mean == "PREVIOUS_X":  # the original takes the output for the mean, whatever its x0 is clipped to
        step = step._replace(mean=posterior.model_step(TABLE, raw_prediction, x_t, t, s, VARIANCES[variance]).mean)
    name = f"pmv_{mean}_{variance}_{clipped}"
    close_to_largest(prediction.x0, golden[f"{name}_pred_xstart"], golden[f"pmv_{mean}_{variance}_noclip_pred_xstart"])
    for field, value in step._asdict().items():
        close_to_largest(value, golden[f"{name}_{field}"])


def test_the_mean_of_x_before_is_a_parameterization_like_the_others(x64):
    golden = np.load(GOLDEN / "ddpm_posterior_and_guidance.npz")
    x_t, t, output = jnp.asarray(golden["x_t"], float), (golden["t"] + 1) / 50, jnp.asarray(golden["x_start"], float)
    from_output, to_output = MEANS["PREVIOUS_X"]
    prediction = from_output(output, x_t, t, TABLE)
    np.testing.assert_allclose(to_output(prediction, x_t, t, TABLE), output, rtol=1e-9, atol=1e-9)
    step = posterior.model_step(TABLE, prediction, x_t, t, golden["t"] / 50)
    np.testing.assert_allclose(step.mean, output, rtol=1e-6, atol=1e-8)
