"""DDPM's ancestral sampling, for any schedule and any pair of times."""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.keys import normal_per_example
from diffusion_jax.posterior import Gaussian, check_variance, model_step, posterior
from diffusion_jax.samplers import Sampler
from diffusion_jax.schedules import Schedule


def ancestral(
    schedule: Schedule, variance: str = "small", product: Callable[[Gaussian], Gaussian] | None = None
) -> Sampler:
    """Draws x_s from the model's p(x_s | x_t), `posterior.model_step`: the posterior q(x_s | x_t, x0) at the predicted x0.

    On a table of betas and a grid of its times it is DDPM's sampler, on a respaced grid improved DDPM's. A prediction's
    mean_gradient g (`guidance.classifier` with shift "mean") moves the mean by variance x g. No noise is added where s is the data.
    Order: 1/2 strongly, 1 in distribution, as the number of steps grows.

    Args:
      schedule: the forward process.
      variance: small, large, learned or learned_range.
      product: multiplies each step by another Gaussian (`editing.step_product`).

    Raises:
      ValueError: the variance's name is unknown.

    Source: Ho et al. 2020, algorithm 2; Dhariwal and Nichol 2021, algorithm 1.
    """
    check_variance(variance)

    def init(x_t):
        return jnp.full(x_t.shape[0], jnp.inf, x_t.dtype)  # the log variance of the step before; inf is none

    def step(denoise, x_t, t, s, keys, state):
        prediction = denoise(x_t, t)
        # Where the variance is 0 the originals use that of the step before, which a respaced grid knows from its own times.
        own = posterior(schedule, x_t[:1], x_t[:1], t, s).log_variance.reshape(-1)[0]
        gaussian = model_step(schedule, prediction, x_t, t, s, variance, jnp.where(jnp.isinf(state), own, state))
        if prediction.mean_gradient is not None:
            gaussian = gaussian._replace(mean=gaussian.mean + gaussian.variance * prediction.mean_gradient)
        if product is not None:
            gaussian = product(gaussian)
        noise = normal_per_example(keys, x_t.shape[1:], x_t.dtype)
        return gaussian.mean + jnp.where(s > 0, jnp.sqrt(gaussian.variance), 0) * noise, jnp.full_like(state, own)

    return Sampler(init, step, uses_mean_gradient=True)
