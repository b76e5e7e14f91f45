"""Conditions that training makes from the picture itself: a smaller copy to enlarge, a part to repaint."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def area_downsample(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B side side C"]:
    """Each pixel the mean of those that it covers: the small picture of an upsampler's training pairs.

    Raises:
      ValueError: side does not divide H and W.

    Source: guided-diffusion's super_res_train.py (area interpolation).
    """
    batch, height, width, channels = x.shape
    if height % side or width % side:
        raise ValueError(f"area_downsample: {side} does not divide {height} x {width}.")
    return x.reshape(batch, side, height // side, side, width // side, channels).mean((2, 4))


def random_box_mask(keys: Key[Array, "B"], height: int, width: int) -> Float[Array, "B H W 1"]:
    """Masks with a random box to repaint: 0 inside it, 1 where the picture is given. Of one in four the box is all.

    Both ends of each side are drawn uniformly.

    Args:
      keys: one per example.
      height, width: in pixels.

    Source: the inpainting fine-tune of Nichol et al. 2021 (GLIDE), whose masks were not published.
    """

    def one(key: Key[Array, ""]) -> Float[Array, "H W"]:
        ends_key, whole_key = jax.random.split(key)
        ends = jnp.sort(jax.random.uniform(ends_key, (2, 2)), axis=-1) * jnp.array([[height + 1], [width + 1]])
        rows, columns = (
            (low <= jnp.arange(size)) & (jnp.arange(size) < high)
            for (low, high), size in zip(jnp.floor(ends), (height, width), strict=True)
        )
        erased = (rows[:, None] & columns[None, :]) | jax.random.bernoulli(whole_key, 0.25)
        return 1.0 - erased

    return jax.vmap(one)(keys)[..., None]
