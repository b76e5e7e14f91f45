"""DPM-Solver++ 2M: second order from one evaluation a step."""

import jax.numpy as jnp

from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.multistep import decay, empty, log_ratio, past, remember
from diffusion_jax.schedules import Schedule, level_like


def dpmpp_2m(schedule: Schedule) -> Sampler:
    """x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) D,   D = x0 + h / (2 h') (x0 - x0'),

    with lambda = log(alpha / sigma), h = lambda_s - lambda_t, and x0', h' the prediction and the step before. The first step and
    the step to the data have D = x0, which is DDIM. Order: 2 (cosine, linear path and EDM on any grid; between 1 and 2 where the
    last first-order step is long in lambda: linear betas on a uniform grid).

    Args:
      schedule: the forward process.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """

    def step(denoise, x_t, t, s, keys, memory):
        x0 = denoise(x_t, t).x0
        level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
        (before,), (usable,) = past(schedule, memory)
        usable &= s > 0
        now = log_ratio(schedule, t)
        extrapolation = jnp.where(usable, (log_ratio(schedule, s) - now) / (2 * jnp.where(usable, now - before, 1)), 0)
        blended = x0 + extrapolation * (x0 - memory.values[0])
        x_s = level_s.sigma / level_t.sigma * x_t + level_s.alpha * (1 - decay(schedule, t, s)) * blended
        return x_s, remember(memory, x0, t)

    return Sampler(lambda x_t: empty(x_t, 1), step)
