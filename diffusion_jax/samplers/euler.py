"""Euler's method on the probability-flow ODE in time."""

from diffusion_jax.predictions import to_velocity
from diffusion_jax.samplers import Sampler, no_state
from diffusion_jax.schedules import Schedule


def euler(schedule: Schedule) -> Sampler:
    """x_s = x_t + (s - t) velocity(x_t, t), the velocity being alpha'_t x0 + sigma'_t eps. Order: 1.

    On the linear path this is the usual sampler of flow matching, and equal to DDIM. Where sigma' is infinite (the linear
    beta schedule at t = 0) it is never evaluated, since the last step starts above 0.

    Source: Song et al. 2021 (probability-flow ODE); Lipman et al. 2023.
    """

    def step(denoise, x_t, t, s, keys, state):
        return x_t + (s - t) * to_velocity(denoise(x_t, t), x_t, t, schedule), state

    return Sampler(no_state, step)
