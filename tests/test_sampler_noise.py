"""Samplers: the noise that they start from and add, and what single ones promise of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_denoiser, scales
from sampler_cases import (
    MEAN,
    MULTISTEP_NOISY,
    NOISY,
    ONE_STEP_NOISY,
    VARIANCE,
    gaussian,
    give_noise,
    keys_of,
    start,
)

from diffusion_jax import grids, samplers
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.posterior import VARIANCES, Gaussian, model_step, posterior
from diffusion_jax.predictions import Prediction
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from diffusion_jax.samplers.dpmpp_3m_sde import dpmpp_3m_sde
from diffusion_jax.samplers.heun import COORDINATES, heun
from diffusion_jax.samplers.lms import lms
from diffusion_jax.samplers.multistep import log_ratio
from diffusion_jax.samplers.plms import plms
from diffusion_jax.samplers.unipc import unipc
from diffusion_jax.schedules import cosine, time_at

pytestmark = pytest.mark.usefixtures("strict_ranks")


@pytest.fixture
def given_noise(monkeypatch):
    give_noise(monkeypatch)


# --- Noise ---


def moments(sampler, schedule, num_steps, make_grid=grids.uniform):
    """Exact mean and variance at t = 0 of a sampler on Gaussian data, from the exact marginal at t = 1.

    A step is affine, x_s = a x_t + b + d z, so three probes (x, z) = (0, 0), (1, 0), (0, 1) tell all of it.
    They need `given_noise`.
    """
    x, z = (jnp.tile(jnp.array(column)[:, None], (1, 3)) for column in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))

    def body(carry, times):
        mean, variance, state = carry
        rows, state = sampler.step(lambda x, t: gaussian(schedule)(x, t, {}), x, *times, z, state)
        b, a, d = rows[0], rows[1] - rows[0], rows[2] - rows[0]
        return (a * mean + b, a**2 * variance + d**2, state), None

    alpha, sigma = scales(schedule, 1.0, x[0])
    grid = make_grid(num_steps)
    begin = (alpha * MEAN[0], alpha**2 * VARIANCE[0] + sigma**2, sampler.init(x))
    return jax.jit(lambda: jax.lax.scan(body, begin, (grid[:-1], grid[1:]))[0])()[:2]


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", [name for name in ONE_STEP_NOISY if name != "heun_churn"])
def test_noisy_samplers_converge_to_the_data_with_order_one_in_distribution(name, schedule_name, given_noise, x64):
    schedule, errors = SCHEDULES[schedule_name], []
    # Even steps of EDM's sigma waste most of them far from the data: there the slope nears 1 only beyond 1000 steps.
    make_grid = grids.quadratic if schedule_name == "edm" else grids.uniform
    for num_steps in (100, 400):
        mean, variance = moments(NOISY[name](schedule), schedule, num_steps, make_grid)
        np.testing.assert_allclose(mean, MEAN[0], atol=1e-9)  # the denoiser's average is the mean at every step
        errors.append(float(jnp.abs(jnp.sqrt(variance) - np.sqrt(VARIANCE[0])).max()))
    assert errors[-1] < 0.03
    assert np.log(errors[0] / errors[1]) / np.log(4) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", MULTISTEP_NOISY)
def test_noisy_multistep_samplers_draw_from_the_data(name):
    count, keys = 4000, keys_of(4000)
    sampler, grid = MULTISTEP_NOISY[name](cosine), grids.logsnr_uniform(cosine, 60, -8.0, 9.0)
    x_t = samplers.initial_noise(keys, (3,))
    made = np.asarray(jax.jit(lambda x: samplers.sample(sampler, gaussian(cosine), x, grid, {}, keys))(x_t))
    assert (np.abs(made.mean(0) - MEAN[0]) < 5 * np.sqrt(VARIANCE[0] / count) + 0.005).all()
    assert (np.abs(made.var(0) / VARIANCE[0] - 1) < 5 * np.sqrt(2 / count) + 0.03).all()


@pytest.mark.parametrize("name", ONE_STEP_NOISY)
def test_samples_have_the_moments_that_the_steps_promise(name, monkeypatch):
    count, num_steps = 4000, 60
    sampler = NOISY[name](cosine)
    keys = keys_of(count)
    x_t = samplers.initial_noise(keys, (3,))
    grid = grids.uniform(num_steps)
    samples = np.asarray(jax.jit(lambda x: samplers.sample(sampler, gaussian(cosine), x, grid, {}, keys))(x_t))
    give_noise(monkeypatch)
    mean, variance = moments(sampler, cosine, num_steps)
    assert (np.abs(samples.mean(0) - mean) < 5 * np.sqrt(variance / count)).all()
    assert (np.abs(samples.var(0) / variance - 1) < 5 * np.sqrt(2 / count)).all()
    correlation = np.corrcoef(samples.T)[np.triu_indices(3, 1)]
    assert (np.abs(correlation) < 5 / np.sqrt(count)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_with_eta_one_is_ancestral_sampling_with_the_small_variance(name, dtype, x64):
    schedule, x_t = SCHEDULES[name], start(dtype)
    denoiser = gaussian_denoiser(schedule, jnp.asarray(MEAN, dtype), jnp.asarray(VARIANCE, dtype))
    one, other = (
        samplers.sample(sampler, denoiser, x_t, grids.uniform(6), {}, keys_of(2))
        for sampler in (ddim(schedule, 1.0), ancestral(schedule, "small"))
    )
    np.testing.assert_allclose(one, other, atol=20 * jnp.finfo(dtype).eps)


def test_each_step_draws_fresh_noise(given_noise, x64):
    noise = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2, 3)))
    grid, sampler, x = grids.uniform(4), ddim(cosine, 1.0), start()
    for i in range(4):
        x, _ = sampler.step(lambda x, t: gaussian(cosine)(x, t, {}), x, grid[i], grid[i + 1], noise[i], ())
    np.testing.assert_allclose(samplers.sample(sampler, gaussian(cosine), start(), grid, {}, noise), x, rtol=1e-12)


def test_initial_noise_is_unit_normal_and_apart_from_every_step():
    keys = keys_of(2000)
    noise = np.asarray(samplers.initial_noise(keys, (5,)))
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
    for step in (0, 1, 999):
        assert abs((noise * normal_per_example(fold_in(keys, step), (5,))).mean()) < 5 / np.sqrt(noise.size)


@pytest.mark.parametrize("name", SCHEDULES)
def test_initial_noise_has_the_spread_of_unit_data_at_its_level(name, x64):
    schedule, keys = SCHEDULES[name], keys_of(3)
    level = schedule(jnp.float64(0.7))
    spread = jnp.sqrt(level.alpha**2 + level.sigma**2)
    noise = samplers.initial_noise(keys, (5,), level) / samplers.initial_noise(keys, (5,))
    np.testing.assert_allclose(noise, jnp.full((3, 5), spread), rtol=1e-6)
    expected = {"edm": np.hypot(1, 14), "linear_path": np.hypot(0.3, 0.7)}.get(name, 1)
    np.testing.assert_allclose(spread, expected, rtol=1e-12)


def test_impossible_settings_are_refused_by_name():
    for make, message in (
        (lambda: ancestral(cosine, "fixed"), "variance must be one of .*; got 'fixed'"),
        (lambda: ddim(cosine, -0.1), r"eta must be in \[0, 1\]; got -0.1"),
        (lambda: ddim(cosine, 1.5), r"eta must be in \[0, 1\]; got 1.5"),
        (lambda: heun(cosine, "sigma"), "coordinate must be one of"),
        (lambda: heun(cosine, churn=3.0), "needs num_steps"),
        (lambda: plms(cosine, 5), "order must be 1, 2, 3 or 4; got 5"),
        (lambda: lms(cosine, 0), "order must be 1, 2, 3 or 4; got 0"),
        (lambda: unipc(cosine, 4), "order must be 1, 2 or 3; got 4"),
        (lambda: unipc(cosine, 2, "bh3"), "variant must be one of"),
        (lambda: dpmpp_2m_sde(cosine, -1.0), "eta must be at least 0"),
        (lambda: dpmpp_2m_sde(cosine, solver="euler"), "solver must be one of"),
        (lambda: dpmpp_3m_sde(cosine, -1.0), "eta must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# --- What single samplers promise beside the contract ---


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("name", ["edm", "cosine", "linear"])
@pytest.mark.parametrize(("churn", "inside"), [(2.0, True), (2.0, False), (50.0, True)])
def test_heuns_churn_is_a_plain_step_from_more_noise(churn, inside, name, coordinate, given_noise, x64):
    """x_hat / alpha_hat = x / alpha + sqrt((1 + g)^2 - 1) e 1.5 z at edm_sigma (1 + g) e, with g = min(churn / 10, sqrt(2) - 1)."""
    schedule, x_t, z = SCHEDULES[name], start(), jnp.asarray(np.random.default_rng(5).normal(size=(2, 3)))
    t = time_at(schedule, -2 * jnp.log(3.0))
    limits = {"churn_min": 2.9, "churn_max": 3.1} if inside else {"churn_min": 3.1}
    churned = heun(schedule, coordinate, churn, churn_noise=1.5, num_steps=10, **limits)
    g = min(churn / 10, 2**0.5 - 1) if inside else 0.0
    t_hat = time_at(schedule, -2 * jnp.log(3 * (1 + g)))
    x_hat = schedule(t_hat).alpha * (x_t / schedule(t).alpha + ((1 + g) ** 2 - 1) ** 0.5 * 3 * 1.5 * z)

    def denoise(x, t):
        return gaussian(schedule)(x, t, {})

    expected, _ = heun(schedule, coordinate).step(denoise, x_hat, t_hat, t / 2, z, ())
    np.testing.assert_allclose(churned.step(denoise, x_t, t, t / 2, z, ())[0], expected, rtol=1e-8)


@pytest.mark.parametrize("coordinate", COORDINATES)
def test_heun_has_no_churn_where_nothing_is_noisier(coordinate, given_noise, x64):
    schedule, z, one, s = SCHEDULES["edm"], jnp.ones((2, 3)), jnp.float64(1), jnp.float64(0.8)
    churned, plain = heun(schedule, coordinate, 5.0, num_steps=10), heun(schedule, coordinate)

    def denoise(x, t):
        return gaussian(schedule)(x, t, {})

    (made, _), (expected, _) = (sampler.step(denoise, 20 * start(), one, s, z, ()) for sampler in (churned, plain))
    np.testing.assert_allclose(made, expected, rtol=1e-12)


@pytest.mark.parametrize("variance", VARIANCES)
def test_ancestral_steps_are_multiplied_by_the_product(variance, given_noise, x64):
    """The step's noise has the product's variance, its mean the product's mean; none is added in the step to the data."""

    def denoise(x, t):
        return gaussian(cosine)(x, t, {})._replace(raw_variance=0.1 * x)

    def product(step):
        return Gaussian(step.mean + 3 * step.variance, 4 * step.variance, step.log_variance)

    x_t, z = start(), jnp.asarray(np.random.default_rng(7).normal(size=(2, 3)))
    for s in (jnp.float64(0.4), jnp.float64(0)):
        plain, multiplied = (ancestral(cosine, variance, each) for each in (None, product))
        (quiet, _), (noisy, _), (made, _) = (
            sampler.step(denoise, x_t, jnp.float64(0.5), s, noise, sampler.init(x_t))
            for sampler, noise in ((plain, 0 * z), (plain, z), (multiplied, z))
        )
        step = model_step(cosine, denoise(x_t, 0.5), x_t, jnp.float64(0.5), s, variance)
        np.testing.assert_allclose(noisy - quiet, jnp.where(s > 0, jnp.sqrt(step.variance), 0) * z, atol=1e-12)
        np.testing.assert_allclose(made, quiet + 3 * step.variance + 2 * (noisy - quiet), rtol=1e-10)


def test_ancestral_remembers_the_variance_of_the_step_before_for_the_step_to_the_data(given_noise, x64):
    """A respaced table's first posterior variance is 0, and the one that stands for it is of the step before on that grid."""
    grid, x_t = jnp.array([0.9, 0.7, 0.2, 0.0]), start()
    sampler = ancestral(cosine, "learned_range")

    def denoise(x, t):
        return gaussian(cosine)(x, t, {})._replace(raw_variance=-jnp.ones_like(x), mean_gradient=jnp.ones_like(x))

    def shift(state):  # at raw_variance -1 the variance, by which the gradient shifts the mean, is the remembered one
        return sampler.step(denoise, x_t, grid[2], grid[3], 0 * x_t, state)[0] - denoise(x_t, grid[2]).x0

    _, state = sampler.step(denoise, x_t, grid[1], grid[2], 0 * x_t, sampler.init(x_t))
    np.testing.assert_allclose(shift(state), posterior(cosine, x_t, x_t, grid[1], grid[2]).variance, rtol=1e-9)
    np.testing.assert_allclose(shift(sampler.init(x_t)), posterior(cosine, x_t, x_t, 0.4, 0.2).variance, rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["edm", "cosine"])
def test_the_3m_sdes_third_step_weighs_a_quadratic_as_k_diffusion_does(name, eta, given_noise, x64):
    """With x0 = a + b u + c u^2 in u = lambda - lambda_t, its d1 is h b and its d2 is h^2 c for any spacing, so that the drift is

    alpha_s (1 + eta) integral from 0 to h of e^(-(1 + eta) (h - u)) (a + b u + c u^2 / 2) du: the curvature counts by half.
    """
    schedule, x_t = SCHEDULES[name], start()
    times, (a, b, c) = jnp.array([0.9, 0.6, 0.45, 0.3]), (0.3, -0.7, 1.1)
    lambdas = [float(jnp.log(alpha / sigma)) for alpha, sigma in map(schedule, times)]
    sampler = dpmpp_3m_sde(schedule, eta)

    def denoise(x, t):
        u = log_ratio(schedule, t) - lambdas[2]
        return Prediction(jnp.full_like(x, a + b * u + c * u**2), x)

    state = sampler.init(x_t)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x_s, state = sampler.step(denoise, x_t, t, s, 0 * x_t, state)
    h = lambdas[3] - lambdas[2]
    nodes, weights = np.polynomial.legendre.leggauss(12)
    u = h / 2 * (nodes + 1)
    drift = h / 2 * (weights * (1 + eta) * np.exp(-(1 + eta) * (h - u)) * (a + b * u + c * u**2 / 2)).sum()
    (_, sigma_t), (alpha_s, sigma_s) = schedule(times[2]), schedule(times[3])
    np.testing.assert_allclose(x_s, sigma_s / sigma_t * np.exp(-eta * h) * x_t + alpha_s * drift, rtol=1e-9)
