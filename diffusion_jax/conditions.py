"""The small picture that an upsampler's training makes of the large one; parts to repaint are made by `masks`."""

from jaxtyping import Array, Float


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
