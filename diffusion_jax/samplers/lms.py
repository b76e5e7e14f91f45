"""Linear multistep in edm_sigma: one evaluation a step."""

import jax.numpy as jnp

from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.multistep import empty, remember
from diffusion_jax.schedules import Schedule, edm_sigma, level_like

GAUSS_LEGENDRE = ((-(3**-0.5), 1.0), (3**-0.5, 1.0))  # exact for cubic polynomials, the most that order 4 has


def lms(schedule: Schedule, order: int = 4) -> Sampler:
    """x_s / alpha_s = x_t / alpha_t + sum_j c_j eps_j, over the last `order` evaluations, with e = edm_sigma and

        c_j = integral from e_t to e_s of prod_{k != j} (e - e_k) / (e_j - e_k) de,

    the Lagrange polynomial through the last eps, integrated exactly. It starts with fewer: the first step is Euler's.
    Order: for even steps of log SNR 2 for order 2, and 3 for order 4, held there by the first steps.

    Args:
      schedule: the forward process; alpha must not be 0 at the first time, where edm_sigma is infinite.
      order: 1 to 4.

    Raises:
      ValueError: the order is another.

    Source: Katherine Crowson's k-diffusion (sample_lms); Adams and Bashforth for unequal steps.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"lms: order must be 1, 2, 3 or 4; got {order}.")

    def step(denoise, x_t, t, s, keys, memory):
        level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
        values = (denoise(x_t, t).eps, *memory.values)[:order]
        times = (t, *(each[0] for each in memory.times))[:order]
        there = [jnp.isfinite(time) for time in times]
        nodes = [edm_sigma(schedule(jnp.where(ok, time, t))) for ok, time in zip(there, times, strict=True)]
        begin, end = nodes[0], edm_sigma(schedule(s))
        moved = x_t / level_t.alpha
        for j in range(order):
            integral = 0.0
            for place, weight in GAUSS_LEGENDRE:
                e = (begin + end) / 2 + (end - begin) / 2 * place
                basis = weight
                for k in range(order):
                    if k != j:
                        usable = there[j] & there[k]
                        basis *= jnp.where(usable, (e - nodes[k]) / jnp.where(usable, nodes[j] - nodes[k], 1), 1)
                integral += basis * (end - begin) / 2
            moved += jnp.where(there[j], integral, 0) * values[j]
        return level_s.alpha * moved, remember(memory, values[0], t)

    return Sampler(lambda x_t: empty(x_t, max(order - 1, 1)), step)
