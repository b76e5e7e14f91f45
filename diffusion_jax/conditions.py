"""The small picture that an upsampler's training makes of the large one; parts to repaint are made by `masks`."""

import jax
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


def noised(keys: Key[Array, "B"], x: Float[Array, "B h w C"], most: float) -> Float[Array, "B h w C"]:
    """Conditioning augmentation: x plus unit normal noise times s, s uniform in [0, most] for each example.

    An upsampler that was taught by such small pictures mends the faults of the network that makes them, instead of enlarging
    them too. It is not told s, and sampling adds nothing.

    Args:
      keys: one per example.
      x: small pictures in [-1, 1].
      most: the largest deviation, in their units.

    Source: Ho et al. 2022, "Cascaded diffusion models for high fidelity image generation", section 4.
    """

    def one(key: Key[Array, ""], x: Float[Array, "h w C"]) -> Float[Array, "h w C"]:
        size_key, noise_key = jax.random.split(key)
        return x + most * jax.random.uniform(size_key) * jax.random.normal(noise_key, x.shape, x.dtype)

    return jax.vmap(one)(keys, x)
