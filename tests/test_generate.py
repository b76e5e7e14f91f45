"""Images from conditions: classifier guidance keeps to the interval of guidance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import grids, predictions, schedules
from diffusion_jax.generate import Inputs, Knobs, Method, make_generate
from diffusion_jax.predictions import PARAMETERIZATIONS
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.training.placement import make_placement

SCHEDULE = schedules.cosine
GRID = np.asarray(grids.uniform(10, 0.95))
SHIFTS = {"score": ddim(SCHEDULE), "mean": ancestral(SCHEDULE)}


def normal(params):
    """The exact denoiser of unit normal data: x0 = alpha x_t, as alpha^2 + sigma^2 = 1."""
    return lambda x_t, t, cond: predictions.from_x0(SCHEDULE(t).alpha * x_t, x_t, t, SCHEDULE)


def seen_at(params):
    """A log-probability that rises with every pixel, and whose gradient tells when it was asked: the square of t."""
    return lambda x_t, t, cond: jnp.sum(x_t, (1, 2, 3)) * jnp.square(t)


def sampled(shift, low, high, scale=0.3):
    interval = low > 0 or high < 1
    method = Method(SHIFTS[shift], "none", interval=interval, threshold="none", classifier=shift)
    placement = make_placement("single", jax.devices()[:1])
    space = PARAMETERIZATIONS["x0"]
    generate = make_generate(normal, {}, SCHEDULE, (4, 4, 3), placement, method, space, log_prob_of=seen_at)
    knobs = Knobs(guidance_low=low, guidance_high=high, classifier_scale=scale)
    inputs = Inputs(classifier_params={})
    return generate({}, {}, np.arange(2), 0, knobs, GRID, 2, inputs=inputs, raw=True)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_classifier_guides_within_the_interval_alone(shift):
    without, everywhere = sampled(shift, 0.0, 1.0, scale=0.0), sampled(shift, 0.0, 1.0)
    assert (everywhere - without).min() > 0.05
    np.testing.assert_allclose(sampled(shift, 0.96, 0.99), without, atol=1e-5)  # no step begins there
    np.testing.assert_allclose(sampled(shift, 0.01, 1.0), everywhere, atol=1e-5)  # every step does
    late, early = (sampled(shift, *bounds) - without for bounds in ((0.0, 0.5), (0.5001, 1.0)))
    assert late.min() > 0 and early.min() > 0
    # The guided denoiser is affine in what it adds, and so are the steps: two halves make the whole.
    np.testing.assert_allclose(late + early, everywhere - without, rtol=1e-4)


def test_the_intervals_ends_are_where_ddims_closed_form_says():
    """eps = sigma (x_t - g) at the times of the interval, sigma x_t elsewhere, through DDIM's steps."""
    low, high, scale = 0.3, 0.7, 0.2
    levels = [(float(level.alpha), float(level.sigma)) for level in (SCHEDULE(t) for t in GRID)]
    x = 0.0
    for (alpha, sigma), (alpha_s, sigma_s), t in zip(levels, levels[1:], GRID, strict=False):
        gradient = scale * t**2 if low <= t <= high else 0.0
        eps = sigma * x - sigma * gradient
        x0 = (x - sigma * eps) / alpha
        x = alpha_s * x0 + sigma_s * eps
    guided, without = sampled("score", low, high, scale), sampled("score", low, high, 0.0)
    assert math.isclose(float((guided - without).mean()), x, rel_tol=1e-4)
    assert np.std(guided - without) < 1e-5
