"""LPIPS: how different two pictures look, as the distance of a classifier's features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, UInt8

from diffusion_jax.images import to_float

NETWORKS = ("alexnet", "vgg16")
# Of ImageNet's pictures, one per channel, for pixels in [-1, 1]; rounded as LPIPS has them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10
MIN_SIDE = 32  # pixels: smaller ones leave nothing of the deepest layer


class AlexNet(nn.Module):
    """The five layers of features of AlexNet, each after its relu; layers are conv_0 to conv_4."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Array]:
        out = []
        layers = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
        for i, (features, kernel, stride, pad) in enumerate(layers):
            if i in (1, 2):
                x = nn.max_pool(x, (3, 3), (2, 2))
            x = _conv(features, kernel, stride, pad, f"conv_{i}")(x)
            out.append(x)
        return out


class VGG16(nn.Module):
    """The last features of each of VGG-16's five sizes, after their relu; layers are conv_0 to conv_12."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Array]:
        out, number = [], 0
        for i, (features, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            x = x if i == 0 else nn.max_pool(x, (2, 2), (2, 2))
            for _ in range(depth):
                x = _conv(features, 3, 1, 1, f"conv_{number}")(x)
                number += 1
            out.append(x)
        return out


def _conv(features: int, kernel: int, stride: int, pad: int, name: str) -> Any:
    pads = ((pad, pad), (pad, pad))
    conv = nn.Conv(features, (kernel, kernel), (stride, stride), pads, precision=Precision.HIGHEST, name=name)
    return lambda x: nn.relu(conv(x))


class LPIPS(nn.Module):
    """(a, b) [B, H, W, 3] in [-1, 1] -> the distance of each pair [B].

        sum over layers l of  mean over pixels of  w_l . (z_l(a) - z_l(b))^2

    z is a pixel's features over their length, w_l >= 0 the layer's learned weights of channels.

    network: "alexnet", which its authors advise for comparing, or "vgg16".

    Source: Zhang et al. 2018, version 0.1 of the weights.
    """

    network: str = "alexnet"

    @nn.compact
    def __call__(self, a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
        net = {"alexnet": AlexNet, "vgg16": VGG16}[self.network](name="features")
        both = (jnp.concatenate([a, b]) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        total = jnp.zeros(len(a))
        for i, features in enumerate(net(both)):
            length = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True))
            unit_a, unit_b = jnp.split(features / (length + EPSILON), 2)
            weights = self.param(f"weights_{i}", nn.initializers.ones, features.shape[-1:])
            total += (((unit_a - unit_b) ** 2) * weights).sum(-1).mean((1, 2))
        return total


def init(network: str, key: Array) -> Any:
    """Parameters at random: their names and shapes are what weights are read into.

    Raises:
      ValueError: the network is unknown.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {network!r}.")
    x = jnp.zeros((1, 64, 64, 3))
    return LPIPS(network).init(key, x, x)["params"]


def lpips(params: Any, a: UInt8[Array, "B H W 3"], b: UInt8[Array, "B H W 3"]) -> Float[Array, "B"]:
    """The distance of each pair of pictures, 0 where they are equal.

    Args:
      params: of either network; which it is follows from them.
      a, b: uint8, at least 32 pixels a side.

    Raises:
      ValueError: the pictures are no uint8 RGB, differ in shape, or are too small.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 4 or a.shape != b.shape or a.shape[-1] != 3:
        raise ValueError(
            f"a and b are uint8 [B, H, W, 3] of one shape; got {a.dtype} {list(a.shape)}, {b.dtype} {list(b.shape)}."
        )
    if min(a.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"LPIPS needs {MIN_SIDE} pixels a side; got {a.shape[1]} x {a.shape[2]}.")
    network = "vgg16" if "conv_12" in params["features"] else "alexnet"
    distances: Any = LPIPS(network).apply({"params": params}, to_float(a), to_float(b))
    return distances
