"""Losses: the weights that judging in another space gives, their optimum, and the distributions of the time."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, scales

from diffusion_jax import losses, schedules
from diffusion_jax.keys import keys_per_example
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = pathlib.Path(__file__).parent / "golden"
TIMES = np.array([0.15, 0.45, 0.8])
X0, EPS = (np.random.default_rng(seed).normal(size=(3, 2, 4)) for seed in (0, 1))
C = 0.37

# An error of C in the output (row), judged in another space (column), is C times this, with a = alpha and s = sigma on the
# linear path, where velocity = eps - x0. From x_t = a x0 + s eps, an error of x0 by dx is one of eps by -a dx / s.
ERROR = {
    ("x0", "x0"): lambda a, s: 1 + 0 * a,
    ("x0", "eps"): lambda a, s: a / s,
    ("x0", "v"): lambda a, s: a**2 / s + s,
    ("x0", "velocity"): lambda a, s: 1 / s,
    ("x0", "score"): lambda a, s: a / s**2,
    ("eps", "x0"): lambda a, s: s / a,
    ("eps", "eps"): lambda a, s: 1 + 0 * a,
    ("eps", "v"): lambda a, s: a + s**2 / a,
    ("eps", "velocity"): lambda a, s: 1 / a,
    ("eps", "score"): lambda a, s: 1 / s,
    ("velocity", "x0"): lambda a, s: s,
    ("velocity", "eps"): lambda a, s: a,
    ("velocity", "velocity"): lambda a, s: 1 + 0 * a,
    ("v", "x0"): lambda a, s: s / (a**2 + s**2),
    ("v", "eps"): lambda a, s: a / (a**2 + s**2),
    ("v", "v"): lambda a, s: 1 + 0 * a,
    ("score", "eps"): lambda a, s: s,
    ("score", "x0"): lambda a, s: s**2 / a,
}


@pytest.fixture
def given_noise(monkeypatch):
    """Keys are the noise itself, so that a test can give it."""
    monkeypatch.setattr(losses, "normal_per_example", lambda keys, shape, dtype: keys)


def loss(apply, name, space, schedule, x0=X0, t=TIMES, noise=EPS):
    return losses.denoising_loss(
        apply,
        PARAMETERIZATIONS[name],
        PARAMETERIZATIONS[space],
        schedule,
        jnp.asarray(x0),
        jnp.asarray(t),
        jnp.asarray(noise),
        {},
    )


def perfect(name, schedule, error=0.0):
    """A network that knows x0 and eps, and is wrong by `error`."""
    truth = Prediction(jnp.asarray(X0), jnp.asarray(EPS))
    return lambda x_t, t, cond: PARAMETERIZATIONS[name].to_output(truth, x_t, t, schedule) + error


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("space", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_perfect_prediction_costs_nothing_in_any_space(name, space, schedule_name, given_noise, x64):
    schedule = SCHEDULES[schedule_name]
    np.testing.assert_allclose(loss(perfect(name, schedule), name, space, schedule), 0, atol=1e-18)


@pytest.mark.parametrize(("name", "space"), ERROR)
def test_an_error_of_the_output_has_the_weight_of_the_space_that_judges_it(name, space, given_noise, x64):
    schedule = schedules.linear_path
    expected = (C * ERROR[name, space](1 - TIMES, TIMES)) ** 2
    np.testing.assert_allclose(loss(perfect(name, schedule, C), name, space, schedule), expected, rtol=1e-9)


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_in_its_own_space_the_loss_is_the_plain_squared_error(name, schedule_name, given_noise, x64):
    schedule = SCHEDULES[schedule_name]
    alpha, sigma = scales(schedule, TIMES, jnp.asarray(X0))
    x_t = alpha * X0 + sigma * EPS

    def apply(x_t, t, cond):
        return jnp.sin(x_t)

    target = PARAMETERIZATIONS[name].to_output(Prediction(jnp.asarray(X0), jnp.asarray(EPS)), x_t, TIMES, schedule)
    expected = ((np.sin(x_t) - target) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(loss(apply, name, name, schedule), expected, rtol=1e-10)


@pytest.mark.parametrize(("objective", "name"), [("noise", "eps"), ("x0", "x0"), ("v", "v")])
def test_weights_and_losses_judged_as_eps_equal_an_independent_implementation(objective, name, given_noise, x64):
    golden = np.load(GOLDEN / "lucidrains_predictions_and_losses.npz")
    schedule = schedules.from_betas(schedules.cosine_betas(100))
    step = jnp.asarray(golden["t"])

    def apply(x_t, t, cond):
        return jnp.sin(1.3 * x_t) + 0.001 * step.reshape(-1, 1, 1, 1)

    x0, noise = (golden[key].astype(np.float64) for key in ("x_start", "noise"))
    ours = loss(apply, name, "eps", schedule, x0, (golden["t"] + 1) / 100, noise)
    np.testing.assert_allclose(ours.mean(), golden[f"pred_{objective}_cosine_plain_mean_loss"][0], rtol=1e-4)
    in_own_space = loss(apply, name, name, schedule, x0, (golden["t"] + 1) / 100, noise)
    weight = golden[f"pred_{objective}_cosine_plain_loss_weight"][golden["t"]]
    np.testing.assert_allclose(ours / in_own_space, weight, rtol=1e-5)


@pytest.mark.parametrize(("mean", "name"), [("EPSILON", "eps"), ("START_X", "x0")])
def test_losses_equal_the_originals(mean, name, given_noise):
    golden = np.load(GOLDEN / "ddpm_training_losses.npz")
    schedule = schedules.from_betas(schedules.linear_betas(50))
    ours = loss(
        lambda x_t, t, cond: jnp.asarray(golden["model_output"]),
        name, name, schedule, golden["x_start"], (golden["t"] + 1) / 50, golden["noise"],
    )  # fmt: skip
    np.testing.assert_allclose(ours, golden[f"MSE_{mean}_FIXED_SMALL_mse"], rtol=1e-5)


def test_the_loss_of_an_example_ignores_its_batch_mates():
    keys = keys_per_example(jax.random.key(0), jnp.arange(3))
    x0, t = jnp.asarray(X0, jnp.float32), jnp.asarray(TIMES, jnp.float32)
    cond = jnp.arange(3.0)

    def of(rows):
        return losses.denoising_loss(
            lambda x_t, t, cond: jnp.sin(x_t) + (t + cond)[:, None, None],
            PARAMETERIZATIONS["eps"], PARAMETERIZATIONS["x0"], schedules.cosine, x0[rows], t[rows], keys[rows], cond[rows],
        )  # fmt: skip

    together = of(slice(0, 3))
    assert together.shape == (3,)
    for i in range(3):
        np.testing.assert_allclose(of(slice(i, i + 1))[0], together[i], rtol=1e-6)


@pytest.mark.parametrize("space", PARAMETERIZATIONS)
@pytest.mark.parametrize("schedule_name", ["linear_path", "cosine"])
def test_the_best_linear_network_on_gaussian_data_is_the_posterior_mean(schedule_name, space, x64):
    """With x0 ~ N(0, v) and an x0 network k x_t the loss is a parabola in k; its lowest point is the regression of x0 on x_t."""
    schedule, count, variance, time = SCHEDULES[schedule_name], 20_000, 0.4, 0.55
    x0 = jnp.sqrt(variance) * jax.random.normal(jax.random.key(1), (count, 2))
    keys = keys_per_example(jax.random.key(0), jnp.arange(count))

    @jax.jit
    def cost(k):
        x0_space, judge = PARAMETERIZATIONS["x0"], PARAMETERIZATIONS[space]
        times = jnp.full(count, time)
        per_example = losses.denoising_loss(lambda x_t, *_: k * x_t, x0_space, judge, schedule, x0, times, keys, {})
        return per_example.mean()

    low, middle, high = cost(0.0), cost(0.5), cost(1.0)
    lowest = 0.5 - 0.25 * (high - low) / (high - 2 * middle + low)
    alpha, sigma = schedule(jnp.float64(time))
    total = alpha**2 * variance + sigma**2
    standard_error = np.sqrt(variance * sigma**2 / total / total / (2 * count))
    assert abs(lowest - alpha * variance / total) < 5 * standard_error


def time_keys(count=20_000):
    return keys_per_example(jax.random.key(2), jnp.arange(count))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.05, 0.6)])
def test_uniform_time_fills_its_range_evenly(low, high):
    t = np.asarray(losses.uniform_time(time_keys(), low, high), np.float64)
    assert low <= t.min() < low + 0.01
    assert high - 0.01 < t.max() < high
    unit = (t - low) / (high - low)
    assert abs(unit.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / len(t))
    assert abs((unit**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / len(t))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.6)])
def test_logit_normal_time_is_normal_in_its_logit(mean, std):
    t = np.asarray(losses.logit_normal_time(time_keys(), mean, std), np.float64)
    assert t.min() > 0
    assert t.max() < 1
    logit = np.log(t / (1 - t))
    assert abs(logit.mean() - mean) < 5 * std / np.sqrt(len(t))
    assert abs(logit.std() - std) < 5 * std / np.sqrt(2 * len(t))
    below_one_deviation = (logit < mean + std).mean()
    assert abs(below_one_deviation - 0.841345) < 5 * np.sqrt(0.841 * 0.159 / len(t))


@pytest.mark.parametrize("distribution", [losses.uniform_time, losses.logit_normal_time])
def test_the_time_of_an_example_ignores_its_batch_mates(distribution):
    keys = time_keys(5)
    np.testing.assert_allclose(distribution(keys[3:4])[0], distribution(keys)[3], rtol=1e-6)
