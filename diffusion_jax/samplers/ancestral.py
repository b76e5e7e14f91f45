"""DDPM's ancestral sampling, for any schedule and any pair of times."""

import jax.numpy as jnp

from diffusion_jax.keys import normal_per_example
from diffusion_jax.samplers import Sampler, no_state
from diffusion_jax.schedules import Schedule, level_like

VARIANCES = ("small", "large")


def ancestral(schedule: Schedule, variance: str = "small") -> Sampler:
    """Draws x_s from the posterior q(x_s | x_t, x0), with the predicted x0 in place of the true one.

    With alpha_ts = alpha_t / alpha_s and var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2 (the noise added between s and t):

        mean = (alpha_ts sigma_s^2 x_t + alpha_s var_ts x0) / sigma_t^2
        variance = var_ts sigma_s^2 / sigma_t^2  ("small", the posterior's)  or  var_ts  ("large", the forward step's)

    On a table of betas these are DDPM's FIXED_SMALL and FIXED_LARGE. No noise is added where s is the data.
    Order: 1/2 strongly, 1 in distribution, as the number of steps grows.

    Args:
      schedule: the forward process.
      variance: "small" or "large".

    Raises:
      ValueError: the variance's name is unknown.

    Source: Ho et al. 2020, eq. 6-7; for two arbitrary times, Kingma et al. 2021, appendix A.
    """
    if variance not in VARIANCES:
        raise ValueError(f"ancestral: variance must be one of {VARIANCES}; got {variance!r}.")

    def step(denoise, x_t, t, s, keys, state):
        level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
        alpha_ts = level_t.alpha / level_s.alpha
        var_ts = level_t.sigma**2 - alpha_ts**2 * level_s.sigma**2
        shrink = level_s.sigma**2 / level_t.sigma**2
        mean = alpha_ts * shrink * x_t + level_s.alpha * var_ts / level_t.sigma**2 * denoise(x_t, t).x0
        deviation = jnp.sqrt(jnp.maximum(var_ts * shrink if variance == "small" else var_ts, 0))
        noise = normal_per_example(keys, x_t.shape[1:], x_t.dtype)
        return mean + jnp.where(s > 0, deviation, 0) * noise, state

    return Sampler(no_state, step)
