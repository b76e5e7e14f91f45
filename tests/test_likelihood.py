"""Likelihoods: the originals' numbers, and data whose density is known in closed form."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_denoiser, mixture_denoiser, mixture_log_density

from diffusion_jax import grids, guidance, likelihood, schedules
from diffusion_jax.keys import keys_per_example
from diffusion_jax.posterior import VARIANCES
from diffusion_jax.predictions import Prediction

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = pathlib.Path(__file__).parent / "golden"


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_kl_and_cdf_and_the_decoder_equal_the_originals():
    golden = np.load(GOLDEN / "ddpm_likelihood.npz")
    ours = likelihood.normal_kl(*(golden[f"kl_{name}"] for name in ("mean1", "logvar1", "mean2", "logvar2")))
    np.testing.assert_allclose(ours, golden["kl"], rtol=1e-5)
    zero = np.zeros_like(golden["kl"])
    ours = likelihood.normal_kl(golden["kl_mean1"], golden["kl_logvar1"], zero, zero)
    np.testing.assert_allclose(ours, golden["kl_to_standard_normal"], rtol=1e-5, atol=1e-6)
    cdf = likelihood.approx_standard_normal_cdf(golden["cdf_x"])
    np.testing.assert_allclose(cdf, golden["cdf_approx"], atol=1e-6)
    x, means, log_scales, expected = (golden[f"dg_{name}"] for name in ("x", "means", "log_scales", "log_likelihood"))
    ours = likelihood.discretized_gaussian_log_likelihood(x, means, log_scales)
    np.testing.assert_allclose(np.exp(ours), np.exp(expected), atol=1e-6)
    likely = expected > -6  # below, float32's difference of two numbers near 1 is noise
    assert likely.mean() > 0.1
    np.testing.assert_allclose(ours[likely], expected[likely], atol=1e-3)


def test_the_probabilities_of_all_uint8_values_sum_to_one(x64):
    values = jnp.arange(256) / 127.5 - 1
    for mean, scale in ((0.2, 0.01), (-0.99, 0.3), (1.5, 2.0)):
        logs = likelihood.discretized_gaussian_log_likelihood(values, jnp.full(256, mean), jnp.full(256, np.log(scale)))
        assert abs(jnp.exp(logs).sum() - 1) < 1e-9


@pytest.mark.parametrize("variance", ["FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE"])
def test_the_bound_along_a_respaced_grid_equals_the_originals(variance, monkeypatch, x64):
    golden = np.load(GOLDEN / "ddpm_bound.npz")
    noise = jnp.asarray(golden["noise_in_order_of_use"], jnp.float64)
    # Keys are the noise of every step, so that it can be given.
    monkeypatch.setattr(likelihood, "fold_in", lambda keys, i: keys[i])
    monkeypatch.setattr(likelihood, "normal_per_example", lambda keys, shape, dtype: keys)
    schedule = schedules.from_betas(schedules.linear_betas(1000))
    mixture = (jnp.asarray(golden[f"gmm_{name}"]) for name in ("weights", "means", "variances"))
    exact = mixture_denoiser(schedule, *mixture)

    def network(x_t, t, cond):
        return exact(x_t, t, cond)._replace(raw_variance=jnp.tanh(2 * x_t))

    times = jnp.append((jnp.asarray(golden["timestep_map"])[::-1] + 1) / 1000, 0)
    name = variance.lower().removeprefix("fixed_")
    x0 = jnp.asarray(golden["x_start"], jnp.float64)
    ours = likelihood.variational_bound(guidance.clip_x0(network, schedule), schedule, x0, times, {}, noise, name)
    for field, theirs in (("vb", "vb"), ("x0_mse", "xstart_mse"), ("eps_mse", "mse"), ("prior", "prior_bpd")):
        np.testing.assert_allclose(getattr(ours, field), golden[f"{variance}_{theirs}"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.total, golden[f"{variance}_total_bpd"], rtol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_bound_of_exact_gaussian_data_nears_the_entropy_from_above_as_steps_grow(variance, monkeypatch, x64):
    """Everything is quadratic in x0 and the noise, so the means over all signs of both are the expectations."""
    monkeypatch.setattr(likelihood, "fold_in", lambda keys, i: keys)
    monkeypatch.setattr(likelihood, "normal_per_example", lambda keys, shape, dtype: keys)
    schedule, mean, data_variance = schedules.cosine, 0.3, 0.25
    x0 = jnp.array([[mean + 0.5], [mean + 0.5], [mean - 0.5], [mean - 0.5]])
    eps = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    denoiser = gaussian_denoiser(schedule, jnp.full((1, 1), mean), data_variance)
    entropy = math.log2(2 * math.pi * math.e * data_variance) / 2

    def gap(num_steps):
        # Equal ratios of noise to signal; the first time is so late, and the last so early, that they cost 1e-7 and 1e-9.
        log_sigma = jnp.linspace(math.log(2e3), math.log(1e-3), num_steps)
        grid = jnp.append(schedules.time_at(schedule, -2 * log_sigma), 0.0)
        bound = likelihood.variational_bound(denoiser, schedule, x0, grid, {}, eps, variance, decoder=None)
        return bound.total.mean() - entropy

    gaps = np.array([gap(n) for n in (200, 400, 800)])
    assert (gaps > 0).all()
    np.testing.assert_allclose(np.log2(gaps[:-1] / gaps[1:]), 1, atol=0.06)
    limit = (gaps[0] - 6 * gaps[1] + 8 * gaps[2]) / 3  # what is left without terms in 1 / N and 1 / N^2
    assert abs(limit) < 2e-3 * gaps[2]


def test_large_variance_is_exact_at_any_number_of_steps_for_unit_normal_data(monkeypatch, x64):
    monkeypatch.setattr(likelihood, "fold_in", lambda keys, i: keys)
    monkeypatch.setattr(likelihood, "normal_per_example", lambda keys, shape, dtype: keys)
    x0, eps = jnp.array([[1.0], [1.0], [-1.0], [-1.0]]), jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    schedule = schedules.cosine
    denoiser = gaussian_denoiser(schedule, jnp.zeros((1, 1)), 1.0)
    grid = jnp.array([1.0, 0.7, 0.2, 1e-4, 0.0])
    bound = likelihood.variational_bound(denoiser, schedule, x0, grid, {}, eps, "large", decoder=None)
    np.testing.assert_allclose(bound.total.mean(), math.log2(2 * math.pi * math.e) / 2, rtol=1e-7)
    assert bound.vb.shape == bound.x0_mse.shape == bound.eps_mse.shape == (4, 4)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_bound_ignores_batch_mates_and_is_finite_on_images(variance):
    schedule, grid = schedules.from_betas(schedules.cosine_betas(8)), grids.uniform(8)
    x0 = jnp.round(jnp.clip(draw(3, 2, 2, 3), -1, 1) * 127.5 + 127.5).astype(jnp.float32) / 127.5 - 1
    keys = keys_per_example(jax.random.key(0), jnp.arange(3))
    exact = gaussian_denoiser(schedule, jnp.zeros((1, 2, 2, 3)), 0.3)

    def network(x_t, t, cond):
        raw = jnp.tanh(x_t) if variance == "learned_range" else jnp.full_like(x_t, -4.0)
        return exact(x_t, t, cond)._replace(raw_variance=raw)

    def bound(rows):
        return likelihood.variational_bound(network, schedule, x0[rows], grid, {}, keys[rows], variance)

    together, alone = bound(slice(0, 3)), bound(slice(1, 2))
    for field in together._fields:
        assert jnp.isfinite(getattr(together, field)).all()
        np.testing.assert_allclose(getattr(alone, field)[0], getattr(together, field)[1], rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prior_variance", [None, 0.7])
def test_the_prior_term_is_the_divergence_of_gaussians(name, prior_variance, x64):
    x0, t = draw(3, 4), jnp.array([0.5, 0.7, 0.9])
    alpha, sigma = (np.asarray(scale)[:, None] for scale in SCHEDULES[name](t))
    prior = prior_variance or alpha**2 + sigma**2
    nats = (np.log(prior / sigma**2) - 1 + (sigma**2 + (alpha * x0) ** 2) / prior) / 2
    ours = likelihood.prior_bits(SCHEDULES[name], x0, t, prior_variance)
    np.testing.assert_allclose(ours, nats.mean(axis=1) / np.log(2), rtol=1e-9)


def test_an_unknown_decoder_is_refused():
    x = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="float16"):
        likelihood.step_bits(schedules.cosine, Prediction(x, x), x, x, 0.5, 0.4, decoder="float16")


SMOOTH = {"linear_path": schedules.linear_path, "cosine": schedules.cosine, "linear": schedules.linear}
SMOOTH["edm"] = functools.partial(schedules.edm, sigma_max=5.0)


def gaussian_error(schedule, num_steps, first=0.05, keys=None):
    """Largest error of log p on Gaussian data, in a prior of the right variance."""
    x, variance = draw(5, 3), jnp.array([[0.2, 0.5, 1.5]])
    grid = jnp.append(jnp.linspace(1.0, first, num_steps + 1), 0.0)
    level, start = schedule(jnp.float64(1.0)), schedule(jnp.float64(first))
    prior, total = level.alpha**2 * variance + level.sigma**2, start.alpha**2 * variance + start.sigma**2
    denoiser = gaussian_denoiser(schedule, jnp.zeros((1, 3)), variance)
    ours = likelihood.exact_log_likelihood(denoiser, schedule, x, grid, {}, keys, prior_variance=prior)
    exact = (-(x**2) / total / 2 - jnp.log(2 * jnp.pi * total) / 2).sum(axis=1)
    return float(jnp.abs(ours - exact).max())


@pytest.mark.parametrize("name", SMOOTH)
def test_log_likelihood_of_gaussian_data_is_exact_to_the_fourth_order(name, x64):
    errors = [gaussian_error(SMOOTH[name], n) for n in (160, 320)]
    assert errors[-1] < 1e-7
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 4, atol=0.25)


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_likelihood_holds_for_every_schedule_of_the_table(name, x64):
    assert gaussian_error(SCHEDULES[name], 200, first=0.02) < 1e-3


MIXTURE = (jnp.array([0.3, 0.7]), jnp.array([[0.8, -0.5], [-0.4, 0.6]]), jnp.array([0.05, 0.2]))


def mixture_log_likelihoods(schedule, num_steps, keys=None, num_probes=1, first=0.05):
    x = draw(4, 2, seed=1) * 0.7
    weights, means, variances = (jnp.asarray(part, jnp.float64) for part in MIXTURE)
    grid = jnp.append(jnp.linspace(1.0, first, num_steps + 1), 0.0)
    denoiser = mixture_denoiser(schedule, weights, means, variances)
    ours = likelihood.exact_log_likelihood(denoiser, schedule, x, grid, {}, keys, num_probes)
    level = schedule(jnp.float64(first))
    exact = jax.vmap(lambda x: mixture_log_density(weights, means, variances, *level, x))(x)
    return ours, exact


@pytest.mark.parametrize("name", ["linear_path", "cosine"])
def test_log_likelihood_of_a_mixture_is_its_log_density_to_the_fourth_order(name, x64):
    pairs = (mixture_log_likelihoods(SMOOTH[name], num_steps) for num_steps in (80, 160))
    errors = [np.abs(ours - exact).max() for ours, exact in pairs]
    assert errors[-1] < 1e-7
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 4, atol=0.25)


def test_hutchinsons_estimate_has_the_exact_mean_and_less_spread_with_more_probes(x64):
    exact, _ = mixture_log_likelihoods(schedules.cosine, 10)

    def estimates(num_probes, count):
        def estimate(seed):
            keys = keys_per_example(jax.random.key(seed), jnp.arange(4))
            return mixture_log_likelihoods(schedules.cosine, 10, keys, num_probes)[0]

        return np.asarray(jax.jit(jax.vmap(estimate))(jnp.arange(count)))

    few, many = estimates(1, 400), estimates(8, 100)
    spread = few.std(axis=0)
    assert (spread > 1e-3).all(), "the off-diagonal of the Jacobian matters here"
    assert (np.abs(few.mean(axis=0) - exact) < 5 * spread / np.sqrt(len(few))).all()
    np.testing.assert_allclose(many.std(axis=0) / spread, np.sqrt(1 / 8), rtol=0.4)


def test_hutchinsons_estimate_is_exact_where_dimensions_do_not_mix(x64):
    keys = keys_per_example(jax.random.key(0), jnp.arange(5))
    exact, estimated = (gaussian_error(schedules.linear_path, 80, keys=k) for k in (None, keys))
    np.testing.assert_allclose(estimated, exact, rtol=1e-6)
