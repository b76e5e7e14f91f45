"""Parameterizations: every schedule meets every parameterization in one table; and the denoiser made of a network."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_prediction, mixture_denoiser, mixture_log_density, scales

from diffusion_jax import predictions, schedules
from diffusion_jax.denoiser import make_denoiser
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = pathlib.Path(__file__).parent / "golden"
TIMES = np.array([0.0123, 0.2345, 0.50055, 0.87654, 0.9987])  # inside steps of a table of 1000


def contract(test):
    """Runs a test for every schedule with every parameterization."""
    for argument, table in (("schedule_name", SCHEDULES), ("name", PARAMETERIZATIONS)):
        test = pytest.mark.parametrize(argument, table)(test)
    return test


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def truth(schedule):
    """x0, eps, x_t and t: [5, 2, 3], one time per example."""
    x0, eps, t = draw(len(TIMES), 2, 3), draw(len(TIMES), 2, 3, seed=1), jnp.asarray(TIMES)
    alpha, sigma = scales(schedule, t, x0)
    return x0, eps, alpha * x0 + sigma * eps, t


@contract
def test_out_and_in_again_is_the_identity(schedule_name, name, x64):
    schedule, (from_output, to_output) = SCHEDULES[schedule_name], PARAMETERIZATIONS[name]
    x0, eps, x_t, t = truth(schedule)
    back = from_output(to_output(Prediction(x0, eps), x_t, t, schedule), x_t, t, schedule)
    np.testing.assert_allclose(back.x0, x0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back.eps, eps, rtol=1e-9, atol=1e-9)


@contract
def test_in_and_out_again_is_the_identity(schedule_name, name, x64):
    schedule, (from_output, to_output) = SCHEDULES[schedule_name], PARAMETERIZATIONS[name]
    _, _, x_t, t = truth(schedule)
    output = draw(*x_t.shape, seed=2)
    again = to_output(from_output(output, x_t, t, schedule), x_t, t, schedule)
    np.testing.assert_allclose(again, output, rtol=1e-9, atol=1e-9)


@contract
def test_any_output_explains_x_t(schedule_name, name, x64):
    schedule, parameterization = SCHEDULES[schedule_name], PARAMETERIZATIONS[name]
    _, _, x_t, t = truth(schedule)
    prediction = parameterization.from_output(draw(*x_t.shape, seed=2), x_t, t, schedule)
    alpha, sigma = scales(schedule, t, x_t)
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=1e-9, atol=1e-9)


@contract
def test_one_time_for_all_equals_the_same_time_for_each(schedule_name, name):
    schedule, (from_output, to_output) = SCHEDULES[schedule_name], PARAMETERIZATIONS[name]
    output, x_t = draw(2, 3), draw(2, 3, seed=1)
    shared, each = (from_output(output, x_t, t, schedule) for t in (0.5, jnp.full(2, 0.5)))
    for one, other in zip(shared[:2], each[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(
        to_output(shared, x_t, 0.5, schedule), to_output(each, x_t, jnp.full(2, 0.5), schedule), rtol=1e-5, atol=1e-6
    )


@contract
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_endpoints_are_finite_in_values_and_gradients(schedule_name, name, end):
    schedule, (from_output, to_output) = SCHEDULES[schedule_name], PARAMETERIZATIONS[name]
    output, x_t = draw(2, 3), draw(2, 3, seed=1)

    def inwards(output, x_t):
        return from_output(output, x_t, end, schedule)

    def outwards(x0, eps):
        return to_output(Prediction(x0, eps), x_t, end, schedule)

    for function in (inwards, outwards):
        value, pullback = jax.vjp(function, output, x_t)
        gradients = pullback(jax.tree.map(jnp.ones_like, value))
        for array in jax.tree.leaves((value, gradients)):
            assert jnp.isfinite(array).all()


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_edms_output_goes_in_and_out_and_explains_x_t(schedule_name, x64):
    schedule, (from_output, to_output) = SCHEDULES[schedule_name], predictions.edm(0.5)
    x0, eps, x_t, t = truth(schedule)
    back = from_output(to_output(Prediction(x0, eps), x_t, t, schedule), x_t, t, schedule)
    np.testing.assert_allclose(back.x0, x0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back.eps, eps, rtol=1e-9, atol=1e-9)
    output = draw(*x_t.shape, seed=2)
    prediction = from_output(output, x_t, t, schedule)
    np.testing.assert_allclose(to_output(prediction, x_t, t, schedule), output, rtol=1e-9, atol=1e-9)
    alpha, sigma = scales(schedule, t, x_t)
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_edms_target_has_unit_variance_and_no_correlation_with_x_t(schedule_name, x64):
    """The target is linear in x0 and eps, so its second moments follow from its values at unit x0 and at unit eps."""
    schedule, t, std = SCHEDULES[schedule_name], jnp.asarray(TIMES), 0.3
    one, zero = jnp.ones((len(TIMES), 1)), jnp.zeros((len(TIMES), 1))
    of_x0, of_eps = (
        predictions.edm(std).to_output(Prediction(*pair), one, t, schedule) for pair in ((one, zero), (zero, one))
    )
    alpha, sigma = scales(schedule, t, one)
    np.testing.assert_allclose((of_x0 * std) ** 2 + of_eps**2, one, rtol=1e-9)
    np.testing.assert_allclose(of_x0 * std**2 * alpha + of_eps * sigma, zero, atol=1e-9)


@pytest.mark.parametrize("schedule_name", sorted(SCHEDULES.keys() - {"linear_path", "edm"}))
def test_edms_output_for_unit_data_is_minus_v_where_variance_is_preserved(schedule_name, x64):
    schedule = SCHEDULES[schedule_name]
    x0, eps, x_t, t = truth(schedule)
    ours, v = (to(Prediction(x0, eps), x_t, t, schedule) for to in (predictions.edm(1.0).to_output, predictions.to_v))
    np.testing.assert_allclose(ours, -v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_velocity_is_the_derivative_of_x_t(schedule_name, x64):
    schedule, h = SCHEDULES[schedule_name], 1e-6
    x0, eps, x_t, t = truth(schedule)

    def path(t):
        alpha, sigma = scales(schedule, t, x0)
        return alpha * x0 + sigma * eps

    velocity = predictions.to_velocity(Prediction(x0, eps), x_t, t, schedule)
    np.testing.assert_allclose(velocity, (path(t + h) - path(t - h)) / (2 * h), rtol=1e-6, atol=1e-7)


def test_velocity_on_the_linear_path_is_eps_minus_x0():
    x0, eps = draw(2, 3), draw(2, 3, seed=1)
    velocity = predictions.to_velocity(Prediction(x0, eps), x0, 0.3, schedules.linear_path)
    np.testing.assert_allclose(velocity, eps - x0, rtol=1e-6)


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_v_and_score_are_as_defined(schedule_name, x64):
    schedule = SCHEDULES[schedule_name]
    x0, eps, x_t, t = truth(schedule)
    alpha, sigma = scales(schedule, t, x0)
    v, score = (to(Prediction(x0, eps), x_t, t, schedule) for to in (predictions.to_v, predictions.to_score))
    np.testing.assert_allclose(v, alpha * eps - sigma * x0, rtol=1e-12)
    np.testing.assert_allclose(score, -eps / sigma, rtol=1e-12)


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_score_of_exact_denoisers_is_the_gradient_of_the_log_density(schedule_name, x64):
    schedule, x_t, t = SCHEDULES[schedule_name], draw(2, 3), 0.4
    alpha, sigma = schedule(jnp.float64(t))
    weights, means, variances = jnp.array([0.3, 0.7]), draw(2, 3, seed=3), jnp.array([0.1, 0.5])

    def log_density(x):
        return mixture_log_density(weights, means, variances, alpha, sigma, x)

    mixture = mixture_denoiser(schedule, weights, means, variances)(x_t, t, {})
    score = predictions.to_score(mixture, x_t, t, schedule)
    np.testing.assert_allclose(score, jax.vmap(jax.grad(log_density))(x_t), rtol=1e-9)
    gaussian = gaussian_prediction(schedule, means[:1], variances[0], x_t, t)
    one_component = mixture_denoiser(schedule, jnp.ones(1), means[:1], variances[:1])(x_t, t, {})
    np.testing.assert_allclose(gaussian.x0, one_component.x0, rtol=1e-12)


@pytest.mark.parametrize("clipped", ["clip", "noclip"])
@pytest.mark.parametrize(("mean", "name"), [("EPSILON", "eps"), ("START_X", "x0")])
def test_x0_equals_the_originals(mean, name, clipped):
    golden = np.load(GOLDEN / "ddpm_single_steps.npz")
    schedule = schedules.from_betas(schedules.linear_betas(50))
    x_t, t = jnp.asarray(golden["x_t"]), (golden["t"] + 1) / 50
    x0 = PARAMETERIZATIONS[name].from_output(jnp.asarray(golden["model_output"]), x_t, t, schedule).x0
    x0 = np.clip(x0, -1, 1) if clipped == "clip" else x0
    expected = golden[f"pmv_{mean}_FIXED_SMALL_{clipped}_pred_xstart"]
    # Each example has a divisor of its own, so each is judged by its own largest entry.
    largest = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(x0 / largest, expected / largest, atol=3e-5)


def test_v_equals_an_independent_implementation(x64):
    golden = np.load(GOLDEN / "lucidrains_predictions_and_losses.npz")
    schedule = schedules.from_betas(schedules.cosine_betas(100))
    x0, eps, x_t = (jnp.asarray(golden[name], jnp.float64) for name in ("x_start", "noise", "x_t_cosine"))
    t = (golden["t"] + 1) / 100
    np.testing.assert_allclose(schedules.diffuse(schedule, x0, eps, t), x_t, atol=1e-5)
    v = predictions.to_v(Prediction(x0, eps), x_t, t, schedule)
    np.testing.assert_allclose(v, golden["v_target_cosine"], atol=1e-5)
    output = jnp.sin(1.3 * x_t) + 0.001 * jnp.asarray(golden["t"]).reshape(-1, 1, 1, 1)
    x0 = jnp.clip(predictions.from_v(output, x_t, t, schedule).x0, -1, 1)  # as the original does, finding eps from it
    np.testing.assert_allclose(x0, golden["pred_v_cosine_pred_x_start"], atol=1e-5)
    eps = predictions.from_x0(x0, x_t, t, schedule).eps
    np.testing.assert_allclose(eps, golden["pred_v_cosine_pred_noise"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0.25, np.array([0.25, 0.75])])
def test_a_denoiser_tells_its_network_the_networks_own_time_for_each_example(t):
    seen = []

    def apply(x_t, time, cond):
        seen.append((time, cond))
        return jnp.full_like(x_t, 0.5)

    denoiser = make_denoiser(apply, PARAMETERIZATIONS["x0"], schedules.linear_path, lambda t: 1000 * t)
    x_t = draw(2, 3)
    prediction = denoiser(x_t, t, {"label": 7})
    ((time, cond),) = seen
    np.testing.assert_allclose(time, 1000 * np.broadcast_to(t, 2))
    assert cond == {"label": 7}
    t = np.broadcast_to(t, 2)[:, None]
    np.testing.assert_allclose(prediction.x0, 0.5)
    np.testing.assert_allclose(prediction.eps, (x_t - (1 - t) * 0.5) / t, rtol=1e-5)
