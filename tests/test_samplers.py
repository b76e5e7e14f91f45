"""Samplers: measured orders on exact problems, one contract for all of them, and the originals' steps and loops."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_denoiser, gaussian_flow, gaussian_prediction, mixture_denoiser, scales

from diffusion_jax import grids, samplers
from diffusion_jax.denoiser import make_denoiser
from diffusion_jax.guidance import classifier_free, clip_x0
from diffusion_jax.keys import fold_in, keys_per_example, normal_per_example
from diffusion_jax.predictions import PARAMETERIZATIONS, Prediction
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.euler import euler
from diffusion_jax.samplers.heun import heun
from diffusion_jax.schedules import cosine, from_betas, linear_betas, linear_path

pytestmark = pytest.mark.usefixtures("strict_ranks")

GOLDEN = pathlib.Path(__file__).parent / "golden"
NOISY = {
    "ancestral_small": lambda schedule: ancestral(schedule, "small"),
    "ancestral_large": lambda schedule: ancestral(schedule, "large"),
    "ddim_eta_half": lambda schedule: ddim(schedule, 0.5),
    "ddim_eta_one": lambda schedule: ddim(schedule, 1.0),
}
# The one table of samplers: what joins it here is held to every test that takes it.
SAMPLERS = NOISY | {"ddim": ddim, "euler": euler, "heun": heun}

MEAN, VARIANCE = np.array([[0.5, -0.3, 0.0]]), np.array([[0.25, 0.05, 1.5]])


def start(dtype=None):
    return jnp.array([[0.7, -1.2, 0.4], [-0.5, 0.3, 2.0]], dtype)


def keys_of(count):
    return keys_per_example(jax.random.key(0), jnp.arange(count))


def gaussian(schedule):
    return gaussian_denoiser(schedule, jnp.asarray(MEAN), jnp.asarray(VARIANCE))


@pytest.fixture
def given_noise(monkeypatch):
    """Keys are the noise itself, so that a test can give it: [B, ...] to a step, [N, B, ...] to a run."""
    for name in ("ancestral", "ddim"):
        module = importlib.import_module(f"diffusion_jax.samplers.{name}")
        monkeypatch.setattr(module, "normal_per_example", lambda keys, shape, dtype: keys)
    monkeypatch.setattr(samplers, "fold_in", lambda keys, i: keys[i])


# --- Orders of accuracy ---


STEPS = (64, 128, 256, 512)


def measured_order(sampler, schedule, make_grid):
    """The slope of the error at t = 0 against the number of steps, both in logarithms."""

    @jax.jit
    def run(grid, num_steps):
        return samplers.run(sampler, gaussian(schedule), (start(), ()), grid, {}, keys_of(2), 0, num_steps)[0]

    exact = gaussian_flow(schedule, MEAN, VARIANCE, start(), 1.0, 0.0)
    padded = [jnp.zeros(STEPS[-1] + 1).at[: n + 1].set(make_grid(n)) for n in STEPS]
    errors = [float(jnp.abs(run(grid, n) - exact).max()) for grid, n in zip(padded, STEPS, strict=True)]
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


@pytest.mark.parametrize("make_grid", [grids.uniform, grids.quadratic])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_has_order_one_for_any_schedule(name, make_grid, x64):
    assert measured_order(ddim(SCHEDULES[name]), SCHEDULES[name], make_grid) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("make_grid", [grids.uniform, grids.quadratic])
@pytest.mark.parametrize("name", SCHEDULES)
def test_euler_has_order_one(name, make_grid, x64):
    assert measured_order(euler(SCHEDULES[name]), SCHEDULES[name], make_grid) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("make_grid", [grids.uniform, grids.quadratic, grids.shifted])
@pytest.mark.parametrize("name", ["linear_path", "cosine"])
def test_heun_has_order_two_where_noise_grows_with_time(name, make_grid, x64):
    assert measured_order(heun(SCHEDULES[name]), SCHEDULES[name], make_grid) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_heun_has_order_two_on_the_quadratic_grid(name, x64):
    assert measured_order(heun(SCHEDULES[name]), SCHEDULES[name], grids.quadratic) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", ["linear", "ddpm_linear"])
def test_heun_falls_short_of_order_two_for_linear_betas_on_the_uniform_grid(name, x64):
    assert measured_order(heun(SCHEDULES[name]), SCHEDULES[name], grids.uniform) < 1.6


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_flow_follows_the_velocity_of_the_exact_denoiser(name, x64):
    schedule, t, h = SCHEDULES[name], 0.50055, 1e-7
    there = gaussian_flow(schedule, MEAN, VARIANCE, start(), t, t + h)
    back = gaussian_flow(schedule, MEAN, VARIANCE, start(), t, t - h)
    velocity = PARAMETERIZATIONS["velocity"].to_output(gaussian(schedule)(start(), t, {}), start(), t, schedule)
    np.testing.assert_allclose((there - back) / (2 * h), velocity, rtol=1e-6, atol=1e-7)


def test_ddim_and_euler_are_one_method_on_the_linear_path(x64):
    grid, denoiser = grids.uniform(5), gaussian(linear_path)
    one, other = (samplers.sample(make(linear_path), denoiser, start(), grid, {}, keys_of(2)) for make in (ddim, euler))
    np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_heun_evaluates_twice_a_step_but_once_in_the_last(num_steps):
    calls = []

    def denoiser(x_t, t, cond):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return gaussian_prediction(cosine, MEAN, VARIANCE, x_t, t)

    jax.jit(lambda x: samplers.sample(heun(cosine), denoiser, x, grids.uniform(num_steps), {}, keys_of(2)))(start())
    jax.effects_barrier()
    assert len(calls) == 2 * num_steps - 1
    assert min(calls) > 0


# --- Noise ---


def moments(sampler, schedule, num_steps, make_grid=grids.uniform):
    """Exact mean and variance at t = 0 of a sampler on Gaussian data, from the exact marginal at t = 1.

    A step is affine, x_s = a x_t + b + d z, so three probes (x, z) = (0, 0), (1, 0), (0, 1) tell all of it.
    They need `given_noise`.
    """
    x, z = (jnp.tile(jnp.array(column)[:, None], (1, 3)) for column in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))

    def body(carry, times):
        mean, variance = carry
        rows = sampler.step(lambda x, t: gaussian(schedule)(x, t, {}), x, *times, z, ())[0]
        b, a, d = rows[0], rows[1] - rows[0], rows[2] - rows[0]
        return (a * mean + b, a**2 * variance + d**2), None

    alpha, sigma = scales(schedule, 1.0, x[0])
    grid = make_grid(num_steps)
    begin = (alpha * MEAN[0], alpha**2 * VARIANCE[0] + sigma**2)
    return jax.jit(lambda: jax.lax.scan(body, begin, (grid[:-1], grid[1:]))[0])()


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", NOISY)
def test_noisy_samplers_converge_to_the_data_with_order_one_in_distribution(name, schedule_name, given_noise, x64):
    schedule, errors = SCHEDULES[schedule_name], []
    for num_steps in (100, 400):
        mean, variance = moments(NOISY[name](schedule), schedule, num_steps)
        np.testing.assert_allclose(mean, MEAN[0], atol=1e-9)  # the denoiser's average is the mean at every step
        errors.append(float(jnp.abs(jnp.sqrt(variance) - np.sqrt(VARIANCE[0])).max()))
    assert errors[-1] < 0.03
    assert np.log(errors[0] / errors[1]) / np.log(4) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", NOISY)
def test_samples_have_the_moments_that_the_steps_promise(name, monkeypatch):
    count, num_steps = 4000, 60
    sampler = NOISY[name](cosine)
    keys = keys_of(count)
    x_t = samplers.initial_noise(keys, (3,))
    grid = grids.uniform(num_steps)
    samples = np.asarray(jax.jit(lambda x: samplers.sample(sampler, gaussian(cosine), x, grid, {}, keys))(x_t))
    for module in ("ancestral", "ddim"):
        monkeypatch.setattr(f"diffusion_jax.samplers.{module}.normal_per_example", lambda keys, shape, dtype: keys)
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
    grid, sampler, x = grids.uniform(4), ancestral(cosine), start()
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
    with pytest.raises(ValueError, match=r"variance must be one of \('small', 'large'\); got 'learned'"):
        ancestral(cosine, "learned")
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\]; got {eta}"):
            ddim(cosine, eta)


# --- The contract: every sampler, with every schedule, parameterization and wrapper ---


POINT = np.array([[0.4, -0.6, 0.1], [-1.3, 0.2, 1.7]])  # the condition of two examples, partly outside [-1, 1]
NO_POINT = np.array([0.2, 0.1, -0.3])
SCALE = 2.0
# (number of steps, tolerance). Where x moves on a curve in the method's own coordinates, a point is met approximately.
EXACT = (8, 1e-3)
APPROXIMATE = (128, 2e-2)
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
        x0, eps = zip(*(denoiser(x, t, c) for denoiser, x, c in pairs), strict=True)
        return Prediction(jnp.concatenate(x0), jnp.concatenate(eps))

    return denoise


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_recovers_one_point_with_every_parameterization_and_wrapper(name, schedule_name):
    schedule = SCHEDULES[schedule_name]
    curved = name == "euler" and schedule_name != "linear_path"
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_ignores_its_batch_mates(name):
    keys, sampler = keys_of(4), SAMPLERS[name](cosine)
    x_t = samplers.initial_noise(keys, (3,))
    together = samplers.sample(sampler, gaussian(cosine), x_t, grids.uniform(5), {}, keys)
    alone = samplers.sample(sampler, gaussian(cosine), x_t[2:3], grids.uniform(5), {}, keys[2:3])
    np.testing.assert_allclose(alone[0], together[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_compiled_equals_not_compiled(name, x64):
    sampler, keys = SAMPLERS[name](cosine), keys_of(2)

    def run(x_t, keys):
        return samplers.sample(sampler, gaussian(cosine), x_t, grids.uniform(5), {}, keys)

    compiled = jax.jit(run)(start(), keys)
    with jax.disable_jit():
        np.testing.assert_allclose(run(start(), keys), compiled, rtol=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_parts_of_a_grid_make_the_whole_in_one_compiled_program(name):
    sampler, keys, grid, traces = SAMPLERS[name](cosine), keys_of(2), grids.uniform(7), 0
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
        assert samplers.sample(sampler, denoiser, start(dtype), grids.uniform(3), {}, keys).dtype == dtype


# --- The originals ---


def close_to_largest(ours, golden, tolerance):
    largest = np.abs(golden).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(ours / largest, golden / largest, atol=tolerance)


def single_step(make_sampler, name, clipped, noise):
    """A step of each of five examples, at its own time, for a network that returns a constant."""
    golden = np.load(GOLDEN / "ddpm_single_steps.npz")
    schedule = from_betas(linear_betas(50))
    results = []
    for i, step in enumerate(golden["t"]):
        output = jnp.asarray(golden["model_output"][i : i + 1], jnp.float64)
        denoiser = make_denoiser(lambda x_t, t, cond, o=output: o, PARAMETERIZATIONS[name], schedule, lambda t: t)
        denoiser = clip_x0(denoiser, schedule) if clipped else denoiser
        x_t = jnp.asarray(golden["x_t"][i : i + 1], jnp.float64)
        keys = jnp.asarray(np.broadcast_to(noise, golden["x_t"].shape)[i : i + 1])
        t, s = jnp.float64((step + 1) / 50), jnp.float64(step / 50)
        x_s, _ = make_sampler(schedule).step(lambda x, t, d=denoiser: d(x, t, {}), x_t, t, s, keys, ())
        results.append(np.asarray(x_s[0]))
    return np.stack(results), golden


@pytest.mark.parametrize("clipped", ["clip", "noclip"])
@pytest.mark.parametrize(("mean", "name"), [("EPSILON", "eps"), ("START_X", "x0")])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_means_and_variances_equal_the_originals(variance, mean, name, clipped, given_noise, x64):
    quiet, golden = single_step(lambda schedule: ancestral(schedule, variance), name, clipped == "clip", 0.0)
    close_to_largest(quiet, golden[f"pmv_{mean}_FIXED_{variance.upper()}_{clipped}_mean"], 1e-5)
    noisy, _ = single_step(lambda schedule: ancestral(schedule, variance), name, clipped == "clip", 1.0)
    expected = np.where(golden["t"] > 0, golden[f"FIXED_{variance.upper()}_variance"], 0)  # masked in the last step
    np.testing.assert_allclose(((noisy - quiet) ** 2).mean(axis=(1, 2, 3)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("eta", "name", "clipped", "key"),
    [
        (0.0, "eps", True, "ddim_sample_eta0p0_sample"),
        (0.5, "eps", True, "ddim_sample_eta0p5_sample"),
        (1.0, "eps", True, "ddim_sample_eta1p0_sample"),
        (1.0, "eps", False, "ddim_sample_noclip_eta1_sample"),
        (0.5, "x0", True, "ddim_sample_eta0p5_START_X_sample"),
    ],
)
def test_ddim_steps_equal_the_originals(eta, name, clipped, key, given_noise, x64):
    noise = np.load(GOLDEN / "ddpm_single_steps.npz")["ddim_sample_noise"].astype(np.float64)
    x_s, golden = single_step(lambda schedule: ddim(schedule, eta), name, clipped, noise)
    close_to_largest(x_s, golden[key], 1e-5)


@pytest.mark.parametrize(
    ("make_sampler", "steps", "key"),
    [
        (lambda schedule: ancestral(schedule, "small"), "20", "ddpm20_FIXED_SMALL"),
        (lambda schedule: ancestral(schedule, "large"), "20", "ddpm20_FIXED_LARGE"),
        (ddim, "ddim20", "ddim20_eta0p0"),
        (lambda schedule: ddim(schedule, 0.5), "ddim20", "ddim20_eta0p5"),
        (lambda schedule: ddim(schedule, 1.0), "ddim20", "ddim20_eta1p0"),
    ],
)
def test_visiting_some_times_equals_the_originals_respaced_loop(make_sampler, steps, key, given_noise, x64):
    golden = np.load(GOLDEN / "ddpm_ddim_loops.npz")
    mixture = [jnp.asarray(golden[f"gmm_{name}"], jnp.float64) for name in ("weights", "means", "variances")]
    schedule = SCHEDULES["ddpm_linear"]
    denoiser = clip_x0(mixture_denoiser(schedule, *mixture), schedule)
    grid = np.append((golden[f"timestep_map_{steps}"][::-1] + 1) / 1000, 0.0)
    expected = golden[f"{key}_samples"]
    noise = jnp.asarray(golden[f"{key}_noise"] if f"{key}_noise" in golden else np.zeros_like(expected), jnp.float64)
    sampler = make_sampler(schedule)

    @jax.jit
    def part(carry, first, last):
        return samplers.run(sampler, denoiser, carry, grid, {}, noise, first, last)

    carry = (jnp.asarray(golden["x_T"], jnp.float64), ())
    for i in range(20):
        carry = part(carry, i, i + 1)
        np.testing.assert_allclose(carry[0], expected[i], atol=1e-3)
