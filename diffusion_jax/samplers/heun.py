"""Heun's method on the probability-flow ODE, with EDM's churn: two evaluations a step, second order."""

import math

import jax
import jax.numpy as jnp

from diffusion_jax.keys import normal_per_example
from diffusion_jax.samplers import Sampler, no_state
from diffusion_jax.schedules import Schedule, edm_sigma, level_like, time_at

COORDINATES = ("path", "edm_sigma")


def heun(
    schedule: Schedule,
    coordinate: str = "path",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    num_steps: int | None = None,
) -> Sampler:
    """Heun's (trapezoidal) method in a coordinate tau in which the ODE is dz/dtau = d, z = x / c, for every schedule:

        path       c = alpha + sigma,  tau = sigma / c,      d = eps - x0   (the linear path; finite at both ends)
        edm_sigma  c = alpha,          tau = sigma / alpha,  d = eps        (EDM's and k-diffusion's; alpha must not be 0)

        z' = z_t + (tau_s - tau_t) d,   z_s = z_t + (tau_s - tau_t) (d + d') / 2,   d' = d(c_s z', s).

    The step to the data is a single evaluation, as in EDM, since eps is undetermined there: 2 N - 1 evaluations in all.
    Churn first raises the noise from e = edm_sigma to e (1 + g), g = min(churn / N, sqrt(2) - 1) where e is in
    [churn_min, churn_max], with x / alpha += sqrt((1 + g)^2 - 1) e churn_noise z; it stops at the schedule's noisiest time.
    Order: 2 where tau falls in proportion to the step towards the data (linear path, cosine, EDM on any grid; linear betas and
    tables of betas on a quadratic one, below 1.5 on a uniform one).

    Args:
      schedule: the forward process.
      coordinate: "path" or "edm_sigma".
      churn: EDM's S_churn over the whole run; 0 is deterministic.
      churn_min, churn_max: EDM's S_min and S_max, in edm_sigma.
      churn_noise: EDM's S_noise, the spread of what is added.
      num_steps: N of the grid; needed for churn.

    Raises:
      ValueError: the coordinate is unknown, churn is negative, or it is positive without num_steps.

    Source: Karras et al. 2022, algorithm 2.
    """
    if coordinate not in COORDINATES:
        raise ValueError(f"heun: coordinate must be one of {COORDINATES}; got {coordinate!r}.")
    if churn < 0 or (churn and not num_steps):
        raise ValueError(
            f"heun: churn must be at least 0 and needs num_steps; got churn={churn}, num_steps={num_steps}."
        )

    def scales(level):
        scale = level.alpha if coordinate == "edm_sigma" else level.alpha + level.sigma
        return scale, level.sigma / scale

    def raised(x_t, t, keys):
        level = schedule(t)
        e = edm_sigma(level)
        g = min(churn / num_steps, math.sqrt(2) - 1)
        higher = jnp.isfinite(e) & (churn_min <= e) & (e <= churn_max)
        t_hat = jnp.where(higher, jnp.maximum(time_at(schedule, -2 * jnp.log(e * (1 + g))), t), t)
        level_hat = schedule(t_hat)
        e_hat = jnp.where(t_hat > t, edm_sigma(level_hat), e)
        added = jnp.sqrt(jnp.maximum(jnp.where(higher, e_hat**2 - e**2, 0), 0)) * churn_noise
        noise = normal_per_example(keys, x_t.shape[1:], x_t.dtype)
        return jnp.where(higher, level_hat.alpha / level.alpha, 1) * x_t + level_hat.alpha * added * noise, t_hat

    def step(denoise, x_t, t, s, keys, state):
        if churn:
            x_t, t = raised(x_t, t, keys)
        (scale_t, tau_t), (scale_s, tau_s) = (scales(level_like(schedule, time, x_t)) for time in (t, s))

        def slope(x, time):
            prediction = denoise(x, time)
            return prediction.eps if coordinate == "edm_sigma" else prediction.eps - prediction.x0

        first = slope(x_t, t)
        x_euler = scale_s * (x_t / scale_t + (tau_s - tau_t) * first)
        second = jax.lax.cond(s > 0, lambda: slope(x_euler, s), lambda: first)
        return scale_s * (x_t / scale_t + (tau_s - tau_t) * (first + second) / 2), state

    return Sampler(no_state, step)
