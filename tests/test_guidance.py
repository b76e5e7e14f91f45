"""Guidance: classifier-free guidance against closed forms, clipping, and the dropping of conditions in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, conditional_gaussian_denoiser, gaussian_flow, gaussian_prediction, scales

from diffusion_jax import grids
from diffusion_jax.guidance import classifier_free, clip_x0, drop_condition
from diffusion_jax.keys import keys_per_example
from diffusion_jax.predictions import Prediction
from diffusion_jax.samplers import sample
from diffusion_jax.samplers.heun import heun
from diffusion_jax.schedules import cosine, linear_path

pytestmark = pytest.mark.usefixtures("strict_ranks")

X_T = np.random.default_rng(0).normal(size=(3, 2))
COND = {
    "mean": np.array([[0.5, -0.2], [1.0, 0.0], [-0.7, 0.3]]),
    "variance": np.array([[0.3, 0.1], [0.2, 0.2], [0.5, 1.0]]),
}
NULL = {"mean": np.array([0.1, -0.1]), "variance": np.array([1.0, 0.6])}


def on(prediction):
    return jax.tree.map(np.asarray, prediction)


def guided(guidance_scale, t=0.4, schedule=cosine):
    cond = jax.tree.map(jnp.asarray, COND)
    return on(classifier_free(conditional_gaussian_denoiser(schedule), NULL, guidance_scale)(jnp.asarray(X_T), t, cond))


def exact(of, t=0.4, schedule=cosine):
    return on(gaussian_prediction(schedule, of["mean"], of["variance"], jnp.asarray(X_T), t))


def test_a_scale_of_one_is_the_conditional_denoiser():
    for ours, expected in zip(guided(1.0), exact(COND), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_scale_of_zero_is_the_unconditional_denoiser():
    null = jax.tree.map(lambda one: np.broadcast_to(one, (3, 2)), NULL)
    for ours, expected in zip(guided(0.0), exact(null), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [0.5, 2.0, 7.5])
def test_guidance_is_linear_in_eps_and_in_x0(guidance_scale):
    null = jax.tree.map(lambda one: np.broadcast_to(one, (3, 2)), NULL)
    for ours, given, free in zip(guided(guidance_scale), exact(COND), exact(null), strict=True):
        np.testing.assert_allclose(ours, (1 - guidance_scale) * free + guidance_scale * given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_guided_x0_and_eps_still_explain_x_t(name, x64):
    x0, eps = guided(4.0, 0.7, SCHEDULES[name])
    alpha, sigma = scales(SCHEDULES[name], 0.7, jnp.asarray(X_T))
    np.testing.assert_allclose(alpha * x0 + sigma * eps, X_T, rtol=1e-12)


def test_changing_the_scale_does_not_trace_again():
    traces = 0

    @jax.jit
    def run(guidance_scale):
        nonlocal traces
        traces += 1
        return classifier_free(conditional_gaussian_denoiser(cosine), NULL, guidance_scale)(
            jnp.asarray(X_T), 0.4, jax.tree.map(jnp.asarray, COND)
        )

    for guidance_scale in (1.0, 3.0, 7.5):
        np.testing.assert_allclose(run(guidance_scale).x0, guided(guidance_scale).x0, rtol=1e-5, atol=1e-6)
    assert traces == 1


def test_each_example_keeps_its_own_time():
    times = jnp.array([0.2, 0.5, 0.9])
    together = guided(3.0, times)
    for i in range(3):
        np.testing.assert_allclose(together.x0[i], guided(3.0, times[i]).x0[i], rtol=1e-5, atol=1e-6)


def test_the_null_condition_of_one_example_serves_a_batch_in_the_conditions_own_types():
    cond = {"tokens": jnp.array([[5, 6, 7], [8, 9, 2]]), "mask": jnp.array([[True, True, False], [True, False, False]])}
    null = {"tokens": np.array([1, 0, 0], np.int64), "mask": np.array([1, 0, 0])}  # not the types of cond
    seen = []

    def denoiser(x_t, t, cond):
        seen.append(cond)
        return Prediction(x_t, x_t)

    classifier_free(denoiser, null, 2.0)(jnp.zeros((2, 4)), 0.5, cond)
    (both,) = seen  # one pass over a doubled batch
    assert both["tokens"].dtype == cond["tokens"].dtype and both["mask"].dtype == bool
    np.testing.assert_array_equal(both["tokens"], [[5, 6, 7], [8, 9, 2], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(both["mask"], [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])


def sample_guided(name, cond, null, guidance_scale, x_t, num_steps=256):
    schedule = SCHEDULES[name]
    denoiser = classifier_free(conditional_gaussian_denoiser(schedule), null, guidance_scale)
    keys = jax.random.split(jax.random.key(0), len(x_t))
    run = jax.jit(lambda x_t, cond: sample(heun(schedule), denoiser, x_t, grids.quadratic(num_steps), cond, keys))
    return run(x_t, jax.tree.map(jnp.asarray, cond))


@pytest.mark.parametrize("name", SCHEDULES)
def test_guiding_between_gaussians_of_one_variance_samples_the_gaussian_at_the_extrapolated_mean(name, x64):
    variance, w, x_t = np.full((3, 2), 0.3), 3.0, jnp.asarray(X_T)
    landed = sample_guided(name, COND | {"variance": variance}, NULL | {"variance": variance[0]}, w, x_t)
    mean = NULL["mean"] + w * (COND["mean"] - NULL["mean"])
    np.testing.assert_allclose(landed, gaussian_flow(SCHEDULES[name], mean, variance, x_t, 1.0, 0.0), atol=2e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_guiding_between_concentric_gaussians_mixes_standard_deviations_geometrically(name, x64):
    """With z = x / alpha and e = sigma / alpha the guided ODE is dz/de = e (z - m) (w / (v_c + e^2) + (1 - w) / (v_u + e^2)).

    Its solution is z - m proportional to (v_c + e^2)^(w / 2) (v_u + e^2)^((1 - w) / 2). In x at both ends, with
    u = alpha^2 v + sigma^2, the distance from the mean stretches by the same product of ratios of u.
    """
    w, x_t = 3.0, jnp.asarray(X_T)
    cond = {"mean": np.broadcast_to(NULL["mean"], (3, 2)), "variance": COND["variance"]}
    alpha, sigma = scales(SCHEDULES[name], 1.0, x_t)
    stretch = (COND["variance"] / (alpha**2 * COND["variance"] + sigma**2)) ** (w / 2)
    stretch = stretch * (NULL["variance"][None] / (alpha**2 * NULL["variance"][None] + sigma**2)) ** ((1 - w) / 2)
    expected = NULL["mean"][None] + stretch * (x_t - alpha * NULL["mean"][None])
    landed = sample_guided(name, cond, NULL, w, x_t)
    np.testing.assert_allclose(landed, expected, atol=2e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [0.3, np.array([0.2, 0.6, 0.9])])
def test_clipping_bounds_x0_and_still_explains_x_t(name, t, x64):
    schedule, x_t = SCHEDULES[name], jnp.asarray(3 * X_T)
    wild = conditional_gaussian_denoiser(schedule)
    before, after = (d(x_t, t, COND) for d in (wild, clip_x0(wild, schedule, low=-0.5, high=0.8)))
    assert (before.x0 < -0.5).any() and (before.x0 > 0.8).any()
    np.testing.assert_array_equal(after.x0, np.clip(before.x0, -0.5, 0.8))
    alpha, sigma = scales(schedule, t, x_t)
    np.testing.assert_allclose(alpha * after.x0 + sigma * after.eps, x_t, rtol=1e-12)


def test_clipping_changes_nothing_inside_the_range():
    tame = conditional_gaussian_denoiser(linear_path)
    x_t = jnp.asarray(0.1 * X_T)
    for before, after in zip(tame(x_t, 0.6, COND), clip_x0(tame, linear_path)(x_t, 0.6, COND), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def captions(count):
    tokens = jnp.arange(2, 2 + 3 * count).reshape(count, 3)
    return {"tokens": tokens, "mask": tokens > 3, "style": tokens[:, 0].astype(jnp.float32)}


NO_CAPTION = {"tokens": np.array([1, 0, 0]), "mask": np.array([True, False, False]), "style": np.float32(-1)}


def test_conditions_are_dropped_with_the_given_probability_and_as_a_whole():
    cond, keys = captions(4000), keys_per_example(jax.random.key(0), jnp.arange(4000))
    result = drop_condition(cond, NO_CAPTION, keys, 0.2)
    assert jax.tree.map(lambda a: a.dtype, result) == jax.tree.map(lambda a: a.dtype, cond)
    dropped = np.asarray(result["style"] == -1)
    assert abs(dropped.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)
    for name in cond:
        np.testing.assert_array_equal(result[name][~dropped], cond[name][~dropped])
        null = np.broadcast_to(NO_CAPTION[name], cond[name].shape)
        np.testing.assert_array_equal(result[name][dropped], null[dropped])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, "kept"), (1.0, "dropped")])
def test_probabilities_of_zero_and_one_are_certain(probability, expected):
    cond, keys = captions(200), keys_per_example(jax.random.key(0), jnp.arange(200))
    dropped = drop_condition(cond, NO_CAPTION, keys, probability)["style"] == -1
    assert dropped.all() if expected == "dropped" else not dropped.any()


def test_dropping_ignores_batch_mates():
    cond, keys = captions(20), keys_per_example(jax.random.key(0), jnp.arange(20))
    together = drop_condition(cond, NO_CAPTION, keys, 0.5)
    for i in range(0, 20, 3):
        alone = drop_condition(jax.tree.map(lambda a, i=i: a[i : i + 1], cond), NO_CAPTION, keys[i : i + 1], 0.5)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[0], b[i]), alone, together)
