"""Samplers: their noise, and one contract for all of them. Orders and the originals have files of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_denoiser, gaussian_prediction, scales
from sampler_cases import (
    MEAN,
    MULTISTEP_NOISY,
    NOISY,
    ONE_STEP_NOISY,
    SAMPLERS,
    VARIANCE,
    gaussian,
    give_noise,
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
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from diffusion_jax.samplers.dpmpp_3m_sde import dpmpp_3m_sde
from diffusion_jax.samplers.heun import heun
from diffusion_jax.samplers.lms import lms
from diffusion_jax.samplers.plms import plms
from diffusion_jax.samplers.unipc import unipc
from diffusion_jax.schedules import cosine, linear_path

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
    for num_steps in (100, 400):
        mean, variance = moments(NOISY[name](schedule), schedule, num_steps)
        np.testing.assert_allclose(mean, MEAN[0], atol=1e-9)  # the denoiser's average is the mean at every step
        errors.append(float(jnp.abs(jnp.sqrt(variance) - np.sqrt(VARIANCE[0])).max()))
    assert errors[-1] < (0.06 if schedule_name == "edm" else 0.03)  # even steps in sigma are not EDM's best
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
    """(parameterization, wrapper, where the two examples must land)."""
    landings = {
        "plain": POINT,
        "guided": NO_POINT + SCALE * (POINT - NO_POINT),
        "clipped": np.clip(POINT, -1, 1),
    }
    return [(name, wrapper, landing) for name in PARAMETERIZATIONS for wrapper, landing in landings.items()]


def panel_denoiser(schedule):
    """One denoiser, whose batch is cut into a pair of examples for each row of the panel, each with its own model."""
    denoisers = []
    for name, wrapper, _ in panel():
        parameterization = PARAMETERIZATIONS[name]
        plain = make_denoiser(exact_network(parameterization, schedule), parameterization, schedule, lambda t: 1000 * t)
        guided = classifier_free(plain, NO_POINT, SCALE)
        denoisers.append({"plain": plain, "guided": guided, "clipped": clip_x0(plain, schedule)}[wrapper])

    def denoise(x_t, t, cond):
        pairs = zip(denoisers, jnp.split(x_t, len(denoisers)), jnp.split(cond, len(denoisers)), strict=True)
        x0, eps = zip(*(denoiser(x, t, c)[:2] for denoiser, x, c in pairs), strict=True)
        return Prediction(jnp.concatenate(x0), jnp.concatenate(eps))

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
