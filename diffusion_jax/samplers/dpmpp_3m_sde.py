"""DPM-Solver++ 3M SDE: a drift through three predictions, with fresh noise at every step."""

import jax.numpy as jnp

from diffusion_jax.keys import normal_per_example
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.multistep import decay, empty, log_ratio, past, remember
from diffusion_jax.schedules import Schedule, level_like


def dpmpp_3m_sde(schedule: Schedule, eta: float = 1.0) -> Sampler:
    """As `dpmpp_2m_sde`, with the last three predictions. With H = (1 + eta) h and differences over the steps before,

        x_s = sigma_s / sigma_t e^(-eta h) x_t + alpha_s ((1 - e^-H) x0 + phi_2 d1 - phi_3 d2) + sigma_s sqrt(1 - e^(-2 eta h)) z,
        phi_2 = 1 - (1 - e^-H) / H,   phi_3 = phi_2 / H - 1 / 2,
        d10 = (x0 - x0') h / h',   d11 = (x0' - x0'') h / h'',   d2 = (d10 - d11) h / (h' + h''),   d1 = d10 + d2 h' / h.

    The second step has d1 = d10 and d2 = 0; the first, and the step to the data, neither. Order: 2 at eta = 0, held there by the
    first steps, and by k-diffusion's weights, which are kept: d2 is half of h^2 x0'', so that an exact curvature would take
    2 phi_3. With noise 1 in distribution or better.

    Args:
      schedule: the forward process.
      eta: 0 is deterministic, 1 the reverse SDE.

    Raises:
      ValueError: eta is negative.

    Source: Lu et al. 2022, "DPM-Solver++"; k-diffusion's sample_dpmpp_3m_sde.
    """
    if eta < 0:
        raise ValueError(f"dpmpp_3m_sde: eta must be at least 0; got {eta}.")

    def step(denoise, x_t, t, s, keys, memory):
        x0, (older, oldest) = denoise(x_t, t).x0, memory.values
        level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
        (before, before_that), (two, three) = past(schedule, memory)
        two &= s > 0
        three &= two
        q, now = decay(schedule, t, s), log_ratio(schedule, t)
        h = jnp.where(two, log_ratio(schedule, s) - now, 1)
        h1, h2 = jnp.where(two, now - before, 1), jnp.where(three, before - before_that, 1)
        gain = 1 - q ** (1 + eta)
        phi_2 = 1 - gain / ((1 + eta) * h)
        phi_3 = phi_2 / ((1 + eta) * h) - 1 / 2
        d10, d11 = (x0 - older) * (h / h1), (older - oldest) * (h / h2)
        d2 = jnp.where(three, (d10 - d11) * (h / (h1 + h2)), 0)
        d1 = d10 + d2 * (h1 / h)
        drift = gain * x0 + jnp.where(two, phi_2 * d1 - phi_3 * d2, 0)
        mean = level_s.sigma / level_t.sigma * q**eta * x_t + level_s.alpha * drift
        if eta == 0:
            return mean, remember(memory, x0, t)
        noise = normal_per_example(keys, x_t.shape[1:], x_t.dtype)
        return mean + level_s.sigma * jnp.sqrt(1 - q ** (2 * eta)) * noise, remember(memory, x0, t)

    return Sampler(lambda x_t: empty(x_t, 2), step)
