"""DPM-Solver++ 2M SDE: second order in the drift, with fresh noise at every step."""

import jax.numpy as jnp

from diffusion_jax.keys import normal_per_example
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.multistep import decay, empty, log_ratio, past, remember
from diffusion_jax.schedules import Schedule, level_like

SOLVERS = ("midpoint", "heun")


def dpmpp_2m_sde(schedule: Schedule, eta: float = 1.0, solver: str = "midpoint") -> Sampler:
    """With q = e^-h, Q = q^(1 + eta), h = lambda_s - lambda_t, and x0', h' the prediction and the step before,

        x_s = sigma_s / sigma_t q^eta x_t + alpha_s (1 - Q) x0 + alpha_s c h / h' (x0 - x0') + sigma_s sqrt(1 - q^(2 eta)) z,
        c = (1 - Q) / 2  (midpoint)   or   1 - (1 - Q) / ((1 + eta) h)  (heun).

    Without the third term, as in the first step, eta = 1 is ancestral sampling and eta = 0 DDIM; the step to the data returns x0.
    Order: 2 at eta = 0; with noise 1 in distribution or better.

    Args:
      schedule: the forward process.
      eta: 0 is deterministic, 1 the reverse SDE.
      solver: "midpoint" or "heun", how the second-order term is integrated.

    Raises:
      ValueError: eta is negative or the solver unknown.

    Source: Lu et al. 2022, "DPM-Solver++", section 5 and appendix; k-diffusion's sample_dpmpp_2m_sde.
    """
    if eta < 0:
        raise ValueError(f"dpmpp_2m_sde: eta must be at least 0; got {eta}.")
    if solver not in SOLVERS:
        raise ValueError(f"dpmpp_2m_sde: solver must be one of {SOLVERS}; got {solver!r}.")

    def step(denoise, x_t, t, s, keys, memory):
        x0 = denoise(x_t, t).x0
        level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
        (before,), (usable,) = past(schedule, memory)
        usable &= s > 0
        q = decay(schedule, t, s)
        gain = 1 - q ** (1 + eta)
        now = log_ratio(schedule, t)
        h = jnp.where(usable, log_ratio(schedule, s) - now, 1)
        weight = gain / 2 if solver == "midpoint" else 1 - gain / ((1 + eta) * h)
        ratio = jnp.where(usable, weight * h / jnp.where(usable, now - before, 1), 0)
        mean = level_s.sigma / level_t.sigma * q**eta * x_t + level_s.alpha * (
            gain * x0 + ratio * (x0 - memory.values[0])
        )
        if eta == 0:
            return mean, remember(memory, x0, t)
        noise = normal_per_example(keys, x_t.shape[1:], x_t.dtype)
        return mean + level_s.sigma * jnp.sqrt(1 - q ** (2 * eta)) * noise, remember(memory, x0, t)

    return Sampler(lambda x_t: empty(x_t, 1), step)
