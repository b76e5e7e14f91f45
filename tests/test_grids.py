"""Grids: decreasing times from the start to the data."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import grids

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
