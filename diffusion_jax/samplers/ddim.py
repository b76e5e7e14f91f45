"""DDIM: deterministic at eta = 0, as noisy as ancestral sampling at eta = 1."""

import jax.numpy as jnp

from diffusion_jax.keys import normal_per_example
from diffusion_jax.samplers import Sampler, no_state
from diffusion_jax.schedules import Schedule, level_like


def ddim(schedule: Schedule, eta: float = 0.0) -> Sampler:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) eps + d z, with fresh noise z of deviation

        d = eta sigma_s / sigma_t sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2).

    Order: 1 at eta = 0, for any schedule (there it is the probability-flow ODE solved exactly for a constant eps and x0).
    At eta = 0 it also goes upwards, to s > t: DDIM's reverse (`editing.invert`).

    Args:
      schedule: the forward process.
      eta: 0 is deterministic; 1 has the variance of ancestral sampling with the "small" variance.

    Raises:
      ValueError: eta is outside [0, 1].

    Source: Song et al. 2021, "Denoising diffusion implicit models", eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"ddim: eta must be in [0, 1]; got {eta}.")

    def step(denoise, x_t, t, s, keys, state):
        level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
        prediction = denoise(x_t, t)
        if eta == 0:
            return level_s.alpha * prediction.x0 + level_s.sigma * prediction.eps, state
        kept = (level_t.alpha / level_s.alpha * level_s.sigma) ** 2
        var_ts = jnp.maximum(level_t.sigma**2 - kept, 0)
        shrink = level_s.sigma / level_t.sigma
        deviation = eta * shrink * jnp.sqrt(var_ts)
        direction = shrink * jnp.sqrt(kept + (1 - eta**2) * var_ts)  # sqrt(sigma_s^2 - d^2), without its cancellation
        noise = normal_per_example(keys, x_t.shape[1:], x_t.dtype)
        return level_s.alpha * prediction.x0 + direction * prediction.eps + deviation * noise, state

    return Sampler(no_state, step)
