"""Grids: decreasing times from the start to the data."""

import functools
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from analytic import SCHEDULES

from diffusion_jax import grids, schedules

GOLDEN = pathlib.Path(__file__).parent / "golden"

GRIDS = {"uniform": grids.uniform, "quadratic": grids.quadratic, "shifted": grids.shifted}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("start", [1.0, 0.98])
def test_a_grid_falls_from_its_start_to_zero_exactly(name, num_steps, start):
    grid = GRIDS[name](num_steps, start=start)
    assert grid.shape == (num_steps + 1,)
    assert grid[0] == jnp.float32(start) and grid[-1] == 0
    assert (jnp.diff(grid) < 0).all()


def test_uniform_times_are_equally_far_apart():
    np.testing.assert_allclose(grids.uniform(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(grids.uniform(2, start=0.5), [0.5, 0.25, 0])


def test_uniform_grid_visits_every_step_of_a_table():
    np.testing.assert_allclose(1000 * grids.uniform(1000)[:-1] - 1, np.arange(1000)[::-1], atol=1e-3)


def test_quadratic_times_are_squares():
    np.testing.assert_allclose(grids.quadratic(4), np.array([16, 9, 4, 1, 0]) / 16)
    np.testing.assert_allclose(grids.quadratic(2, start=0.5), [0.5, 0.125, 0])


def test_shifted_times_have_the_noise_of_a_larger_image():
    # Equation 23 multiplies the ratio of noise to signal on the linear path, t / (1 - t), by the shift.
    uniform, shifted = grids.uniform(5)[1:], grids.shifted(5, shift=3.0)[1:]
    np.testing.assert_allclose(shifted / (1 - shifted), 3 * uniform / (1 - uniform), rtol=1e-5)


def test_a_shift_of_one_is_uniform():
    np.testing.assert_allclose(grids.shifted(6, shift=1.0), grids.uniform(6), rtol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_without_steps_is_refused(name):
    with pytest.raises(ValueError, match="num_steps of at least 1; got 0"):
        GRIDS[name](0)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("start", [0.0, -0.5, 1.5])
def test_a_start_outside_the_times_is_refused(name, start):
    with pytest.raises(ValueError, match=rf"\(0, 1\]; got start={start}"):
        GRIDS[name](4, start=start)


@pytest.mark.parametrize("shift", [0, -1.0])
def test_a_shift_that_is_not_positive_is_refused(shift):
    with pytest.raises(ValueError, match=f"shift must be positive; got {shift}"):
        grids.shifted(4, shift=shift)


# --- Grids by noise, respacing, RePaint ---


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_times_have_karras_noise(name, rho, x64):
    schedule = SCHEDULES[name]
    grid = grids.karras(schedule, 9, 0.01, 15.0, rho)
    sigmas = schedules.edm_sigma(schedule(grid))
    expected = np.linspace(15.0 ** (1 / rho), 0.01 ** (1 / rho), 9) ** rho
    np.testing.assert_allclose(sigmas[:-1], expected, rtol=1e-9)
    assert grid[-1] == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_logsnr_times_are_even_in_log_snr(name, x64):
    schedule = SCHEDULES[name]
    grid = grids.logsnr_uniform(schedule, 8, -5.0, 9.0)
    np.testing.assert_allclose(schedules.logsnr(schedule(grid[:-1])), np.linspace(-5, 9, 8), atol=1e-9)
    assert grid[-1] == 0


def test_even_log_snr_is_k_diffusions_exponential_spacing(x64):
    golden = np.load(GOLDEN / "k_diffusion.npz")["sigmas_exponential"]
    ends = golden[[0, -2]].astype(float)
    schedule = functools.partial(schedules.edm, sigma_max=float(ends[0]))
    grid = grids.logsnr_uniform(schedule, len(golden) - 1, *(-2 * np.log(ends)))
    np.testing.assert_allclose(grid * ends[0], golden, rtol=1e-5)


def test_noise_beyond_a_schedule_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="smaller sigma_max"):
        grids.karras(SCHEDULES["edm"], 10, 0.01, 1000.0)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        grids.karras(SCHEDULES["cosine"], 10, 2.0, 1.0)
    with pytest.raises(ValueError, match="rho must be positive"):
        grids.karras(SCHEDULES["cosine"], 10, rho=0.0)
    with pytest.raises(ValueError, match="must be below"):
        grids.logsnr_uniform(SCHEDULES["cosine"], 10, 2.0, 1.0)


def respacings():
    golden = np.load(GOLDEN / "respacing.npz")
    return sorted(name for name in golden if not name.endswith("betas"))


@pytest.mark.parametrize("name", respacings())
def test_respacing_equals_the_originals(name):
    golden = np.load(GOLDEN / "respacing.npz")
    total, spacing = int(name.split(":")[0]), name.split(":")[1]
    steps = grids.space_steps(total, spacing)
    np.testing.assert_array_equal(steps, golden[name])
    np.testing.assert_allclose(grids.respaced(total, spacing)[:-1], (golden[name][::-1] + 1) / total, rtol=1e-6)
    for table in ("linear", "cosine"):
        if f"{name}:{table}_betas" in golden:
            betas = schedules.respaced_betas(schedules.BETAS[table](total), steps)
            np.testing.assert_allclose(betas, golden[f"{name}:{table}_betas"], rtol=1e-12)


def test_glides_fast27_is_its_published_list():
    # As glide-text2im prints it.
    expected = [
        0,
        22,
        44,
        66,
        88,
        111,
        133,
        155,
        177,
        199,
        200,
        222,
        244,
        266,
        288,
        311,
        333,
        355,
        377,
        399,
        400,
        500,
        599,
    ]
    assert list(grids.space_steps(1000, "fast27")) == [*expected, 600, 799, 800, 997]
    assert len(grids.space_steps(1000, "90,60,60,20,20")) == 250


@pytest.mark.parametrize(
    ("total", "spacing", "message"),
    [
        (10, "11", "cannot keep 11. Ask for at most 10"),
        (1000, "ddim150", "nearest: ddim143, ddim167"),
        (1000, "fast28", "is no spacing; use numbers"),
        (1000, "10,x", "is no spacing"),
        (1000, "ddim25,30", "ddim takes one number"),
        (1000, "ddim", "is no spacing"),
        (1000, "ddim0", "no whole stride keeps exactly 0"),
        (1000, "-5", "at least one step"),
        (300, (10, 151), "Ask for at most 150"),
        (1000, "10,0", "at least one step"),
        (500, "fast27", "made for 1000 steps"),
        (0, "1", "at least 1"),
    ],
)
def test_a_spacing_that_does_not_fit_is_told_with_what_does(total, spacing, message):
    with pytest.raises(ValueError, match=message):
        grids.space_steps(total, spacing)


def test_repaints_times_go_each_stretch_again_and_again():
    base = grids.uniform(4)
    np.testing.assert_allclose(grids.resampled(base, 2, 2), [1, 0.75, 0.5, 1, 0.75, 0.5, 0.25, 0, 0.5, 0.25, 0])
    np.testing.assert_allclose(grids.resampled(base, 3, 1), base)
    with pytest.raises(ValueError, match="at least 1"):
        grids.resampled(base, 0, 1)
