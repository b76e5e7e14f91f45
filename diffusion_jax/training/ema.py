"""Averages of the parameters over training: exponential ones, and power functions of time (of which `posthoc` makes others)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.models import Params

# step -> the share that new parameters have in an average after it; 0 at the first step.
Share = Callable[[Int[Array, ""]], Float[Array, ""]]


def decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """The decay used at a step: min(decay, (1 + step) / (10 + step)), so that a young average forgets its beginning.

    Args:
      step: 0 at the first update.
      decay: the limit, in [0, 1); 0.9999 in DDPM, ADM and GLIDE.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def power_share(step: Int[Array, ""], gamma: float) -> Float[Array, ""]:
    """1 - (1 - 1/t)^(gamma + 1) at t = step + 1: the average's weights then rise as t^gamma, whatever its length.

    Args:
      step: 0 at the first update, which makes the average equal the parameters.
      gamma: see `power_gamma`.

    Source: Karras et al. 2024, eq. 2 (arXiv 2312.02696); with log and exp that keep the digits which 1 - 1/t loses late.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / (1.0 + step)))


def power_gamma(std: float) -> float:
    """The exponent gamma of the power-function average whose weights have a standard deviation of std, in training lengths.

        std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    Raises:
      ValueError: no exponent above 0 has it: std must be positive and below 0.28.

    Source: Karras et al. 2024, section 3.1; solved as a cubic.
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"a power-function average has a relative std above 0 and below {12**-0.5:.3f}; got {std}.")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


def update(ema_params: Params, params: Params, share: Float[Array, ""]) -> Params:
    """ema + share (params - ema), in float32: in bfloat16 an average near its limit would not move."""
    return jax.tree.map(lambda ema, new: ema + share * (new.astype(ema.dtype) - ema), ema_params, params)
