"""Samplers' orders of accuracy, measured as slopes on Gaussian data, where the flow is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES, gaussian_flow, gaussian_prediction
from sampler_cases import MEAN, ORDERS, VARIANCE, gaussian, keys_of, start

from diffusion_jax import grids, samplers
from diffusion_jax.predictions import PARAMETERIZATIONS
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.euler import euler
from diffusion_jax.samplers.heun import heun
from diffusion_jax.samplers.midpoint import midpoint
from diffusion_jax.schedules import cosine, linear_path

pytestmark = pytest.mark.usefixtures("strict_ranks")

STEPS = (64, 128, 256, 512)


def measured_order(sampler, schedule, make_grid):
    """The slope of the error at the grid's end against the number of steps, both in logarithms."""

    @jax.jit
    def run(grid, num_steps, x):
        return samplers.run(sampler, gaussian(schedule), (x, sampler.init(x)), grid, {}, keys_of(2), 0, num_steps)[0]

    errors = []
    for grid in (jnp.asarray(make_grid(n), float) for n in STEPS):
        x = start() * jnp.hypot(*schedule(grid[0]))
        exact = gaussian_flow(schedule, MEAN, VARIANCE, x, grid[0], grid[-1])
        padded = jnp.zeros(STEPS[-1] + 1).at[: len(grid)].set(grid)
        errors.append(float(jnp.abs(run(padded, len(grid) - 1, x) - exact).max()))
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", ORDERS)
def test_every_deterministic_sampler_has_the_order_it_claims_for_every_schedule(name, schedule_name, x64):
    make, order = ORDERS[name]
    schedule = SCHEDULES[schedule_name]
    if name == "midpoint" and schedule_name.startswith("ddpm"):
        return  # a table's velocity jumps from step to step: test_midpoint_sees_the_corners_of_a_table

    def above_the_data(num_steps):
        return grids.logsnr_uniform(schedule, num_steps, -6.0, 9.0)[:-1]

    measured = measured_order(make(schedule), schedule, above_the_data)
    # On a straight path the midpoint rule's leading error happens to vanish.
    assert measured > order - 0.15
    assert measured < order + (1.1 if name == "midpoint" else 0.35)


@pytest.mark.parametrize("name", ["ddpm_linear", "ddpm_cosine"])
def test_midpoint_sees_the_corners_of_a_table(name, x64):
    assert measured_order(midpoint(SCHEDULES[name]), SCHEDULES[name], lambda n: grids.uniform(n, 0.98)) < 1.9


@pytest.mark.parametrize("make_grid", [grids.uniform, grids.quadratic])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_has_order_one_down_to_the_data(name, make_grid, x64):
    assert measured_order(ddim(SCHEDULES[name]), SCHEDULES[name], make_grid) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("make_grid", [grids.uniform, grids.quadratic])
@pytest.mark.parametrize("name", SCHEDULES)
def test_euler_has_order_one_down_to_the_data(name, make_grid, x64):
    assert measured_order(euler(SCHEDULES[name]), SCHEDULES[name], make_grid) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("make_grid", [grids.uniform, grids.quadratic, grids.shifted])
@pytest.mark.parametrize("name", ["linear_path", "cosine"])
def test_heun_has_order_two_where_noise_grows_with_time(name, make_grid, x64):
    assert measured_order(heun(SCHEDULES[name]), SCHEDULES[name], make_grid) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_heun_has_order_two_on_the_quadratic_grid(name, x64):
    start = 0.98 if name == "sigmoid" else 1.0  # its alpha falls like a square root at pure noise

    def grid(num_steps):
        return grids.quadratic(num_steps, start)

    assert measured_order(heun(SCHEDULES[name]), SCHEDULES[name], grid) == pytest.approx(2, abs=0.15)


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
