"""Schedules: endpoints, derivatives, DDPM's tables, and the shapes that times may have."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES

from diffusion_jax import schedules

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = pathlib.Path(__file__).parent / "golden"
TABLES = {"linear1000": schedules.linear_betas(1000), "cosine100": schedules.cosine_betas(100)}
VARIANCE_PRESERVING = [name for name in SCHEDULES if name not in ("linear_path", "edm")]
FIRST_BETA, LAST_BETA = 1e-4, 0.02  # of DDPM's linear table

# d alpha/dt and d sigma/dt at t = 0 and at t = 1, by hand. Within 1 / T, log alpha_bar of a table falls by log(1 - beta).
ALPHA_END = float(np.exp(-20.1 / 4))  # of `linear`
TABLE_END = float(np.sqrt(np.prod(1 - np.linspace(FIRST_BETA, LAST_BETA, 1000))))
ENDPOINT_RATES = {
    "linear_path": ((-1, 1), (-1, 1)),
    "cosine": ((0, np.pi / 2), (-np.pi / 2, 0)),
    "linear": ((-0.05, np.inf), (-10 * ALPHA_END, 10 * ALPHA_END**2 / np.sqrt(1 - ALPHA_END**2))),
    "ddpm_linear": (
        (500 * np.log1p(-FIRST_BETA), np.inf),
        500 * np.log1p(-LAST_BETA) * np.array([TABLE_END, -(TABLE_END**2) / np.sqrt(1 - TABLE_END**2)]),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_zero_is_the_data_exactly(name):
    level = SCHEDULES[name](jnp.zeros(3))
    np.testing.assert_array_equal(level.alpha, 1)
    np.testing.assert_array_equal(level.sigma, 0)
    np.testing.assert_array_equal(schedules.logsnr(level), np.inf)


@pytest.mark.parametrize("name", ["cosine", "linear_path"])
def test_time_one_is_pure_noise_exactly(name):
    level = SCHEDULES[name](jnp.ones(()))
    assert level.alpha == 0
    assert level.sigma == 1
    assert schedules.logsnr(level) == -np.inf


@pytest.mark.parametrize(("name", "alpha"), [("linear", ALPHA_END), ("ddpm_linear", TABLE_END)])
def test_linear_betas_leave_a_known_trace_of_signal_at_time_one(name, alpha, x64):
    level = SCHEDULES[name](jnp.ones(()))
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(level.sigma, np.sqrt(1 - alpha**2), rtol=1e-12)


@pytest.mark.parametrize("name", ENDPOINT_RATES)
@pytest.mark.parametrize("end", [0, 1])
def test_gradients_at_the_endpoints_are_what_the_formula_says(name, end):
    t, (alpha_rate, sigma_rate) = jnp.float32(end), ENDPOINT_RATES[name][end]
    forward = schedules.rate(SCHEDULES[name], t)
    np.testing.assert_allclose(forward.alpha, alpha_rate, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(forward.sigma, sigma_rate, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda t: SCHEDULES[name](t).alpha)(t), alpha_rate, rtol=1e-4, atol=1e-6)
    if np.isfinite(sigma_rate):  # `rate` is forward; backwards, an infinite slope meets the zero in d(t^2)/dt
        np.testing.assert_allclose(jax.grad(lambda t: SCHEDULES[name](t).sigma)(t), sigma_rate, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_grows_from_a_positive_zero(name):
    sigma = jax.jit(SCHEDULES[name])(jnp.float32(0)).sigma
    assert sigma == 0
    assert not jnp.signbit(sigma)
    assert schedules.rate(SCHEDULES[name], jnp.float32(0)).sigma > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_finite_after_time_zero_and_nowhere_nan(name):
    level = schedules.rate(SCHEDULES[name], jnp.linspace(0, 1, 65))
    for slope in level:
        assert not jnp.isnan(slope).any()
        assert jnp.isfinite(slope[1:-1]).all()
        assert jnp.isfinite(slope[-1]) or name == "sigmoid"  # its alpha falls like a square root at pure noise


@pytest.mark.parametrize("name", SCHEDULES)
def test_logsnr_falls_with_time(name):
    logsnr = schedules.logsnr(SCHEDULES[name](jnp.linspace(0, 1, 1025)))
    assert (jnp.diff(logsnr) < 0).all()


def test_logsnr_is_the_logarithm_of_the_ratio_of_variances():
    level = schedules.Level(jnp.float32(0.6), jnp.float32(0.8))
    np.testing.assert_allclose(schedules.logsnr(level), np.log(0.36 / 0.64), rtol=1e-6)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_is_preserved(name, x64):
    alpha, sigma = SCHEDULES[name](jnp.linspace(0, 1, 257))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)


def test_linear_schedule_integrates_its_rate_of_noise(x64):
    t = np.linspace(0, 1, 101)
    noise_rate = 0.3 + (7.0 - 0.3) * t  # beta(t); the trapezoidal rule integrates a straight line exactly
    integral = np.concatenate([[0], np.cumsum((noise_rate[1:] + noise_rate[:-1]) / 2 * np.diff(t))])
    level = schedules.linear(jnp.asarray(t), beta_min=0.3, beta_max=7.0)
    np.testing.assert_allclose(level.alpha**2, np.exp(-integral), rtol=1e-12)
    np.testing.assert_allclose(level.sigma**2, -np.expm1(-integral), rtol=1e-12)


def test_linear_schedule_is_the_limit_of_the_linear_tables(x64):
    t = jnp.linspace(0.1, 1, 10)

    def distance(num_steps):
        table = schedules.from_betas(schedules.linear_betas(num_steps))
        return jnp.abs(table(t).alpha - schedules.linear(t).alpha).max()

    assert distance(10_000) < 2e-4
    np.testing.assert_allclose(distance(1_000) / distance(10_000), 10, rtol=0.1)


@pytest.mark.parametrize("name", TABLES)
def test_betas_equal_the_originals(name):
    golden = np.load(GOLDEN / "ddpm_tables.npz")[f"{name}_betas"]
    assert TABLES[name].dtype == np.float64
    np.testing.assert_allclose(TABLES[name], golden, rtol=1e-12)


@pytest.mark.parametrize(("name", "make"), [("linear", schedules.linear_betas), ("cosine", schedules.cosine_betas)])
def test_betas_equal_a_second_implementation(name, make):
    golden = np.load(GOLDEN / "lucidrains_predictions_and_losses.npz")[name]
    np.testing.assert_allclose(make(100), golden, rtol=1e-10)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_met_at_every_step(name, x64):
    alpha_bar = np.load(GOLDEN / "ddpm_tables.npz")[f"{name}_alphas_cumprod"]
    times = (np.arange(len(alpha_bar)) + 1) / len(alpha_bar)
    level = schedules.from_betas(TABLES[name])(jnp.asarray(times))
    np.testing.assert_allclose(level.alpha**2, alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(level.sigma**2, 1 - alpha_bar, rtol=1e-11)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_keeps_its_digits_in_float32(name):
    alpha_bar = np.load(GOLDEN / "ddpm_tables.npz")[f"{name}_alphas_cumprod"]
    times = (np.arange(len(alpha_bar)) + 1) / len(alpha_bar)
    level = schedules.from_betas(TABLES[name])(jnp.asarray(times, jnp.float32))
    # The rounding of t itself moves the last steps of the cosine table, where log alpha_bar falls steeply.
    np.testing.assert_allclose(level.alpha[:-1], np.sqrt(alpha_bar)[:-1], rtol=2e-5)
    np.testing.assert_allclose(level.sigma, np.sqrt(1 - alpha_bar), rtol=2e-5)


def test_a_table_is_log_linear_between_its_steps(x64):
    schedule = schedules.from_betas(np.array([0.1, 0.4, 0.7]))
    quarter_into_second_step = 0.9 * 0.6**0.25
    np.testing.assert_allclose(schedule(jnp.float64(1.25 / 3)).alpha ** 2, quarter_into_second_step, rtol=1e-12)


def test_a_table_takes_python_numbers():
    schedule = schedules.from_betas(np.array([0.1, 0.4]))
    np.testing.assert_allclose(schedule(0.5).alpha ** 2, 0.9, rtol=1e-6)
    np.testing.assert_allclose(schedule(1).alpha ** 2, 0.54, rtol=1e-6)


def test_cosine_betas_are_capped():
    assert schedules.cosine_betas(100).max() == 0.999
    assert schedules.cosine_betas(100, max_beta=0.5).max() == 0.5


def test_discrete_step_inverts_the_numbering_of_a_table():
    steps = np.arange(50)
    np.testing.assert_allclose(schedules.discrete_step(jnp.asarray((steps + 1) / 50), 50), steps, atol=1e-4)
    np.testing.assert_allclose(schedules.discrete_step(jnp.float32(0.125), 4), -0.5)
    np.testing.assert_allclose(schedules.discrete_step(jnp.float32(0), 1000), -1)


@pytest.mark.parametrize(
    "betas",
    [
        np.array([0.0, 0.1]),
        np.array([1.0, 0.1]),
        np.array([-0.1]),
        np.array([np.nan]),
        np.array([]),
        np.full((2, 2), 0.1),
    ],
)
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match=r"from_betas: betas must be .* got shape"):
        schedules.from_betas(betas)


def test_too_few_linear_betas_are_refused_and_the_least_is_named():
    with pytest.raises(ValueError, match=r"num_steps is 20.*Use 21 or more"):
        schedules.linear_betas(20)
    assert schedules.linear_betas(21).max() < 1


@pytest.mark.parametrize("make", [schedules.linear_betas, schedules.cosine_betas])
def test_a_table_of_no_steps_is_refused(make):
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        make(0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rate_is_the_slope_of_the_schedule(name, x64):
    t, h = jnp.array([0.01233, 0.12345, 0.50055, 0.99955]), 1e-7  # inside steps of a table of 1000
    forward, backward = SCHEDULES[name](t + h), SCHEDULES[name](t - h)
    slope = schedules.rate(SCHEDULES[name], t)
    np.testing.assert_allclose(slope.alpha, (forward.alpha - backward.alpha) / (2 * h), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(slope.sigma, (forward.sigma - backward.sigma) / (2 * h), rtol=1e-6, atol=1e-8)


def test_diffuse_equals_the_originals_q_sample():
    golden = np.load(GOLDEN / "ddpm_single_steps.npz")
    schedule = schedules.from_betas(schedules.linear_betas(50))
    t = (golden["t"] + 1) / 50
    together = schedules.diffuse(schedule, jnp.asarray(golden["x_start"]), jnp.asarray(golden["noise"]), t)
    np.testing.assert_allclose(together, golden["x_t"], rtol=1e-5, atol=1e-6)
    for i in range(len(t)):  # one time for all
        x_t = schedules.diffuse(schedule, jnp.asarray(golden["x_start"]), jnp.asarray(golden["noise"]), t[i])
        np.testing.assert_allclose(x_t[i], golden["x_t"][i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 4, 4, 3)])
def test_level_like_has_the_rank_of_x_for_one_time_and_for_one_each(shape):
    x, times = jnp.ones(shape), jnp.array([0.25, 0.75])
    shared = schedules.level_like(schedules.linear_path, 0.25, x)
    each = schedules.level_like(schedules.linear_path, times, x)
    assert shared.alpha.shape == (1,) * x.ndim
    assert each.alpha.shape == (2,) + (1,) * (x.ndim - 1)
    np.testing.assert_allclose((each.sigma * x).reshape(2, -1).mean(1), times)
    np.testing.assert_allclose(shared.sigma * x, 0.25)


def test_level_like_has_the_dtype_of_x(x64):
    assert schedules.level_like(schedules.cosine, jnp.float32(0.5), jnp.ones(2)).alpha.dtype == jnp.float64
    assert schedules.level_like(schedules.cosine, 0.5, jnp.ones(2, jnp.float32)).alpha.dtype == jnp.float32


def test_a_bound_schedule_is_a_schedule():
    bound = functools.partial(schedules.linear, beta_min=0.0, beta_max=0.0)
    np.testing.assert_allclose(bound(jnp.float32(1)).alpha, 1)


# --- The other tables, and what is made of schedules ---


@pytest.mark.parametrize("num_steps", [21, 300, 1000, 4000])
@pytest.mark.parametrize("name", schedules.BETAS)
def test_every_named_table_is_a_schedule_at_any_number_of_steps(name, num_steps):
    betas = schedules.BETAS[name](num_steps)
    assert betas.shape == (num_steps,)
    assert betas.dtype == np.float64
    level = schedules.from_betas(betas)(jnp.linspace(0, 1, num_steps + 1))
    assert (jnp.diff(level.alpha) <= 0).all()
    np.testing.assert_allclose(level.alpha[1:] ** 2, np.cumprod(1 - betas), atol=2e-5)


def test_the_tables_are_as_their_papers_say():
    betas = {name: make(100) for name, make in schedules.BETAS.items()}
    np.testing.assert_allclose(np.diff(np.sqrt(betas["quadratic"])), (np.sqrt(0.02) - 0.01) / 99, rtol=1e-9)
    np.testing.assert_array_equal(betas["const"], 0.02)
    np.testing.assert_allclose(np.cumprod(1 - betas["jsd"]), 1 - np.arange(1, 101) / 100, atol=1e-12)
    for name, rise in (("warmup10", 10), ("warmup50", 50)):
        np.testing.assert_array_equal(betas[name][rise - 1 :], 0.02)
        np.testing.assert_allclose(betas[name][:rise], np.linspace(1e-4, 0.02, rise), rtol=1e-12)
    ratio = np.sqrt(1 / np.cumprod(1 - betas["geometric"]) - 1)
    np.testing.assert_allclose(ratio, np.geomspace(1e-3, 20, 100), rtol=1e-6)
    middle = (betas["sigmoid"][49] + betas["sigmoid"][50]) / 2
    np.testing.assert_allclose(middle, (1e-4 + 0.02) / 2, rtol=1e-9)
    np.testing.assert_allclose(betas["sigmoid"][0], 1e-4 + 0.0199 / (1 + np.exp(6)), rtol=1e-12)


def test_the_sigmoid_table_equals_a_second_implementation():
    golden = np.load(GOLDEN / "lucidrains_predictions_and_losses.npz")["sigmoid"]  # of float32 arithmetic
    np.testing.assert_allclose(schedules.sigmoid_alpha_bar_betas(100), golden, atol=1e-6)


def test_unscaled_linear_betas_and_the_annotated_models_cosine():
    np.testing.assert_allclose(schedules.linear_betas(300, reference_steps=None)[[0, -1]], [1e-4, 0.02], rtol=1e-12)
    clipped = schedules.cosine_betas(1000, max_beta=0.9999, min_beta=1e-4)
    assert clipped.min() == 1e-4
    assert clipped.max() == 0.9999


def test_zero_terminal_snr_ends_without_signal_and_keeps_the_first_step(x64):
    betas = schedules.linear_betas(1000)
    rescaled = schedules.zero_terminal_snr(betas)
    assert rescaled[-1] == 1
    np.testing.assert_allclose(rescaled[0], betas[0], rtol=1e-9)
    level = schedules.from_betas(rescaled)(jnp.linspace(0, 1, 1001))
    assert level.alpha[-1] == 0
    assert level.sigma[-1] == 1
    # Square roots of alpha_bar are shifted and scaled evenly.
    before = np.sqrt(np.cumprod(1 - betas))
    np.testing.assert_allclose(level.alpha[1:], (before - before[-1]) * before[0] / (before[0] - before[-1]), atol=1e-9)
    with pytest.raises(ValueError, match="at least two betas"):
        schedules.zero_terminal_snr(betas[:1])


@pytest.mark.parametrize(("name", "power"), [("linear_path", 1), ("cosine", 2), ("ddpm_linear", 2), ("edm", np.inf)])
def test_a_shift_multiplies_the_noise_to_signal_ratio_and_keeps_the_kind(name, power, x64):
    t = jnp.linspace(0.05, 0.95, 7)
    before, after = SCHEDULES[name](t), schedules.shifted(SCHEDULES[name], 2.5, power)(t)
    np.testing.assert_allclose(schedules.edm_sigma(after), 2.5 * schedules.edm_sigma(before), rtol=1e-12)
    if power == np.inf:
        np.testing.assert_array_equal(after.alpha, 1)
    else:
        np.testing.assert_allclose(after.alpha**power + after.sigma**power, 1, rtol=1e-12)
    if power == 1:  # Stable Diffusion 3's bent time
        np.testing.assert_allclose(after.sigma, 2.5 * t / (1 + 1.5 * t), rtol=1e-12)
    with pytest.raises(ValueError, match="shift must be positive"):
        schedules.shifted(SCHEDULES[name], 0.0, power)
    with pytest.raises(ValueError, match="power must be"):
        schedules.shifted(SCHEDULES[name], 2.0, 3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_at_inverts_the_log_snr(name, x64):
    t = jnp.array([0.001, 0.02, 0.3, 0.7, 0.99])
    found = schedules.time_at(SCHEDULES[name], schedules.logsnr(SCHEDULES[name](t)))
    np.testing.assert_allclose(found, t, rtol=1e-9)
    np.testing.assert_array_equal(schedules.time_at(SCHEDULES[name], jnp.array([jnp.inf, -jnp.inf])), [0, 1])


def test_respaced_betas_refuse_steps_that_do_not_ascend():
    with pytest.raises(ValueError, match="ascend within 0..9"):
        schedules.respaced_betas(np.full(10, 0.1), [3, 2])
