"""Guidance: classifier-free guidance against closed forms, clipping, and the dropping of conditions in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import (
    SCHEDULES,
    conditional_gaussian_denoiser,
    gaussian_denoiser,
    gaussian_flow,
    gaussian_prediction,
    mixture_denoiser,
    mixture_log_density,
    scales,
)

from diffusion_jax import grids
from diffusion_jax.guidance import (
    autoguidance,
    classifier,
    classifier_free,
    clip_similarity,
    clip_x0,
    drop_condition,
    dynamic_threshold,
    extrapolate,
    projected,
    rescaled,
    within_interval,
)
from diffusion_jax.keys import keys_per_example
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction
from diffusion_jax.samplers import initial_noise, sample
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
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
    for ours, expected in zip(guided(1.0)[:2], exact(COND)[:2], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_scale_of_zero_is_the_unconditional_denoiser():
    null = jax.tree.map(lambda one: np.broadcast_to(one, (3, 2)), NULL)
    for ours, expected in zip(guided(0.0)[:2], exact(null)[:2], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [0.5, 2.0, 7.5])
def test_guidance_is_linear_in_eps_and_in_x0(guidance_scale):
    null = jax.tree.map(lambda one: np.broadcast_to(one, (3, 2)), NULL)
    for ours, given, free in zip(guided(guidance_scale)[:2], exact(COND)[:2], exact(null)[:2], strict=True):
        np.testing.assert_allclose(ours, (1 - guidance_scale) * free + guidance_scale * given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_guided_x0_and_eps_still_explain_x_t(name, x64):
    x0, eps, *_ = guided(4.0, 0.7, SCHEDULES[name])
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
    for before, after in zip(tame(x_t, 0.6, COND)[:2], clip_x0(tame, linear_path)(x_t, 0.6, COND)[:2], strict=True):
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


# --- A learned variance, negative conditions, other ways to combine ---


def arrays(*seeds):
    return [jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4, 2))) for seed in seeds]


def pair(t=0.4, schedule=cosine):
    """A strong and a weak prediction of the same x_t."""
    x_t, strong, weak = arrays(0, 1, 2)
    from_x0 = PARAMETERIZATIONS["x0"].from_output
    return x_t, from_x0(strong, x_t, t, schedule), from_x0(weak, x_t, t, schedule)


def test_a_learned_variance_is_the_conditional_halfs():
    def denoiser(x_t, t, cond):
        return Prediction(x_t, x_t, cond["variance"])

    cond = {"variance": jnp.array([[1.0, 2.0]])}
    guided = classifier_free(denoiser, {"variance": np.array([8.0, 9.0])}, 5.0)(jnp.ones((1, 2)), 0.5, cond)
    np.testing.assert_array_equal(guided.raw_variance, cond["variance"])


def test_a_negative_condition_is_guided_away_from_for_each_example_its_own():
    w, x_t, t = 3.0, jnp.asarray(X_T), 0.4
    negative = jax.tree.map(lambda leaf: leaf[::-1], COND)
    denoiser = conditional_gaussian_denoiser(cosine)
    ours = classifier_free(denoiser, negative, w)(x_t, t, jax.tree.map(jnp.asarray, COND))
    np.testing.assert_allclose(ours.x0, (1 - w) * exact(negative).x0 + w * exact(COND).x0, rtol=1e-5, atol=1e-5)


def test_entries_that_the_null_condition_lacks_are_kept():
    def denoiser(x_t, t, cond):
        return Prediction(cond["mean"] + cond["low_res"], x_t)

    cond = {"mean": jnp.ones((2, 3)), "low_res": jnp.full((2, 3), 10.0)}
    guided = classifier_free(denoiser, {"mean": np.zeros(3)}, 2.0)(jnp.ones((2, 3)), 0.5, cond)
    np.testing.assert_allclose(guided.x0, 12.0)


def test_autoguidance_goes_away_from_the_weak_model(x64):
    x_t, strong, weak = pair()
    models = (lambda x, t, c: strong), (lambda x, t, c: weak)
    np.testing.assert_allclose(autoguidance(*models, 1.0)(x_t, 0.4, {}).x0, strong.x0)
    np.testing.assert_allclose(autoguidance(*models, 2.5)(x_t, 0.4, {}).eps, 2.5 * strong.eps - 1.5 * weak.eps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_autoguidance_lands_where_the_tilted_density_says(name, x64):
    """A weak model of the same mean and a wider variance: p_strong^w p_weak^(1 - w) narrows it, geometrically along the flow."""
    w, x_t, variances = 2.0, jnp.asarray(X_T), (0.3, 0.6)
    schedule, mean = SCHEDULES[name], jnp.asarray(NULL["mean"][None])
    strong, weak = (gaussian_denoiser(schedule, mean, v) for v in variances)
    landed = sample_of(name, autoguidance(strong, weak, w), x_t)
    alpha, sigma = scales(schedule, 1.0, x_t)
    stretch = 1.0
    for variance, power in zip(variances, (w, 1 - w), strict=True):
        stretch = stretch * (variance / (alpha**2 * variance + sigma**2)) ** (power / 2)
    np.testing.assert_allclose(landed, mean + stretch * (x_t - alpha * mean), atol=1e-3)


def sample_of(name, denoiser, x_t, make=ddim, num_steps=2000):
    keys = keys_per_example(jax.random.key(0), jnp.arange(len(x_t)))
    grid = grids.quadratic(num_steps)
    return jax.jit(lambda x: sample(make(SCHEDULES[name]), denoiser, x, grid, {}, keys))(x_t)


@pytest.mark.parametrize("space", ["x0", "eps", "v"])
def test_rescaling_restores_the_strong_predictions_spread(space, x64):
    x_t, strong, weak = pair()
    to_space = PARAMETERIZATIONS[space].to_output

    def spread(prediction):
        return np.std(to_space(prediction, x_t, 0.4, cosine), axis=(1, 2))

    plain = extrapolate(strong, weak, 4.0, x_t, 0.4)
    for amount, expected in ((0.0, spread(plain)), (1.0, spread(strong)), (0.5, (spread(plain) + spread(strong)) / 2)):
        ours = rescaled(cosine, PARAMETERIZATIONS[space], amount)(strong, weak, 4.0, x_t, 0.4)
        np.testing.assert_allclose(spread(ours), expected, rtol=1e-9)
        alpha, sigma = cosine(0.4)
        np.testing.assert_allclose(alpha * ours.x0 + sigma * ours.eps, x_t, atol=1e-9)


def test_projection_keeps_of_the_difference_what_is_across_x0(x64):
    x_t, strong, weak = pair()
    update = projected(cosine)(strong, weak, 4.0, x_t, 0.4).x0 - strong.x0
    np.testing.assert_allclose((update * strong.x0).sum((1, 2)), 0, atol=1e-12)
    whole = projected(cosine, parallel=1.0)(strong, weak, 4.0, x_t, 0.4)
    np.testing.assert_allclose(whole.x0, extrapolate(strong, weak, 4.0, x_t, 0.4).x0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.eps, extrapolate(strong, weak, 4.0, x_t, 0.4).eps, rtol=1e-9, atol=1e-9)
    limited = projected(cosine, 1.0, norm_limit=0.5)(strong, weak, 4.0, x_t, 0.4).x0 - strong.x0
    np.testing.assert_allclose(np.sqrt((limited**2).sum((1, 2))), 3 * 0.5, rtol=1e-9)


@pytest.mark.parametrize("combine", ["plain", "rescaled", "projected"])
def test_a_scale_of_one_is_the_strong_model_however_they_are_combined(combine, x64):
    x_t, strong, weak = pair()
    how = {
        "plain": extrapolate,
        "rescaled": rescaled(cosine, PARAMETERIZATIONS["v"], 0.7),
        "projected": projected(cosine, 0.2, 0.1),
    }[combine]
    for ours, expected in zip(how(strong, weak, 1.0, x_t, 0.4)[:2], strong[:2], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_outside_its_interval_guidance_is_not_even_computed():
    calls = []

    def guided(x_t, t, cond):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return Prediction(x_t + 1, x_t)

    def unguided(x_t, t, cond):
        return Prediction(x_t, x_t)

    run = jax.jit(lambda t, low, high: within_interval(guided, unguided, low, high)(jnp.zeros((1, 2)), t, {}).x0.max())
    assert [float(run(t, 0.2, 0.6)) for t in (0.1, 0.2, 0.4, 0.6, 0.7)] == [0, 1, 1, 1, 0]
    assert float(run(0.7, 0.5, 1.0)) == 1
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(calls), [0.2, 0.4, 0.6, 0.7])
    assert run._cache_size() == 1
    with pytest.raises(ValueError, match="one time for all examples"):
        within_interval(guided, unguided, 0.2, 0.6)(jnp.zeros((2, 2)), jnp.array([0.1, 0.2]), {})


def test_dynamic_threshold_scales_by_a_quantile_of_each_example(x64):
    x_t, prediction, _ = pair()
    prediction = prediction._replace(x0=prediction.x0 * jnp.array([3.0, 1e-1, 1.0]).reshape(3, 1, 1))
    ours = dynamic_threshold(lambda *_: prediction, cosine, 0.8)(x_t, 0.4, {})
    for before, after in zip(np.asarray(prediction.x0), np.asarray(ours.x0), strict=True):
        size = max(1.0, np.quantile(np.abs(before), 0.8))
        np.testing.assert_allclose(after, np.clip(before / size, -1, 1), rtol=1e-9)
    np.testing.assert_allclose(ours.x0[1], prediction.x0[1])  # inside the range nothing changes
    alpha, sigma = cosine(0.4)
    np.testing.assert_allclose(alpha * ours.x0 + sigma * ours.eps, x_t, atol=1e-9)


# --- Classifiers: a mixture, whose tilted density is known ---

WEIGHTS, MEANS, VARIANCES = np.array([0.6, 0.4]), np.array([[1.0, -0.5], [-0.8, 0.6]]), np.array([0.05, 0.1])


def component_log_prob(schedule, k):
    """log p(component k | x_t), exactly: Bayes on the noisy mixture."""

    def log_prob(x_t, t, cond):
        alpha, sigma = schedule(jnp.asarray(t, x_t.dtype))

        def one(x):
            whole = mixture_log_density(WEIGHTS, MEANS, VARIANCES, alpha, sigma, x)
            return (
                mixture_log_density(WEIGHTS[k : k + 1], MEANS[k : k + 1], VARIANCES[k : k + 1], alpha, sigma, x) - whole
            )

        return jax.vmap(one)(x_t)

    return log_prob


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_exact_classifier_turns_the_mixture_into_its_component(name, k, x64):
    schedule, x_t = SCHEDULES[name], jnp.asarray(X_T)
    mixture = mixture_denoiser(schedule, *map(jnp.asarray, (WEIGHTS, MEANS, VARIANCES)))
    guided = classifier(mixture, schedule, component_log_prob(schedule, k), 1.0)
    for t in (0.05, 0.4, 0.9):
        ours, expected = guided(x_t, t, {}), gaussian_prediction(schedule, MEANS[k][None], VARIANCES[k], x_t, t)
        np.testing.assert_allclose(ours.x0, expected.x0, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.eps, expected.eps, rtol=1e-6, atol=1e-6)


def test_shifting_the_mean_samples_the_component_too():
    count, k = 2000, 1
    keys = keys_per_example(jax.random.key(0), jnp.arange(count))
    mixture = mixture_denoiser(cosine, *map(jnp.asarray, (WEIGHTS, MEANS, VARIANCES)))
    guided = classifier(mixture, cosine, component_log_prob(cosine, k), 1.0, "mean")
    x_t, grid = initial_noise(keys, (2,)), grids.uniform(200, 0.98)
    made = jax.jit(lambda x: sample(ancestral(cosine), guided, x, grid, {}, keys))(x_t)
    error = 5 * np.sqrt(VARIANCES[k] / count)
    np.testing.assert_allclose(made.mean(0), MEANS[k], atol=error + 0.01)
    np.testing.assert_allclose(made.var(0), VARIANCES[k], rtol=5 * np.sqrt(2 / count) + 0.05)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scaled_classifier_lands_on_the_tilted_density(name, x64):
    """N(m, v) tilted by exp(w g x0) is N(m + w v g, v); seen through noise the tilt is that of w g x0_hat."""
    w, g, mean, variance, x_t = 2.5, jnp.array([0.4, -0.3]), jnp.asarray(NULL["mean"][None]), 0.3, jnp.asarray(X_T)
    schedule = SCHEDULES[name]
    denoiser = gaussian_denoiser(schedule, mean, variance)
    guided = classifier(denoiser, schedule, lambda x, t, cond: denoiser(x, t, cond).x0 @ g, w)
    landed = sample_of(name, guided, x_t, num_steps=500)
    expected = gaussian_flow(schedule, mean + w * variance * g[None], variance, x_t, 1.0, 0.0)
    np.testing.assert_allclose(landed, expected, atol=2e-2 if name == "sigmoid" else 5e-3)


def test_clip_similarity_is_raised_by_its_gradient(x64):
    x_t, text = jnp.asarray(X_T), jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])

    def encode(x, t):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    log_prob = clip_similarity(encode, text, 50.0)
    np.testing.assert_allclose(log_prob(x_t, 0.3, {}), 50 * (encode(x_t, 0.3) * text).sum(-1))
    plain = conditional_gaussian_denoiser(cosine)
    guided = classifier(plain, cosine, log_prob, 0.1)(x_t, 0.3, COND)
    gradient = 0.1 * jax.vmap(jax.grad(lambda x, z: 50 * x @ z / jnp.linalg.norm(x)))(x_t, text)
    np.testing.assert_allclose(guided.eps, plain(x_t, 0.3, COND).eps - cosine(0.3).sigma * gradient, rtol=1e-9)


def test_two_classifiers_add_their_shifts_of_the_mean():
    x_t = jnp.asarray(X_T)
    plain = conditional_gaussian_denoiser(cosine)
    once = classifier(plain, cosine, lambda x, t, cond: x.sum(-1), 2.0, "mean")
    twice = classifier(once, cosine, lambda x, t, cond: x.sum(-1), 3.0, "mean")
    np.testing.assert_allclose(twice(x_t, 0.3, COND).mean_gradient, 5.0)
    with pytest.raises(ValueError, match=r"shift must be one of \('score', 'mean'\); got 'x0'"):
        classifier(plain, cosine, lambda x, t, cond: x.sum(-1), 2.0, "x0")


def test_a_deterministic_sampler_refuses_a_shift_of_the_mean():
    x_t = jnp.asarray(X_T)
    guided = classifier(
        gaussian_denoiser(cosine, jnp.zeros((1, 2)), 1.0), cosine, lambda x, t, c: x.sum(-1), 1.0, "mean"
    )
    with pytest.raises(ValueError, match="ancestral"):
        sample(ddim(cosine), guided, x_t, grids.uniform(3), {}, keys_per_example(jax.random.key(0), jnp.arange(3)))
