"""Losses: the weights that judging in another space gives, those by noise level, their optimum, and DDPM's losses."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, scales

from diffusion_jax import losses, schedules, weights
from diffusion_jax.keys import keys_per_example
from diffusion_jax.posterior import VARIANCES, previous_mean
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction, edm

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


SPACES = PARAMETERIZATIONS | {"edm": edm(0.7)}


def loss(apply, name, space, schedule, x0=X0, t=TIMES, noise=EPS, **options):
    example = (jnp.asarray(x0), jnp.asarray(t), jnp.asarray(noise), {})
    return losses.denoising_loss(apply, SPACES[name], SPACES[space], schedule, *example, **options)


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


@pytest.mark.parametrize(("suffix", "weight"), [("plain", None), ("minsnr5", weights.min_snr)])
@pytest.mark.parametrize(
    ("table", "betas"), [("cosine", schedules.cosine_betas), ("sigmoid", schedules.sigmoid_alpha_bar_betas)]
)
@pytest.mark.parametrize(("objective", "name"), [("noise", "eps"), ("x0", "x0"), ("v", "v")])
def test_weights_and_losses_judged_as_eps_equal_an_independent_implementation(
    objective, name, table, betas, suffix, weight, given_noise, x64
):
    golden = np.load(GOLDEN / "lucidrains_predictions_and_losses.npz")
    schedule = schedules.from_betas(betas(100))
    step = jnp.asarray(golden["t"])

    def apply(x_t, t, cond):
        return jnp.sin(1.3 * x_t) + 0.001 * step.reshape(-1, 1, 1, 1)

    x0, noise = (golden[key].astype(np.float64) for key in ("x_start", "noise"))
    ours = loss(apply, name, "eps", schedule, x0, (golden["t"] + 1) / 100, noise, weight=weight)
    np.testing.assert_allclose(ours.mean(), golden[f"pred_{objective}_{table}_{suffix}_mean_loss"][0], rtol=1e-4)
    in_own_space = loss(apply, name, name, schedule, x0, (golden["t"] + 1) / 100, noise)
    expected = golden[f"pred_{objective}_{table}_{suffix}_loss_weight"][golden["t"]]
    np.testing.assert_allclose(ours / in_own_space, expected, rtol=1e-5)


LOGSNR = np.array([-40.0, -3.0, 0.0, 2.0, 40.0])
SNR = np.exp(LOGSNR)
WEIGHTS = {
    "min_snr": (weights.min_snr, np.minimum(1, 5 / SNR)),
    "min_snr_2": (functools.partial(weights.min_snr, gamma=2.0), np.minimum(1, 2 / SNR)),
    "p2": (functools.partial(weights.p2, k=0.5, gamma=1.5), 1 / (0.5 + SNR) ** 1.5),
    # Times the factor between an error of eps and one of x0 it is EDM's lambda(s) = (s^2 + 0.7^2) / (0.7 s)^2.
    "edm": (functools.partial(weights.edm_weight, sigma_data=0.7), (1 / SNR + 0.49) / (0.49 / SNR) / SNR),
    "sigmoid": (functools.partial(weights.sigmoid_weight, bias=-1.0), 1 / (1 + np.exp(1 + LOGSNR))),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_is_its_formula(name, x64):
    weight, expected = WEIGHTS[name]
    np.testing.assert_allclose(weight(jnp.asarray(LOGSNR)), expected, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(WEIGHTS.keys() - {"edm"}))
def test_a_weight_is_finite_at_the_data_and_at_pure_noise(name):
    assert jnp.isfinite(WEIGHTS[name][0](jnp.array([-jnp.inf, jnp.inf]))).all()


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_the_edm_weight_on_eps_is_the_plain_error_of_edms_output(schedule_name, given_noise, x64):
    def apply(x_t, t, cond):
        return jnp.sin(x_t)

    schedule = SCHEDULES[schedule_name]
    weighted = loss(apply, "edm", "eps", schedule, weight=functools.partial(weights.edm_weight, sigma_data=0.7))
    np.testing.assert_allclose(weighted, loss(apply, "edm", "edm", schedule), rtol=1e-9)


@pytest.mark.parametrize(
    ("distance", "of"),
    [
        ("l2", lambda e: e**2),
        ("l1", abs),
        ("huber", lambda e: e**2 / 2 if abs(e) < 1 else abs(e) - 0.5),
    ],
)
@pytest.mark.parametrize("error", [-0.4, 2.5])
def test_a_distance_is_its_formula_on_both_sides_of_one(distance, of, error, given_noise, x64):
    schedule = schedules.cosine
    ours = loss(perfect("v", schedule, error), "v", "v", schedule, distance=distance)
    np.testing.assert_allclose(ours, np.full(3, of(error)), rtol=1e-9)


def test_an_unknown_name_of_a_loss_is_refused(given_noise):
    with pytest.raises(ValueError, match="'l2', 'l1', 'huber'.*cosine"):
        loss(None, "x0", "x0", schedules.cosine, distance="cosine")
    with pytest.raises(ValueError, match="'rescaled_kl'.*elbo"):
        ddpm(None, "x0", X0, [0, 1, 2], EPS, kind="elbo")
    with pytest.raises(ValueError, match="'learned_range'.*tiny"):
        ddpm(None, "x0", X0, [0, 1, 2], EPS, variance="tiny")


MEANS = PARAMETERIZATIONS | {"previous": previous_mean(50)}


def ddpm(apply, name, x0, steps, noise, **options):
    schedule, t = schedules.from_betas(schedules.linear_betas(50)), (jnp.asarray(steps) + 1) / 50
    return losses.ddpm_loss(apply, MEANS[name], schedule, 50, jnp.asarray(x0), t, jnp.asarray(noise), {}, **options)


@pytest.mark.parametrize("fixed_or_learned", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize(("mean", "name"), [("EPSILON", "eps"), ("START_X", "x0"), ("PREVIOUS_X", "previous")])
@pytest.mark.parametrize("kind", losses.DDPM_LOSSES)
def test_losses_of_ddpm_and_their_gradients_equal_the_originals(kind, mean, name, fixed_or_learned, given_noise, x64):
    golden = np.load(GOLDEN / "ddpm_training_losses.npz")
    key = f"{kind.upper()}_{mean}_{fixed_or_learned.upper()}_"
    x0, noise, output = (
        golden[array].transpose(0, 2, 3, 1).astype(np.float64) for array in ("x_start", "noise", "model_output_6ch")
    )
    output = output if fixed_or_learned.startswith("learned") else output[..., :3]

    def mean_loss(output):
        variance = fixed_or_learned.removeprefix("fixed_")
        terms = ddpm(lambda *_: output, name, x0, golden["t"], noise, kind=kind, variance=variance)
        return terms.loss.mean(), terms

    gradient, terms = jax.grad(mean_loss, has_aux=True)(jnp.asarray(output))
    # The first example is at the first step, the decoder's. Where a random mean lies many deviations from the value, as x0
    # outputs do under the narrow variances, the original's bin is a difference of float32 numbers near one another: noise.
    in_the_tail = name != "eps" and fixed_or_learned != "learned" and golden["t"][0] == 0
    rest = slice(1 if in_the_tail else 0, None)
    for part in terms._fields:
        ours = getattr(terms, part)
        if key + part in golden:
            np.testing.assert_allclose(ours, golden[key + part], rtol=1e-2, atol=5e-7)
            np.testing.assert_allclose(ours[rest], golden[key + part][rest], rtol=2e-5, atol=5e-7)
        else:
            assert ours is None or part == "vb" and "kl" in kind
    expected = golden[key + "grad_of_mean_loss_wrt_model_output"].transpose(0, 2, 3, 1)
    # Each example has a scale of its own, so each is judged by its own largest entry.
    largest = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    gradient, expected = gradient / largest, expected / largest
    np.testing.assert_allclose(gradient[rest], expected[rest], atol=5e-4)
    np.testing.assert_allclose(gradient[1:], expected[1:], atol=3e-5)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("name", MEANS)
def test_the_bound_does_not_care_what_the_network_predicts(name, variance, given_noise, x64):
    """The same x0, said in another parameterization, has the same bound."""
    schedule, steps = schedules.from_betas(schedules.linear_betas(50)), np.array([0, 20, 49])
    x0 = jnp.round(jnp.clip(X0, -1, 1) * 127.5 + 127.5) / 127.5 - 1
    t = (steps + 1) / 50
    alpha, sigma = scales(schedule, t, x0)
    x_t, guess = alpha * x0 + sigma * EPS, 0.8 * x0
    prediction = Prediction(guess, (x_t - alpha * guess) / sigma)

    def bound(parameterization):
        output = parameterization.to_output(prediction, x_t, t, schedule)
        if variance.startswith("learned"):
            output = jnp.concatenate([output, jnp.tanh(output * 0 - 3.0)], axis=-1)
        example = (x0, jnp.asarray(t), jnp.asarray(EPS), {})
        return losses.ddpm_loss(
            lambda *_: output, parameterization, schedule, 50, *example, kind="kl", variance=variance
        ).loss

    np.testing.assert_allclose(bound(MEANS[name]), bound(MEANS["x0"]), rtol=1e-7)


@pytest.mark.parametrize("kind", ["mse", "rescaled_mse"])
def test_the_bound_in_a_hybrid_loss_teaches_the_variance_alone(kind, given_noise):
    x0, noise = (jnp.asarray(a, jnp.float32) for a in (np.clip(X0, -1, 1), EPS))

    def part(output, which):
        terms = ddpm(lambda *_: output, "eps", x0, [0, 20, 49], noise, kind=kind, variance="learned_range")
        return getattr(terms, which).sum()

    output = jnp.asarray(np.random.default_rng(3).normal(size=(3, 2, 8)), jnp.float32)
    of_mse, of_vb = (np.asarray(jax.grad(part)(output, which)) for which in ("mse", "vb"))
    assert not of_vb[..., :4].any() and not of_mse[..., 4:].any()
    assert of_vb[..., 4:].all() and of_mse[..., :4].all()


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
