"""Guidance: functions from Denoiser to Denoiser, so that every sampler works with every one of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.predictions import Prediction, from_x0
from diffusion_jax.schedules import Schedule


def classifier_free(denoiser: Denoiser, null_cond: Cond, guidance_scale: Float[Array, ""] | float) -> Denoiser:
    """Classifier-free guidance: uncond + w (cond - uncond), for eps and x0 alike.

    Both are affine in one another at a given x_t, so that guiding one guides the other. The two passes are one pass over
    a doubled batch.

    Args:
      denoiser: the conditional model, trained with its condition sometimes replaced by the null one.
      null_cond: the null condition of one example: cond's tree without the batch axis.
      guidance_scale: w >= 0, which may be a traced array: 1 is off, 0 is unconditional, larger follows cond more.

    Returns:
      The guided denoiser.

    Source: Ho and Salimans 2022; the doubled batch is GLIDE's (Nichol et al. 2021).
    """

    def guided(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        nothing = jax.tree.map(
            lambda null, given: jnp.broadcast_to(null, given.shape).astype(given.dtype), null_cond, cond
        )
        both_cond = jax.tree.map(lambda *pair: jnp.concatenate(pair), cond, nothing)
        both_t = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        both = denoiser(jnp.concatenate([x_t, x_t]), both_t, both_cond)
        given, free = zip(*(jnp.split(part, 2) for part in both), strict=True)
        return Prediction(*(free + guidance_scale * (given - free) for given, free in zip(given, free, strict=True)))

    return guided


def clip_x0(denoiser: Denoiser, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clamps the predicted x0 to the data's range and recomputes eps from it ("clip_denoised" in DDPM and ADM).

    Args:
      denoiser: any denoiser; wrap guidance first and clip its result.
      schedule: the forward process, to recompute eps.
      low, high: the data's range.
    """

    def clipped(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        return from_x0(jnp.clip(denoiser(x_t, t, cond).x0, low, high), x_t, t, schedule)

    return clipped


def drop_condition(cond: Cond, null_cond: Cond, keys: Key[Array, "B"], probability: float) -> Cond:
    """Training's half of classifier-free guidance: each example's condition becomes the null one with a probability.

    Args:
      cond: a tree of arrays [B, ...].
      null_cond: the same tree for one example, without the batch axis.
      keys: one key per example, so that the outcome does not depend on the batch around it.
      probability: in [0, 1]; GLIDE's fine-tune drops 0.2, classifier-free guidance's paper 0.1 to 0.2.
    """
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)

    def choose(given: Array, null: Array) -> Array:
        chosen = drop.reshape(drop.shape + (1,) * (given.ndim - 1))
        return jnp.where(chosen, jnp.asarray(null, given.dtype)[None], given)

    return jax.tree.map(choose, cond, null_cond)
