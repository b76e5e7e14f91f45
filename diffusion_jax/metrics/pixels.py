"""How near a picture is to the one it should be: PSNR and SSIM, for super-resolution and inpainting."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

WINDOW = 11  # pixels
WINDOW_STD = 1.5  # pixels
K1, K2 = 0.01, 0.03  # of SSIM's paper


def psnr(images: UInt8[Array, "B H W C"], truth: UInt8[Array, "B H W C"]) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each picture, 10 log10(255^2 / mean squared error), in decibels.

    The mean is over pixels and channels; equal pictures have infinity. A set's figure is the mean over its pictures.

    Raises:
      ValueError: the pictures are not uint8, or differ in shape.
    """
    a, b = _checked(images, truth)
    return -10 * jnp.log10(jnp.mean((a - b) ** 2, axis=(1, 2, 3)))


def ssim(images: UInt8[Array, "B H W C"], truth: UInt8[Array, "B H W C"]) -> Float[Array, "B"]:
    """Structural similarity of each picture, in [-1, 1]; 1 is equal.

        (2 m_a m_b + c1) (2 cov + c2) / ((m_a^2 + m_b^2 + c1) (var_a + var_b + c2))

    Moments are under a Gaussian window of 11 x 11 pixels and standard deviation 1.5; the mean is over the places where
    the window lies inside the picture, and over channels. c1 = (0.01 L)^2 and c2 = (0.03 L)^2, L being the range 255.

    Raises:
      ValueError: as psnr; or a side is shorter than the window.

    Source: Wang et al. 2004.
    """
    a, b = _checked(images, truth)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM's window has {WINDOW} pixels; the pictures have {a.shape[1]} x {a.shape[2]}.")
    return _ssim(a, b)


@jax.jit
def _ssim(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"]) -> Float[Array, "B"]:
    mean_a, mean_b = _blur(a), _blur(b)
    variances = _blur(a * a) - mean_a**2 + _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    light_a, light_b, c1, c2 = mean_a + 0.5, mean_b + 0.5, K1**2, K2**2
    values = (2 * light_a * light_b + c1) * (2 * covariance + c2)
    values /= (light_a**2 + light_b**2 + c1) * (variances + c2)
    return values.mean((1, 2, 3))


def _blur(x: Float[Array, "B H W C"]) -> Float[Array, "B H' W' C"]:
    """The window's mean, where it lies inside: along columns, then along rows."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * WINDOW_STD**2))
    weights /= weights.sum()
    for axis in (1, 2):
        length = x.shape[axis] - WINDOW + 1
        slices = [jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(WINDOW)]
        x = sum((float(weight) * part for weight, part in zip(weights, slices, strict=True)), jnp.zeros_like(slices[0]))
    return x


def _checked(images: Array, truth: Array) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W C"]]:
    """Both as float32 in [-0.5, 0.5]: about mid-grey, squares lose fewer digits when those of their means are subtracted."""
    if images.dtype != np.uint8 or truth.dtype != np.uint8 or images.ndim != 4 or images.shape != truth.shape:
        got = f"{images.dtype} {list(images.shape)} and {truth.dtype} {list(truth.shape)}"
        raise ValueError(f"two arrays of pictures, uint8 [B, H, W, C] of one shape; got {got}.")
    return jnp.asarray(images, jnp.float32) / 255 - 0.5, jnp.asarray(truth, jnp.float32) / 255 - 0.5
