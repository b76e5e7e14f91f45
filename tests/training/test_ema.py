import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training import ema


@pytest.mark.parametrize("step, want", [(0, 0.1), (1, 2 / 11), (90, 0.91), (10**6, 0.999)])
def test_decay_rises_to_its_limit(step, want):
    np.testing.assert_allclose(ema.decay_at(jnp.int32(step), 0.999), want, rtol=1e-6)


def test_average_of_a_constant_is_that_constant_and_of_a_step_decays_geometrically():
    average = {"w": jnp.float32(1.0)}
    for _ in range(3):
        average = ema.update(average, {"w": jnp.float32(0.0)}, jnp.float32(0.5))
    np.testing.assert_allclose(average["w"], 0.125)


def test_average_moves_when_parameters_are_bfloat16():
    moved = ema.update({"w": jnp.float32(1.0)}, {"w": jnp.bfloat16(2.0)}, jnp.float32(0.9999))
    np.testing.assert_allclose(moved["w"], 1.0001, rtol=1e-6)
    assert moved["w"].dtype == jnp.float32
