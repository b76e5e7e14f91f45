"""Distributions of the training time, and the history of losses that one of them draws by."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES

from diffusion_jax import schedules, times
from diffusion_jax.keys import keys_per_example

GOLDEN = pathlib.Path(__file__).parent / "golden"


def time_keys(count=20_000):
    return keys_per_example(jax.random.key(2), jnp.arange(count))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.05, 0.6)])
def test_uniform_time_fills_its_range_evenly(low, high):
    t = np.asarray(times.uniform_time(time_keys(), low, high), np.float64)
    assert low <= t.min() < low + 0.01
    assert high - 0.01 < t.max() < high
    unit = (t - low) / (high - low)
    assert abs(unit.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / len(t))
    assert abs((unit**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / len(t))


def is_normal(sample, mean, std):
    count = len(sample)
    assert abs(sample.mean() - mean) < 5 * std / np.sqrt(count)
    assert abs(sample.std() - std) < 5 * std / np.sqrt(2 * count)
    below_one_deviation = (sample < mean + std).mean()
    assert abs(below_one_deviation - 0.841345) < 5 * np.sqrt(0.841 * 0.159 / count)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.6)])
def test_logit_normal_time_is_normal_in_its_logit(mean, std):
    t = np.asarray(times.logit_normal_time(time_keys(), mean, std), np.float64)
    assert t.min() > 0
    assert t.max() < 1
    is_normal(np.log(t / (1 - t)), mean, std)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.3, 0.5)])
@pytest.mark.parametrize("name", ["edm", "linear_path", "cosine", "linear", "ddpm_linear"])
def test_log_normal_sigma_time_is_normal_in_the_log_of_edms_sigma(name, mean, std, x64):
    schedule = {**SCHEDULES, "edm": schedules.edm}[name]
    t = jax.jit(functools.partial(times.log_normal_sigma_time, schedule=schedule, mean=mean, std=std))(time_keys())
    is_normal(np.log(schedules.edm_sigma(schedule(t))), mean, std)


def test_log_normal_sigma_time_stays_inside_where_the_schedule_has_no_such_noise():
    t = times.log_normal_sigma_time(time_keys(100), functools.partial(schedules.edm, sigma_max=0.5), mean=0.0)
    assert ((t >= 0) & (t <= 1)).all()
    assert (t == 1).any()


def test_discrete_uniform_time_draws_every_step_of_a_table_evenly():
    num_steps = 7
    t = times.discrete_uniform_time(time_keys(), num_steps)
    steps = schedules.discrete_step(t, num_steps)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
    counts = np.bincount(np.round(steps).astype(int))
    assert len(counts) == num_steps
    share = 1 / num_steps
    assert np.abs(counts / len(t) - share).max() < 5 * np.sqrt(share * (1 - share) / len(t))


@pytest.mark.parametrize(
    "distribution",
    [
        times.uniform_time,
        times.logit_normal_time,
        functools.partial(times.log_normal_sigma_time, schedule=schedules.edm),
        functools.partial(times.discrete_uniform_time, num_steps=1000),
        lambda keys: times.draw(times.init(1000), keys)[0],
    ],
)
def test_the_time_of_an_example_ignores_its_batch_mates(distribution):
    keys = time_keys(5)
    np.testing.assert_allclose(distribution(keys[3:4])[0], distribution(keys)[3], rtol=1e-6)


def test_probabilities_equal_the_originals_after_every_update(x64):
    golden = np.load(GOLDEN / "loss_second_moment.npz")
    history = jax.tree.map(lambda x: x.astype(jnp.float64) if x.ndim == 2 else x, times.init(30, 4))
    update = jax.jit(times.update)
    full = []
    for steps, losses, expected in zip(
        golden["ts"], golden["losses"], golden["weights_after_each_update"], strict=True
    ):
        history = update(history, jnp.asarray(steps), jnp.asarray(losses))
        full.append(bool((history.counts == 4).all()))
        ours = times.probabilities(history)
        np.testing.assert_allclose(ours, expected / expected.sum(), rtol=1e-12)
    assert 0 < sum(full) < len(full), "both before and after the history is full"
    np.testing.assert_allclose(ours, golden["probabilities"], rtol=1e-12)
    steps, importance = times.draw(history, time_keys(500))
    np.testing.assert_allclose(importance, golden["importance_weight_of_t"][steps], rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_an_update_is_that_of_its_losses_one_by_one(batch):
    """Also where a batch has more of one step than a row holds, and before and after a row is full."""
    rng, num_steps, length = np.random.default_rng(batch), 6, 3
    history, rows = times.init(num_steps, length), [[] for _ in range(num_steps)]
    for _ in range(4):
        steps, losses = rng.integers(0, num_steps, batch), rng.random(batch).astype(np.float32)
        history = times.update(history, jnp.asarray(steps), jnp.asarray(losses))
        for step, loss in zip(steps, losses, strict=True):
            rows[step] = [*rows[step], loss][-length:]
        for i, row in enumerate(rows):
            assert history.counts[i] == len(row)
            np.testing.assert_array_equal(history.losses[i], row + [0] * (length - len(row)))


def test_draws_follow_the_probabilities_and_their_weights_undo_them():
    losses = jnp.array([1.0, 3.0, 0.1, 6.0])
    history = times.LossHistory(jnp.stack([losses] * 2, axis=1), jnp.full(4, 2))
    p = np.asarray(times.probabilities(history))
    np.testing.assert_allclose(p, 0.999 * losses / losses.sum() + 0.001 / 4, rtol=1e-6)
    steps, importance = times.draw(history, time_keys())
    count = len(steps)
    assert (np.abs(np.bincount(steps) / count - p) < 5 * np.sqrt(p * (1 - p) / count)).all()
    weighted = np.asarray(importance * losses[steps])
    assert abs(weighted.mean() - losses.mean()) < 5 * weighted.std() / np.sqrt(count)
    assert weighted.std() < np.std(losses) / 10, "what the distribution is for"
