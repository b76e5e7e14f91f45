"""Exponential moving average of the parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models import Params


def decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """The decay used at a step: min(decay, (1 + step) / (10 + step)), so that a young average forgets its beginning.

    Args:
      step: 0 at the first update.
      decay: the limit, in [0, 1); 0.9999 in DDPM, ADM and GLIDE.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update(ema_params: Params, params: Params, decay: Float[Array, ""]) -> Params:
    """ema + (1 - decay) (params - ema), in float32: in bfloat16 an average near its limit would not move."""
    return jax.tree.map(lambda ema, new: ema + (1 - decay) * (new.astype(ema.dtype) - ema), ema_params, params)
