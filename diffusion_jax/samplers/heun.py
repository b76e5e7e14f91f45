"""Heun's method on the probability-flow ODE: two evaluations a step, second order."""

import jax

from diffusion_jax.samplers import Sampler, no_state
from diffusion_jax.schedules import Schedule, level_like


def heun(schedule: Schedule) -> Sampler:
    """Heun's (trapezoidal) method in the coordinates in which every schedule is the linear path.

    With z = x / (alpha + sigma) and tau = sigma / (alpha + sigma), the ODE is dz/dtau = eps - x0 for any schedule, finite
    at both ends. A step evaluates the slope d at t, goes to s, evaluates d' there, and goes again with their mean:

        z' = z_t + (tau_s - tau_t) d,   z_s = z_t + (tau_s - tau_t) (d + d') / 2.

    The step to the data is a single evaluation, as in EDM, since eps is undetermined there: 2 N - 1 evaluations in all.
    Order: 2 where tau falls in proportion to the step towards the data (linear path, cosine on any grid; linear
    betas and tables of betas on a quadratic one, below 1.5 on a uniform one).

    Source: Karras et al. 2022, algorithm 1 without churn, in flow matching's coordinates.
    """

    def step(denoise, x_t, t, s, keys, state):
        level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
        scale_t, scale_s = level_t.alpha + level_t.sigma, level_s.alpha + level_s.sigma
        delta = level_s.sigma / scale_s - level_t.sigma / scale_t

        def slope(x, time):
            prediction = denoise(x, time)
            return prediction.eps - prediction.x0

        first = slope(x_t, t)
        x_euler = scale_s * (x_t / scale_t + delta * first)
        second = jax.lax.cond(s > 0, lambda: slope(x_euler, s), lambda: first)
        return scale_s * (x_t / scale_t + delta * (first + second) / 2), state

    return Sampler(no_state, step)
