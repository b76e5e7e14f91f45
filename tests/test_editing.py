"""Editing on exact problems: what is known stays, what is free is drawn from the right distribution, and inversion inverts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_denoiser, gaussian_flow, scales

from diffusion_jax import editing, grids, samplers
from diffusion_jax.keys import keys_per_example
from diffusion_jax.posterior import Gaussian
from diffusion_jax.predictions import Prediction
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.euler import euler
from diffusion_jax.samplers.heun import heun
from diffusion_jax.schedules import cosine, linear_path

pytestmark = pytest.mark.usefixtures("strict_ranks")

MEAN, VARIANCE = np.array([[0.5, -0.3, 0.1]]), np.array([[0.25, 0.05, 0.8]])
KNOWN = np.array([[0.2, -0.9, 0.4], [-0.6, 0.3, 0.7]])
MASK = np.array([[True, False, True], [False, False, True]])


def keys_of(count):
    return keys_per_example(jax.random.key(0), jnp.arange(count))


def gaussian(schedule, mean=MEAN, variance=VARIANCE):
    return gaussian_denoiser(schedule, jnp.asarray(mean), jnp.asarray(variance))


def correlated_denoiser(schedule, mean, covariance):
    """Exact denoiser of N(mean, covariance), in full: x0_hat = mean + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha mean)."""
    mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)

    def denoise(x_t, t, cond):
        alpha, sigma = schedule(jnp.asarray(t, x_t.dtype))
        whole = alpha**2 * covariance + sigma**2 * jnp.eye(len(mean))
        surprise = jnp.linalg.solve(whole, (x_t - alpha * mean[None]).T).T
        return Prediction(mean[None] + alpha * surprise @ covariance, sigma * surprise)

    return denoise


def draw(sampler, denoiser, grid, count, schedule=cosine, size=3):
    keys = keys_of(count)
    x_t = samplers.initial_noise(keys, (size,))
    return np.asarray(jax.jit(lambda x: samplers.sample(sampler, denoiser, x, grid, {}, keys))(x_t))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("make", [ancestral, ddim, euler, heun])
def test_replacing_keeps_what_is_known_and_explains_x_t(name, make):
    schedule = SCHEDULES[name]
    denoiser = editing.replace_known(gaussian(schedule), schedule, jnp.asarray(KNOWN), jnp.asarray(MASK))
    prediction = denoiser(jnp.asarray(KNOWN), 0.4, {})
    alpha, sigma = scales(schedule, 0.4, jnp.asarray(KNOWN))
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, KNOWN, atol=1e-5)
    # Euler's last step is inexact where sigma' is not constant, most of all where it ends infinite (sigma like sqrt(t)).
    grid = grids.quadratic(20, 0.98) if make is euler else grids.uniform(20, 0.98)
    made = draw(make(schedule), denoiser, grid, 2, schedule)
    np.testing.assert_allclose(made[MASK], KNOWN[MASK], atol=0.06 if make is euler else 1e-5)
    assert np.abs(made - KNOWN)[~MASK].min() > 1e-3


def test_replacing_by_ddim_returns_the_known_bits():
    denoiser = editing.replace_known(gaussian(cosine), cosine, jnp.asarray(KNOWN, jnp.float32), jnp.asarray(MASK))
    made = draw(ddim(cosine), denoiser, grids.uniform(7), 2)
    np.testing.assert_array_equal(made[MASK], KNOWN.astype(np.float32)[MASK])


@pytest.mark.parametrize("make", [ddim, euler, heun])
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_observation_of_gaussian_data_leads_to_the_true_posterior(name, make, x64):
    """Prior N(m, V), observation y = x0 + d n: the posterior is N(m + V (y - m) / (V + d^2), V d^2 / (V + d^2))."""
    schedule, deviation, start = SCHEDULES[name], np.array([[0.3, 0.1, 2.0]]), np.array([[0.4, -0.6, 1.1]])
    observed = jnp.asarray(KNOWN[:1])
    denoiser = editing.posterior_product(gaussian(schedule), schedule, observed, deviation, VARIANCE)
    share = VARIANCE / (VARIANCE + deviation**2)
    mean, variance = MEAN + share * (KNOWN[:1] - MEAN), (1 - share) * VARIANCE
    for t in (0.02, 0.5, 0.97):
        ours, exact = (d(jnp.asarray(start), t, {}) for d in (denoiser, gaussian(schedule, mean, variance)))
        np.testing.assert_allclose(ours.x0, exact.x0, rtol=1e-9)
    grid = grids.quadratic(400, 0.999)
    landed = samplers.sample(make(schedule), denoiser, jnp.asarray(start), grid, {}, keys_of(1))
    np.testing.assert_allclose(
        landed, gaussian_flow(schedule, mean, variance, jnp.asarray(start), 0.999, 0.0), atol=0.02
    )


def test_the_product_with_an_observation_is_bayes(x64):
    step = Gaussian(jnp.array([[0.5, 1.0, -1.0, 0.3]]), jnp.array([[0.2, 0.3, 0.4, 0.0]]), jnp.zeros((1, 4)))
    observed, deviation = jnp.array([[1.0, -1.0, 2.0, 7.0]]), jnp.array([[0.5, jnp.inf, 0.0, 0.1]])
    ours = editing.step_product(observed, deviation)(step)
    precision = 1 / 0.2 + 1 / 0.25
    np.testing.assert_allclose(ours.mean, [[(0.5 / 0.2 + 1 / 0.25) / precision, 1.0, 2.0, 0.3]], rtol=1e-12)
    np.testing.assert_allclose(ours.variance, [[1 / precision, 0.3, 0.0, 0.0]], rtol=1e-12)
    assert np.isfinite(ours.log_variance).all()


def test_the_2015_papers_inpainting_fixes_pixels_through_the_whole_run():
    deviation = jnp.where(jnp.asarray(MASK), 0.0, jnp.inf)
    sampler = ancestral(cosine, product=editing.step_product(jnp.asarray(KNOWN, jnp.float32), deviation))
    x, keys, grid = samplers.initial_noise(keys_of(2), (3,)), keys_of(2), grids.uniform(6)
    carry = (x, sampler.init(x))
    for i in range(6):
        carry = samplers.run(sampler, gaussian(cosine), carry, grid, {}, keys, i, i + 1)
        np.testing.assert_array_equal(np.asarray(carry[0])[MASK], KNOWN.astype(np.float32)[MASK])
    assert np.abs(carry[0] - KNOWN)[~MASK].min() > 1e-3


def test_repaint_draws_the_free_part_given_the_known_one_and_plain_replacement_does_not():
    """Two correlated numbers, one known: the other's conditional mean is m1 + C10 / C00 (known - m0)."""
    mean, covariance = np.array([0.0, 0.0]), np.array([[1.0, 0.9], [0.9, 1.0]])
    count, known = 1500, np.full((1500, 2), 1.2, np.float32)
    mask = np.array([[True, False]])
    conditional_mean, conditional_variance = 0.9 * 1.2, 1 - 0.81
    denoiser, base = correlated_denoiser(cosine, mean, covariance), grids.uniform(40)

    def error(num_resamples):
        grid = grids.resampled(base, 5, num_resamples)
        made = draw(editing.repaint(ancestral(cosine), cosine, known, mask), denoiser, grid, count, size=2)
        np.testing.assert_allclose(made[:, 0], 1.2, atol=1e-6)
        return abs(made[:, 1].mean() - conditional_mean), abs(made[:, 1].var() / conditional_variance - 1)

    (once, _), (often, spread) = error(1), error(12)
    assert often < 0.6 * once
    assert often < 0.12
    assert spread < 0.35


@pytest.mark.parametrize("make", [ddim, euler, heun])
@pytest.mark.parametrize("name", ["cosine", "linear", "ddpm_linear", "linear_path"])
def test_inversion_finds_the_noise_that_the_flow_would(name, make, x64):
    schedule, x0 = SCHEDULES[name], jnp.asarray(KNOWN)
    grid = grids.quadratic(400, 0.98)
    noise = editing.invert(make(schedule), gaussian(schedule), x0, grid, {}, keys_of(2))
    exact = gaussian_flow(schedule, MEAN, VARIANCE, x0, grid[-2], grid[0])
    np.testing.assert_allclose(noise, exact, atol=0.05)
    back = samplers.sample(make(schedule), gaussian(schedule), noise, grid, {}, keys_of(2))
    np.testing.assert_allclose(back, x0, atol=0.02)


def test_sdedit_starts_from_the_picture_at_the_noise_of_its_strength():
    keys, grid = keys_of(2), grids.uniform(10)
    picture = jnp.asarray(KNOWN, jnp.float32)
    assert [int(editing.first_step(10, s)) for s in (1.0, 0.75, 0.3, 0.0)] == [0, 2, 7, 10]
    start = editing.sdedit_start(linear_path, picture, grid[7], keys)
    np.testing.assert_allclose(start, 0.7 * picture + 0.3 * samplers.initial_noise(keys, (3,)), rtol=1e-5, atol=1e-6)
    run = functools.partial(
        samplers.run, ddim(linear_path), gaussian(linear_path), grid=grid, cond={}, keys=keys, last=10
    )
    little, much = (
        run((editing.sdedit_start(linear_path, picture, grid[first], keys), ()), first=first)[0] for first in (9, 2)
    )
    assert np.abs(little - picture).mean() < 0.5 * np.abs(much - picture).mean()


def test_slerp_keeps_the_norm_and_meets_both_ends(x64):
    a, b = (jax.random.normal(jax.random.key(seed), (40, 50)) for seed in (0, 1))
    b = b / jnp.linalg.norm(b) * jnp.linalg.norm(a)
    for fraction, expected in ((0.0, a), (1.0, b)):
        np.testing.assert_allclose(editing.slerp(a, b, fraction), expected, atol=1e-12)
    for fraction in (0.2, 0.5, 0.9):
        np.testing.assert_allclose(jnp.linalg.norm(editing.slerp(a, b, fraction)), jnp.linalg.norm(a), rtol=1e-9)
    np.testing.assert_allclose(editing.slerp(a, a, 0.3), a, rtol=1e-9)
    assert np.isfinite(jax.jacobian(lambda f: editing.slerp(a, a, f))(0.3)).all()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_between_two_conditions_lies_the_geometric_mean_of_their_densities(fraction):
    """N(a, V)^(1 - f) N(b, V)^f is N((1 - f) a + f b, V): the mixed denoiser is that Gaussian's own."""
    other_mean = np.array([[-0.4, 0.6, 0.9]])

    def told(x_t, t, cond):
        return gaussian(cosine, mean=cond["mean"])(x_t, t, {})

    mixed = editing.between(told, {"mean": jnp.asarray(other_mean)}, fraction)
    exact = gaussian(cosine, mean=(1 - fraction) * MEAN + fraction * other_mean)
    x_t = jnp.asarray(KNOWN)
    for t in (0.1, 0.5, 0.9):
        for found, wanted in zip(mixed(x_t, t, {"mean": jnp.asarray(MEAN)})[:2], exact(x_t, t, {})[:2], strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-6)
