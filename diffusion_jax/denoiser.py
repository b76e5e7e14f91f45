"""Network + parameterization -> Denoiser: (x_t, t, cond) -> Prediction(x0, eps).

A denoiser is all that guidance, editing, samplers and likelihoods know of a model. An exact one (of a Gaussian, of a
mixture) is as good as a trained one, which is how the tests prove the rest.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.predictions import Parameterization, Prediction
from diffusion_jax.schedules import Schedule, time_like

Cond: TypeAlias = Any  # a pytree of arrays [B, ...]; {} when there is no condition
Denoiser: TypeAlias = Callable[[Float[Array, "B ..."], Float[Array, ""], Cond], Prediction]


def feed(
    apply: Callable[[Float[Array, "B ..."], Float[Array, "B"], Cond], Float[Array, "B ..."]],
    network_time: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    input_scale: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None,
) -> Callable[[Float[Array, "B ..."], Float[Array, "*B"], Cond], Float[Array, "B ..."]]:
    """A network as (x_t, t in [0, 1], cond) -> raw output: told its own time, and shown input_scale(t) x_t.

    Training and sampling both go through it, so that they feed a network alike. Arguments: as `make_denoiser`.
    """

    def network(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Float[Array, "B ..."]:
        times = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])
        seen = x_t if input_scale is None else time_like(input_scale(times), x_t) * x_t
        return apply(seen, network_time(times), cond)

    return network


def make_denoiser(
    apply: Callable[[Float[Array, "B ..."], Float[Array, "B"], Cond], Float[Array, "B ..."]],
    parameterization: Parameterization,
    schedule: Schedule,
    network_time: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    input_scale: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None,
    learned_variance: bool = False,
) -> Denoiser:
    """Denoiser of a network whose raw output is in the given parameterization.

    Args:
      apply: (x_t [B, ...], the network's time [B], cond) -> output of x_t's shape; parameters already bound. With a learned
        variance the output has twice the channels, the last axis: first what the parameterization reads, then the variance.
      parameterization: what the output means.
      schedule: the forward process.
      network_time: t in [0, 1] -> the number that the network's time embedding takes, such as 1000 t, or DDPM's step.
      input_scale: t -> the factor that x_t is multiplied with before the network sees it (EDM's c_in); None is 1.
      learned_variance: whether the output says something of the reverse step's variance.

    Returns:
      (x_t, t, cond) -> Prediction; t is a scalar or [B].
    """

    network = feed(apply, network_time, input_scale)

    def denoise(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        times = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])
        output = network(x_t, times, cond)
        if not learned_variance:
            return parameterization.from_output(output, x_t, times, schedule)
        output, raw_variance = jnp.split(output, 2, axis=-1)
        return parameterization.from_output(output, x_t, times, schedule)._replace(raw_variance=raw_variance)

    return denoise
