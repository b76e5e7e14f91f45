"""Pseudo linear multistep (PLMS): DDIM's transfer with Adams-Bashforth's average of the last eps."""

import jax
import jax.numpy as jnp

from diffusion_jax.predictions import from_eps
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.multistep import empty, remember
from diffusion_jax.schedules import Schedule, level_like

ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(schedule: Schedule, order: int = 4) -> Sampler:
    """x_s = alpha_s x0' + sigma_s eps', with eps' an average of the last `order` eps and x0' = (x_t - sigma_t eps') / alpha_t.

    The weights are Adams-Bashforth's for equal steps. The first step averages the eps of both its ends (pseudo improved
    Euler, one evaluation more: N + 1 in all); then the order rises as evaluations are there. The step to the data returns the
    prediction's own x0. Order: 2 for `order` 2 and more (the transfer is exact for a constant eps alone).

    Args:
      schedule: the forward process; alpha must not be 0 at the first time.
      order: 1 to 4; 1 is DDIM.

    Raises:
      ValueError: the order is another.

    Source: Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds", eq. 9-12; Crowson's plms_sample.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"plms: order must be 1, 2, 3 or 4; got {order}.")

    def step(denoise, x_t, t, s, keys, memory):
        prediction = denoise(x_t, t)
        level_s = level_like(schedule, s, x_t)

        def transfer(eps):
            return level_s.alpha * from_eps(eps, x_t, t, schedule).x0 + level_s.sigma * eps

        def first():
            ahead = level_s.alpha * prediction.x0 + level_s.sigma * prediction.eps
            return transfer((prediction.eps + denoise(ahead, s).eps) / 2)

        def later():
            count = sum(jnp.isfinite(times[0]).astype(int) for times in memory.times)
            weights = jnp.zeros((order, order), x_t.dtype)
            for row, line in enumerate(ADAMS_BASHFORTH[:order]):
                weights = weights.at[row, : row + 1].set(jnp.array(line, x_t.dtype))
            weights = weights[count]
            values = (prediction.eps, *memory.values)
            return transfer(sum(weights[i] * values[i] for i in range(order)))

        nothing_yet = jnp.isinf(memory.times[0][0]) & (order > 1)
        moved = jax.lax.cond(nothing_yet & (s > 0), first, later)
        return jnp.where(s > 0, moved, prediction.x0), remember(memory, prediction.eps, t)

    return Sampler(lambda x_t: empty(x_t, max(order - 1, 1)), step)
