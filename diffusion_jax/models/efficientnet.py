"""EfficientNet-Lite0: a small classifier of ImageNet's 1,000 classes, whose features compare pictures otherwise than FID's."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, UInt8

SIDE = 224  # pixels
BATCH_NORM_EPSILON = 1e-3
NUM_CLASSES = 1000
STEM, HEAD = 32, 1280  # channels before and after the blocks
# (blocks, kernel, stride of the first, expansion, channels)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetFeatures(NamedTuple):
    """pool: [B, 1280], the mean over pixels of the last layer before the classes. logits: [B, 1000], of ImageNet's classes."""

    pool: Float[Array, "B 1280"]
    logits: Float[Array, "B 1000"]


def prepare(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 224 224 3"]:
    """Pictures as the network reads them: bicubic to 224 pixels a side, smoothed where they shrink; (x - 127) / 128.

    Raises:
      ValueError: the pictures are no uint8 RGB.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images are uint8 [B, H, W, 3]; got {images.dtype} {list(images.shape)}.")
    x = jax.image.resize(images.astype(jnp.float32), (len(images), SIDE, SIDE, 3), "bicubic", antialias=True)
    return (jnp.clip(x, 0, 255) - 127) / 128


class ConvNorm(nn.Module):
    """A convolution without bias and a fixed batch norm, (conv(x) - mean) scale / sqrt(var + epsilon) + bias; then relu6, if any.

    Padding is TensorFlow's SAME: of an odd number of pixels the larger part lies at the end. Full float32 on every backend.

    depthwise: each channel has a kernel of its own, [k, k, 1, features].
    """

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    relu6: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H' W' F"]:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, (self.features,)
        kernel_shape = (self.kernel, self.kernel, 1 if self.depthwise else x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), kernel_shape)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        if self.depthwise:
            x = depthwise(x, kernel, self.stride)
        else:
            layout, strides = ("NHWC", "HWIO", "NHWC"), (self.stride, self.stride)
            x = jax.lax.conv_general_dilated(
                x, kernel, strides, "SAME", dimension_numbers=layout, precision=Precision.HIGHEST
            )
        rate = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        x = x * rate + (bias - mean * rate)
        return nn.relu6(x) if self.relu6 else x


def depthwise(x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"], stride: int) -> Float[Array, "B h w C"]:
    """Each channel convolved with its own kernel, padded as SAME, as a sum of k x k shifted copies.

    XLA's convolution by groups takes four times as long on a CPU (measured on the whole network); this it fuses to one loop.
    """
    side = len(kernel)
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), "SAME")
    height, width = (-(-n // stride) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    shifts = [(i, j) for i in range(side) for j in range(side)]
    return sum(x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0] for i, j in shifts)


class Block(nn.Module):
    """Channels are multiplied by `expansion`, convolved one by one, and brought to `features`; then x is added where it fits."""

    features: int
    kernel: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H' W' F"]:
        width = x.shape[-1] * self.expansion
        h = x if self.expansion == 1 else ConvNorm(width, name="expand")(x)
        h = ConvNorm(width, self.kernel, self.stride, depthwise=True, name="depthwise")(h)
        h = ConvNorm(self.features, relu6=False, name="project")(h)
        return x + h if x.shape == h.shape else h


class EfficientNet(nn.Module):
    """x [B, 224, 224, 3], as `prepare` gives it -> EfficientNetFeatures.

    Source: Tan and Le 2019 (EfficientNet); its Lite variant of 2020, without squeeze-and-excitation and with relu6.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B 224 224 3"]) -> EfficientNetFeatures:
        x, number = ConvNorm(STEM, 3, 2, name="stem")(x), 0
        for blocks, kernel, stride, expansion, features in STAGES:
            for i in range(blocks):
                x = Block(features, kernel, 1 if i else stride, expansion, name=f"block_{number}")(x)
                number += 1
        pool = ConvNorm(HEAD, name="head")(x).mean((1, 2))
        return EfficientNetFeatures(pool, nn.Dense(NUM_CLASSES, precision=Precision.HIGHEST, name="fc")(pool))


def init(key: Array) -> Any:
    """Parameters at random: their names and shapes are what weights are read into."""
    return EfficientNet().init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"]


def apply(params: Any, images: UInt8[Array, "B H W 3"]) -> EfficientNetFeatures:
    """Features and logits of pictures of any size."""
    features: Any = EfficientNet().apply({"params": params}, prepare(images))
    return features
