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
    moved = ema.update({"w": jnp.float32(1.0)}, {"w": jnp.bfloat16(2.0)}, jnp.float32(0.0001))
    np.testing.assert_allclose(moved["w"], 1.0001, rtol=1e-6)
    assert moved["w"].dtype == jnp.float32


def test_gamma_is_that_of_the_papers_two_averages():
    """Karras et al. 2024 name them: 16.97 for 5% and 6.94 for 10%."""
    np.testing.assert_allclose([ema.power_gamma(std) for std in (0.05, 0.10)], [16.97, 6.94], atol=5e-3)


@pytest.mark.parametrize("std", [0.05, 0.10, 0.25])
def test_weights_of_a_power_average_have_the_std_that_it_was_asked_for(std):
    """Their standard deviation, from the recursion's own weights of a long run."""
    share = np.asarray(ema.power_share(jnp.arange(20_000), ema.power_gamma(std)), np.float64)
    kept = np.append(np.cumprod(1 - share[:0:-1])[::-1], 1)
    weights, when = share * kept, (np.arange(20_000) + 0.5) / 20_000
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    mean = weights @ when
    np.testing.assert_allclose(np.sqrt(weights @ (when - mean) ** 2), std, rtol=2e-3)


def test_share_of_a_power_average_begins_at_one_and_is_right_to_float_late_in_a_run():
    gamma = ema.power_gamma(0.05)
    assert ema.power_share(jnp.int32(0), gamma) == 1
    late = 10**7
    np.testing.assert_allclose(
        ema.power_share(jnp.int32(late - 1), gamma), -np.expm1((gamma + 1) * np.log1p(-1 / late)), rtol=1e-5
    )


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_a_std_that_no_power_function_has_is_refused(std):
    with pytest.raises(ValueError, match="below 0.289"):
        ema.power_gamma(std)
