"""The Inception-v3 of FID: the network of 2015 that every published FID, sFID and Inception Score is of.

It is not the Inception-v3 of torchvision or Keras. Its average pools leave padding out of the mean, its last block pools
by the maximum, its batch norms have epsilon 1e-3, and it knows 1008 classes. Layers bear the names of pytorch-fid.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, UInt8

SIDE = 299  # pixels
BATCH_NORM_EPSILON = 1e-3
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
RESIZES = ("tensorflow", "pytorch")


class InceptionFeatures(NamedTuple):
    """pool: [B, 2048], what FID, KID and neighbours are of.
    spatial: [B, 2023], 7 channels of the 17 x 17 pixels in the middle, row by row, what ADM's sFID is of.
    logits: [B, 1008] without the last layer's bias, what the Inception Score is of; None without that layer."""

    pool: Float[Array, "B 2048"]
    spatial: Float[Array, "B 2023"]
    logits: Float[Array, "B 1008"] | None


def prepare(images: UInt8[Array, "B H W 3"], resize: str = "tensorflow") -> Float[Array, "B 299 299 3"]:
    """Pictures as the network reads them: 299 pixels a side, in about [-1, 1].

    Both ways take the two nearest pixels along each axis and do not smooth, however far they shrink. They differ in
    where pixels lie and in the range, and by some tenths of FID.

    Args:
      images: uint8.
      resize: "tensorflow", as the original, ADM's evaluator and torch-fidelity: pixel i lies at i, (x - 128) / 128.
        "pytorch", as pytorch-fid: pixel i lies at i + 1/2, x / 127.5 - 1.

    Raises:
      ValueError: the resize is unknown, or the pictures are no uint8 RGB.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}; got {resize!r}.")
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images are uint8 [B, H, W, 3]; got {images.dtype} {list(images.shape)}.")
    x = images.astype(jnp.float32)
    for axis in (1, 2):
        if x.shape[axis] != SIDE:
            weights = jnp.asarray(_interpolation(x.shape[axis], SIDE, 0.5 if resize == "pytorch" else 0.0))
            x = jnp.moveaxis(jnp.tensordot(weights, x, ((1,), (axis,)), precision=Precision.HIGHEST), 0, axis)
    return (x - 128) / 128 if resize == "tensorflow" else x / 127.5 - 1


def _interpolation(old: int, new: int, centre: float) -> Float[np.ndarray, "new old"]:
    """Weights of the two nearest of `old` pixels for each of `new`; `centre` is where in its own cell a pixel lies."""
    # In float32, as the originals: of large pictures their rounding of places shows in the fifth digit.
    places = np.clip(
        (np.arange(new) + np.float32(centre)).astype("f4") * np.float32(old / new) - np.float32(centre), 0, old - 1
    )
    low = np.floor(places).astype(int)
    weights, rows = np.zeros((new, old), np.float32), np.arange(new)
    weights[rows, low] += 1 - (places - low)
    weights[rows, np.minimum(low + 1, old - 1)] += places - low
    return weights


class ConvNorm(nn.Module):
    """relu((conv(x) - mean) scale / sqrt(var + epsilon) + bias): a convolution without bias and a fixed batch norm.

    Full float32 on every backend: a TPU's or a GPU's default would round products to 8 or 10 bits."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H' W' F"]:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, (self.features,)
        kernel_shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), kernel_shape)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        pads = [(pad, pad) for pad in self.padding]
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        x = jax.lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=layout, precision=Precision.HIGHEST
        )
        rate = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return nn.relu(x * rate + (bias - mean * rate))


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)


def _maximum(x: Array, stride: int = 2) -> Array:
    pad = 1 if stride == 1 else 0
    return nn.max_pool(x, (3, 3), (stride, stride), ((pad, pad), (pad, pad)))


def _chain(x: Array, name: str, layers: Sequence[tuple[int, int, int]], stride: int = 1) -> Array:
    """ConvNorms name_1, name_2, ...: (features, height, width) of each; padded to keep the size, but the last if it strides."""
    for i, (features, height, width) in enumerate(layers, start=1):
        last = stride > 1 and i == len(layers)
        padding = (0, 0) if last else (height // 2, width // 2)
        x = ConvNorm(features, (height, width), stride if last else 1, padding, name=f"{name}_{i}")(x)
    return x


class BlockA(nn.Module):
    """35 x 35 pixels: 1 x 1, 5 x 5, twice 3 x 3, and a pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = [
            ConvNorm(64, (1, 1), name="branch1x1")(x),
            _chain(x, "branch5x5", [(48, 1, 1), (64, 5, 5)]),
            _chain(x, "branch3x3dbl", [(64, 1, 1), (96, 3, 3), (96, 3, 3)]),
            ConvNorm(self.pool_features, (1, 1), name="branch_pool")(_average(x)),
        ]
        return jnp.concatenate(parts, -1)


class BlockB(nn.Module):
    """35 to 17 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dbl = _chain(x, "branch3x3dbl", [(64, 1, 1), (96, 3, 3), (96, 3, 3)], stride=2)
        return jnp.concatenate([ConvNorm(384, (3, 3), 2, name="branch3x3")(x), dbl, _maximum(x)], -1)


class BlockC(nn.Module):
    """17 x 17 pixels: 1 x 1, 7 x 7 in two steps, twice so, and a pool. Returns the block, and its 1 x 1 part."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        w = self.width
        single = ConvNorm(192, (1, 1), name="branch1x1")(x)
        parts = [
            single,
            _chain(x, "branch7x7", [(w, 1, 1), (w, 1, 7), (192, 7, 1)]),
            _chain(x, "branch7x7dbl", [(w, 1, 1), (w, 7, 1), (w, 1, 7), (w, 7, 1), (192, 1, 7)]),
            ConvNorm(192, (1, 1), name="branch_pool")(_average(x)),
        ]
        return jnp.concatenate(parts, -1), single


class BlockD(nn.Module):
    """17 to 8 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        small = _chain(x, "branch3x3", [(192, 1, 1), (320, 3, 3)], stride=2)
        large = _chain(x, "branch7x7x3", [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)], stride=2)
        return jnp.concatenate([small, large, _maximum(x)], -1)


class BlockE(nn.Module):
    """8 x 8 pixels: 1 x 1, two pairs of 1 x 3 beside 3 x 1, and a pool, of the mean or of the maximum."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def pair(h: Array, name: str) -> list[Array]:
            wide = ConvNorm(384, (1, 3), padding=(0, 1), name=f"{name}a")(h)
            return [wide, ConvNorm(384, (3, 1), padding=(1, 0), name=f"{name}b")(h)]

        pooled = _maximum(x, stride=1) if self.max_pool else _average(x)
        small = ConvNorm(384, (1, 1), name="branch3x3_1")(x)
        large = _chain(x, "branch3x3dbl", [(448, 1, 1), (384, 3, 3)])
        parts = [ConvNorm(320, (1, 1), name="branch1x1")(x), *pair(small, "branch3x3_2")]
        parts += [*pair(large, "branch3x3dbl_3"), ConvNorm(192, (1, 1), name="branch_pool")(pooled)]
        return jnp.concatenate(parts, -1)


class Inception(nn.Module):
    """x [B, 299, 299, 3], as `prepare` gives it -> InceptionFeatures.

    with_logits: whether there is a last layer.

    Source: Szegedy et al. 2015, as in TensorFlow's graph of 2015-12-05 (Heusel et al. 2017).
    """

    with_logits: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B 299 299 3"]) -> InceptionFeatures:
        x = ConvNorm(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = _maximum(ConvNorm(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x))
        x = ConvNorm(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = _maximum(ConvNorm(192, (3, 3), name="Conv2d_4a_3x3")(x))
        for name, features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(features, name=name)(x)
        x, spatial = BlockB(name="Mixed_6a")(x), x
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x, single = BlockC(width, name=name)(x)
            spatial = single if name == "Mixed_6d" else spatial
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(max_pool=False, name="Mixed_7b")(x)
        pool = BlockE(max_pool=True, name="Mixed_7c")(x).mean((1, 2))
        logits = None
        if self.with_logits:
            logits = nn.Dense(NUM_CLASSES, use_bias=False, precision=Precision.HIGHEST, name="fc")(pool)
        return InceptionFeatures(pool, spatial[..., :SPATIAL_CHANNELS].reshape(len(x), -1), logits)


def init(with_logits: bool, key: Array) -> Any:
    """Parameters at random: their names and shapes are what weights are read into."""
    return Inception(with_logits).init(key, jnp.zeros((1, SIDE, SIDE, 3)))["params"]


def apply(params: Any, images: UInt8[Array, "B H W 3"], resize: str = "tensorflow") -> InceptionFeatures:
    """Features of pictures of any size; logits where the parameters have a last layer."""
    features: Any = Inception("fc" in params).apply({"params": params}, prepare(images, resize))
    return features
