"""Classifier guidance of the originals: the shift of the mean, the shift of the score, and whole guided loops."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import mixture_denoiser

from diffusion_jax import guidance, posterior, samplers, schedules
from diffusion_jax.predictions import PARAMETERIZATIONS
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim

GOLDEN = pathlib.Path(__file__).parent / "golden"
VARIANCES = {"FIXED_SMALL": "small", "LEARNED_RANGE": "learned_range"}
TIMES = {"20": (0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894, 946, 999),
         "ddim20": tuple(range(0, 1000, 50))}  # fmt: skip


def single_steps():
    """The golden step of five examples: (arrays, schedule, clipped and guided denoisers by shift)."""
    golden = {
        name: np.asarray(value, float) for name, value in np.load(GOLDEN / "ddpm_posterior_and_guidance.npz").items()
    }
    schedule = schedules.from_betas(schedules.linear_betas(50))
    output, raw = np.split(golden["model_output_6ch"], 2, axis=1)
    gradient = jnp.asarray(golden["cond_gradient"])

    def network(x_t, t, cond):
        prediction = PARAMETERIZATIONS["eps"].from_output(jnp.asarray(output), x_t, t, schedule)
        return prediction._replace(raw_variance=jnp.asarray(raw))

    def guide(shift):
        clipped = guidance.clip_x0(network, schedule)
        return guidance.classifier(clipped, schedule, lambda x, t, cond: (x * gradient).sum((1, 2, 3)), 1.0, shift)

    return golden, schedule, (golden["t"] + 1) / 50, golden["t"] / 50, guide


def close_to_largest(ours, expected, tolerance=1e-5):
    largest = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(ours / largest, expected / largest, atol=tolerance)


@pytest.mark.parametrize("name", VARIANCES)
def test_the_mean_is_shifted_as_by_the_originals(name, x64):
    golden, schedule, t, s, guide = single_steps()
    x_t = jnp.asarray(golden["x_t"])
    prediction = guide("mean")(x_t, t, {})
    step = posterior.model_step(schedule, prediction, x_t, t, s, VARIANCES[name])
    close_to_largest(step.mean + step.variance * prediction.mean_gradient, golden[f"condition_mean_{name}"])


@pytest.mark.parametrize("name", VARIANCES)
def test_the_score_is_shifted_as_by_the_originals(name, x64):
    golden, schedule, t, s, guide = single_steps()
    x_t = jnp.asarray(golden["x_t"])
    prediction = guide("score")(x_t, t, {})
    close_to_largest(prediction.x0, golden[f"condition_score_{name}_pred_xstart"])
    mean = posterior.model_step(schedule, prediction, x_t, t, s, VARIANCES[name]).mean
    close_to_largest(mean, golden[f"condition_score_{name}_mean"])


def mixture_loop(steps, wrap):
    """The golden loops' denoiser (with tanh(2 x) for its variance), wrapped, and their grid."""
    golden = np.load(GOLDEN / "ddpm_guided_loops.npz")
    schedule = schedules.from_betas(schedules.linear_betas(1000))
    mixture = mixture_denoiser(
        schedule, *(jnp.asarray(golden[f"gmm_{n}"], float) for n in ("weights", "means", "variances"))
    )
    target = jnp.asarray(golden["cond_target"], float)

    def denoiser(x_t, t, cond):
        return mixture(x_t, t, cond)._replace(raw_variance=jnp.tanh(2 * x_t))

    def log_prob(x, t, cond):  # of gradient (target - x) (1 + step / 1000)
        return -0.5 * jnp.sum((target - x) ** 2, (1, 2, 3)) * (1 + schedules.discrete_step(t, 1000) / 1000)

    grid = np.append((np.array(TIMES[steps])[::-1] + 1) / 1000, 0.0)
    return golden, schedule, wrap(denoiser, schedule, log_prob), grid


def follow(golden, key, sampler, denoiser, grid, monkeypatch):
    """Every step of a loop, against the original's states."""
    expected = golden[f"{key}_samples"]
    noise = golden[f"{key}_noise"] if f"{key}_noise" in golden else np.zeros_like(expected)
    monkeypatch.setattr("diffusion_jax.samplers.ancestral.normal_per_example", lambda keys, shape, dtype: keys)
    monkeypatch.setattr(samplers, "fold_in", lambda keys, i: keys[i])
    x = jnp.asarray(golden["x_T"], float)
    run = jax.jit(
        lambda carry, i: samplers.run(sampler, denoiser, carry, grid, {}, jnp.asarray(noise, float), i, i + 1)
    )
    carry = (x, sampler.init(x))
    for i in range(len(expected)):
        carry = run(carry, i)
        np.testing.assert_allclose(carry[0], expected[i], atol=1e-3)


def classified(denoiser, schedule, log_prob, shift):
    return guidance.classifier(guidance.clip_x0(denoiser, schedule), schedule, log_prob, 1.0, shift)


def test_a_guided_ancestral_loop_with_learned_variance_equals_the_originals(monkeypatch, x64):
    wrap = functools.partial(classified, shift="mean")
    golden, schedule, denoiser, grid = mixture_loop("20", wrap)
    sampler = ancestral(schedule, "learned_range")
    follow(golden, "ddpm20_LEARNED_RANGE_cond", sampler, denoiser, grid, monkeypatch)


def test_a_guided_ddim_loop_equals_the_originals(monkeypatch, x64):
    wrap = functools.partial(classified, shift="score")
    golden, schedule, denoiser, grid = mixture_loop("ddim20", wrap)
    follow(golden, "ddim20_eta0_cond", ddim(schedule), denoiser, grid, monkeypatch)


def test_a_loop_whose_x0_is_edited_equals_the_originals(monkeypatch, x64):
    def damped(denoiser, schedule, log_prob):
        from diffusion_jax.predictions import with_x0

        return lambda x_t, t, cond: with_x0(p := denoiser(x_t, t, cond), 0.9 * p.x0, x_t, t, schedule)

    golden, schedule, denoiser, grid = mixture_loop("ddim20", damped)
    follow(golden, "ddim20_eta0_denoisedfn0p9_noclip", ddim(schedule), denoiser, grid, monkeypatch)
