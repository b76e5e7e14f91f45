"""Samplers: one contract for all of them. Their noise, their orders and the originals have files of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_denoiser, gaussian_prediction
from sampler_cases import (
    MEAN,
    SAMPLERS,
    VARIANCE,
    gaussian,
    keys_of,
    start,
)

from diffusion_jax import editing, grids, samplers
from diffusion_jax.denoiser import make_denoiser
from diffusion_jax.guidance import (
    autoguidance,
    classifier,
    classifier_free,
    clip_x0,
    dynamic_threshold,
    projected,
    rescaled,
    within_interval,
)
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction
from diffusion_jax.schedules import cosine, linear_path

pytestmark = pytest.mark.usefixtures("strict_ranks")


# --- The contract: every sampler, with every schedule, parameterization and wrapper ---


POINT = np.array([[0.4, -0.6, 0.1], [-1.3, 0.2, 1.7]])  # the condition of two examples, partly outside [-1, 1]
NO_POINT = np.array([0.2, 0.1, -0.3])
SCALE = 2.0
# (number of steps, tolerance). Where x moves on a curve in the method's own coordinates, a point is met approximately.
EXACT = (8, 1e-3)
APPROXIMATE = (128, 2e-2)
CURVED = ("euler", "midpoint", "heun_churn")
FIRST_TIME = 0.98  # the cosine and the linear path have no signal at t = 1, from which eps and score could tell x0


def exact_network(parameterization, schedule):
    """A network for data that are one point, the condition; it is told 1000 t."""

    def apply(x_t, time, cond):
        t = time / 1000
        return parameterization.to_output(gaussian_prediction(schedule, cond, 0.0, x_t, t), x_t, t, schedule)

    return apply


def panel():
    """(wrapper, parameterization, where the two examples must land)."""
    landings = {"plain": POINT, "guided": NO_POINT + SCALE * (POINT - NO_POINT), "clipped": np.clip(POINT, -1, 1)}
    return [(wrapper, name, landing) for wrapper, landing in landings.items() for name in PARAMETERIZATIONS]


def mixed_denoiser(schedule):
    """Takes two examples for each parameterization in turn, again and again, each pair with its own model."""
    denoisers = [
        make_denoiser(exact_network(parameterization, schedule), parameterization, schedule, lambda t: 1000 * t)
        for parameterization in PARAMETERIZATIONS.values()
    ]

    def denoise(x_t, t, cond):
        parts = zip(*(array.reshape(-1, len(denoisers), 2, 3).swapaxes(0, 1) for array in (x_t, cond)), strict=True)
        found = [d(x.reshape(-1, 3), t, c.reshape(-1, 3))[:2] for d, (x, c) in zip(denoisers, parts, strict=True)]
        pairs = (jnp.stack([array.reshape(-1, 2, 3) for array in arrays], 1) for arrays in zip(*found, strict=True))
        return Prediction(*(array.reshape(x_t.shape) for array in pairs))

    return denoise


def panel_denoiser(schedule):
    """One denoiser for the panel's pairs of examples. What is plain is guided by a scale of 1: one program holds less then."""
    mixed, scales = mixed_denoiser(schedule), jnp.repeat(jnp.array([1.0, SCALE]), 2 * len(PARAMETERIZATIONS))[:, None]
    guided, clipped = classifier_free(mixed, NO_POINT, scales), clip_x0(mixed, schedule)

    def denoise(x_t, t, cond):
        count = len(scales)
        parts = guided(x_t[:count], t, cond[:count])[:2], clipped(x_t[count:], t, cond[count:])[:2]
        return Prediction(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    return denoise


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_recovers_one_point_with_every_parameterization_and_wrapper(name, schedule_name):
    schedule = SCHEDULES[schedule_name]
    curved = name in CURVED and schedule_name not in ("linear_path", "edm")
    num_steps, tolerance = APPROXIMATE if curved else EXACT
    count = 2 * len(panel())
    cond, keys = jnp.tile(jnp.asarray(POINT, jnp.float32), (len(panel()), 1)), keys_of(count)
    grid = grids.quadratic(num_steps, FIRST_TIME)
    x_t = samplers.initial_noise(keys, (3,))
    sampler, denoiser = SAMPLERS[name](schedule), panel_denoiser(schedule)
    landed = jax.jit(lambda x: samplers.sample(sampler, denoiser, x, grid, cond, keys))(x_t)
    errors = np.abs(np.asarray(landed).reshape(-1, 2, 3) - np.stack([landing for *_, landing in panel()]))
    errors = {f"{row[0]}, {row[1]}": error.max() for row, error in zip(panel(), errors, strict=True)}
    wrong = {row: error for row, error in errors.items() if not error < tolerance}  # NaN is wrong too
    assert not wrong


KNOWN, MASK = np.array([[0.9, 0.1, -0.7], [0.3, -0.2, 0.8]]), np.array([[True, False, False], [False, False, True]])


def exact_point(x_t, t, cond):
    return gaussian_prediction(cosine, cond, 0.0, x_t, t)


def wrong_point(x_t, t, cond):
    return gaussian_prediction(cosine, jnp.broadcast_to(jnp.asarray(NO_POINT, x_t.dtype)[None], x_t.shape), 0.0, x_t, t)


GUIDED = NO_POINT + SCALE * (POINT - NO_POINT)
# name -> (denoiser, what it does to the sampler, where the two examples must land)
WRAPPERS = {
    "autoguidance": (autoguidance(exact_point, wrong_point, SCALE), None, GUIDED),
    "apg": (classifier_free(exact_point, NO_POINT, SCALE, projected(cosine, 1.0)), None, GUIDED),
    "rescaled_by_nothing": (
        classifier_free(exact_point, NO_POINT, SCALE, rescaled(cosine, PARAMETERIZATIONS["v"], 0.0)),
        None,
        GUIDED,
    ),
    "interval": (
        within_interval(classifier_free(exact_point, NO_POINT, SCALE), exact_point, 0.0, 1.0),
        None,
        GUIDED,
    ),
    "outside_the_interval": (within_interval(wrong_point, exact_point, 2.0, 3.0), None, POINT),
    "dynamic_threshold": (
        dynamic_threshold(exact_point, cosine, 1.0),
        None,
        POINT / np.maximum(np.abs(POINT).max(1, keepdims=True), 1),
    ),
    "indifferent_classifier": (classifier(exact_point, cosine, lambda x, t, cond: 0 * x.sum(-1), 3.0), None, POINT),
    "replace": (editing.replace_known(exact_point, cosine, KNOWN, MASK), None, np.where(MASK, KNOWN, POINT)),
    "product": (
        editing.posterior_product(exact_point, cosine, jnp.asarray(KNOWN), jnp.where(MASK, 0.0, jnp.inf)),
        None,
        np.where(MASK, KNOWN, POINT),
    ),
    "repaint": (
        exact_point,
        lambda sampler: editing.repaint(sampler, cosine, KNOWN, MASK),
        np.where(MASK, KNOWN, POINT),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_works_with_every_guidance_and_edit(name):
    sampler, keys, cond = SAMPLERS[name](cosine), keys_of(2), jnp.asarray(POINT, jnp.float32)
    num_steps, tolerance = APPROXIMATE if name in CURVED else EXACT
    grid = grids.quadratic(num_steps, FIRST_TIME)
    wrong = {}
    for wrapper, (denoiser, wrap, landing) in WRAPPERS.items():
        times = grid if wrap is None else grids.resampled(grid, num_steps // 2, 2)
        method = sampler if wrap is None else wrap(sampler)
        x_t = samplers.initial_noise(keys, (3,))
        landed = jax.jit(lambda x, d=denoiser, m=method, g=times: samplers.sample(m, d, x, g, cond, keys))(x_t)
        error = np.abs(np.asarray(landed) - landing).max()
        if not error < tolerance:
            wrong[wrapper] = error
    assert not wrong


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_state_has_the_batch_first_and_keeps_its_shapes(name):
    sampler, x_t = SAMPLERS[name](cosine), jnp.zeros((5, 2, 3))
    before = jax.eval_shape(sampler.init, x_t)
    x_s, after = jax.eval_shape(
        lambda x: sampler.step(lambda x, t: Prediction(x, x), x, 0.6, 0.4, keys_of(5), sampler.init(x)), x_t
    )
    assert all(leaf.shape[0] == 5 for leaf in jax.tree.leaves(before))
    assert (x_s, after) == (jax.eval_shape(lambda x: x, x_t), before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_shift_of_the_mean_is_refused_by_all_that_have_none(name):
    sampler, grid = SAMPLERS[name](cosine), grids.uniform(2, FIRST_TIME)

    def run(x_t):
        return samplers.sample(sampler, lambda x, t, cond: Prediction(x, x, None, x), x_t, grid, {}, keys_of(2))

    if sampler.uses_mean_gradient:
        jax.eval_shape(run, start())
    else:
        with pytest.raises(ValueError, match="Use the ancestral sampler, or guide by the score"):
            jax.eval_shape(run, start())
    assert sampler.uses_mean_gradient == name.startswith("ancestral")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_ignores_its_batch_mates(name):
    keys, sampler = keys_of(4), SAMPLERS[name](cosine)
    x_t = samplers.initial_noise(keys, (3,))
    together = samplers.sample(sampler, gaussian(cosine), x_t, grids.uniform(5, FIRST_TIME), {}, keys)
    alone = samplers.sample(sampler, gaussian(cosine), x_t[2:3], grids.uniform(5, FIRST_TIME), {}, keys[2:3])
    np.testing.assert_allclose(alone[0], together[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_compiled_equals_not_compiled(name, x64):
    sampler, keys = SAMPLERS[name](cosine), keys_of(2)

    def run(x_t, keys):
        return samplers.sample(sampler, gaussian(cosine), x_t, grids.uniform(5, FIRST_TIME), {}, keys)

    compiled = jax.jit(run)(start(), keys)
    with jax.disable_jit():
        np.testing.assert_allclose(run(start(), keys), compiled, rtol=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_parts_of_a_grid_make_the_whole_in_one_compiled_program(name):
    sampler, keys, grid, traces = SAMPLERS[name](cosine), keys_of(2), grids.uniform(7, FIRST_TIME), 0
    x_t = start(jnp.float32)
    whole = samplers.sample(sampler, gaussian(cosine), x_t, grid, {}, keys)

    @jax.jit
    def part(carry, first, last):
        nonlocal traces
        traces += 1
        return samplers.run(sampler, gaussian(cosine), carry, grid, {}, keys, first, last)

    carry = (x_t, sampler.init(x_t))
    for first, last in ((0, 1), (1, 5), (5, 5), (5, 7)):
        carry = part(carry, first, last)
    assert traces == 1
    np.testing.assert_allclose(carry[0], whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_keep_the_dtype_of_the_noise(name, x64):
    sampler, keys = SAMPLERS[name](linear_path), keys_of(2)
    for dtype in (jnp.float32, jnp.float64):
        denoiser = gaussian_denoiser(linear_path, jnp.asarray(MEAN, dtype), jnp.asarray(VARIANCE, dtype))
        assert samplers.sample(sampler, denoiser, start(dtype), grids.uniform(3, FIRST_TIME), {}, keys).dtype == dtype
