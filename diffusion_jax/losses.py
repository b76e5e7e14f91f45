"""Losses per example, and the distributions of the training time t."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond
from diffusion_jax.keys import normal_per_example
from diffusion_jax.predictions import Parameterization, Prediction
from diffusion_jax.schedules import Schedule, diffuse


def denoising_loss(
    apply: Callable[[Float[Array, "B ..."], Float[Array, "B"], Cond], Float[Array, "B ..."]],
    parameterization: Parameterization,
    loss_space: Parameterization,
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    t: Float[Array, "B"],
    keys: Key[Array, "B"],
    cond: Cond,
) -> Float[Array, "B"]:
    """Mean squared error of a network, in the space asked for: what it outputs and what it is judged by are apart.

        x_t = alpha_t x0 + sigma_t eps,   loss = mean |to_loss_space(network(x_t)) - to_loss_space(x0, eps)|^2

    Same spaces: DDPM's L_simple (eps), v-prediction, flow matching (velocity). An x0 output judged as velocity weighs the
    error of x0 by 1 / sigma^2 on the linear path (JiT).

    Args:
      apply: (x_t, t in [0, 1], cond) -> raw output; parameters and the network's time bound.
      parameterization: what the output means.
      loss_space: where the error is measured.
      schedule: the forward process.
      x0: clean data [B, ...].
      t: one time per example.
      keys: one key per example, for its noise.
      cond: the condition, arrays [B, ...].

    Returns:
      The loss of each example [B], in squared units of the loss space per dimension.

    Source: Ho et al. 2020, eq. 14; Li and He 2025 (JiT) for spaces held apart.
    """
    eps = normal_per_example(keys, x0.shape[1:], x0.dtype)
    x_t = diffuse(schedule, x0, eps, t)
    estimate = apply(x_t, t, cond)
    if loss_space is not parameterization:
        estimate = loss_space.to_output(parameterization.from_output(estimate, x_t, t, schedule), x_t, t, schedule)
    target = loss_space.to_output(Prediction(x0, eps), x_t, t, schedule)
    return jnp.mean(jnp.square(estimate - target), axis=tuple(range(1, x0.ndim)))


def uniform_time(keys: Key[Array, "B"], low: float = 0.0, high: float = 1.0) -> Float[Array, "B"]:
    """t uniform in [low, high), one per key."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def logit_normal_time(keys: Key[Array, "B"], mean: float = 0.0, std: float = 1.0) -> Float[Array, "B"]:
    """t = sigmoid(mean + std n), n unit normal: most of training at middle noise; mean above 0 leans to the noise.

    Source: Esser et al. 2024 (Stable Diffusion 3), section 3.1, where t = 1 is noise too.
    """
    return jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))
