"""The small U-Net of Hugging Face's tutorial "The annotated diffusion model", for images the size of Fashion-MNIST's."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond
from diffusion_jax.models import Network
from diffusion_jax.models.layers import GroupNorm, conv, space_to_depth, upsample


class AnnotatedUNet(nn.Module):
    """The tutorial's U-Net: (x [B, H, W, C], time [B], cond) -> [B, H, W, out_channels]. The condition is not read.

    A level on the way down is two residual blocks, linear attention behind the second, and a halving (on the last level a 3 x 3
    convolution) to the next level's width; what either block leaves, attention included, is a skip. In the middle a block, full
    attention and a block. On the way up each of a level's two blocks takes a skip beside its input; linear attention and
    a doubling follow (on the last level a 3 x 3 convolution). A last block sees the first convolution's output again.

        halving   conv1(space_to_depth(h)),        doubling   conv3(nearest(h)),        attention   h + attend(norm(h))

    A level works at its *input's* width: mults (1, 2, 4) of 28 channels are levels of 28, 28 and 56 on the way down, and
    112, 56 and 28 on the way up.

    Under dtype bfloat16 the convolutions and attention compute in bfloat16; parameters, norms, the embedding, softmax and
    the last convolution stay float32.

    The tutorial's self-conditioning is left out. Source: the `Unet` of https://huggingface.co/blog/annotated-diffusion (its
    current version; the first had ConvNeXt blocks).
    """

    out_channels: int
    model_channels: int = 28
    channel_mults: tuple[int, ...] = (1, 2, 4)
    norm_groups: int = 4
    num_heads: int = 4
    num_head_channels: int = 32
    dtype: Any = jnp.float32

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the first convolution and of what each level hands on."""
        return (self.model_channels, *(mult * self.model_channels for mult in self.channel_mults))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, "B"],
        cond: Cond = None,
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C_out"]:
        width = 4 * self.model_channels
        emb = nn.Dense(width, name="time_embed_0")(sines_first_embedding(time, self.model_channels))
        emb = nn.Dense(width, name="time_embed_1")(nn.gelu(emb, approximate=False))

        def res(h: Array, features: int, name: str) -> Array:
            return StandardizedResBlock(features, self.norm_groups, self.dtype, name=name)(h, emb)

        def attend(h: Array, name: str, linear: bool = True) -> Array:
            attention = LinearAttention if linear else Attention
            inner = attention(self.num_heads, self.num_head_channels, self.dtype, name=name)
            return h + inner(GroupNorm(1, name=f"{name}_norm")(h))

        first = h = conv(self.model_channels, 1, self.dtype, "conv_in")(x.astype(self.dtype))
        levels = list(enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)))
        last, skips = len(levels) - 1, []
        for level, (w_in, w_out) in levels:
            h = res(h, w_in, f"down_{level}_res_0")
            skips.append(h)
            h = attend(res(h, w_in, f"down_{level}_res_1"), f"down_{level}_attn")
            skips.append(h)
            h, kernel = (h, 3) if level == last else (space_to_depth(h, 2), 1)
            h = conv(w_out, kernel, self.dtype, f"down_{level}_out")(h)

        h = res(h, self.widths[-1], "mid_res_0")
        h = attend(h, "mid_attn", linear=False)
        h = res(h, self.widths[-1], "mid_res_1")

        for level, (w_in, w_out) in reversed(levels):
            for block in range(2):
                h = res(jnp.concatenate([h, skips.pop()], axis=-1), w_out, f"up_{level}_res_{block}")
            h = attend(h, f"up_{level}_attn")
            h = conv(w_in, 3, self.dtype, f"up_{level}_out")(upsample(h) if level else h)

        h = res(jnp.concatenate([h, first], axis=-1), self.model_channels, "res_out")
        return conv(self.out_channels, 1, jnp.float32, "conv_out")(h.astype(jnp.float32))


def sines_first_embedding(time: Float[Array, "B"], width: int) -> Float[Array, "B D"]:
    """DDPM's embedding: sin(time f_i), then cos(time f_i), with f_i = 10000^(-i / (half - 1)) and half = width / 2.

    Args:
      time: in DDPM's steps; may be fractional.
      width: D, even and at least 4.

    Source: Ho et al. 2020's code, `get_timestep_embedding`; `layers.timestep_embedding` is ADM's.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class StandardizedConv(nn.Module):
    """A 3 x 3 convolution by weights that have mean 0 and deviation 1 over each output channel's inputs:

        w_hat = (w - mean(w)) / sqrt(var(w) + 1e-5)

    The published class divides by 1 / sqrt(var + eps), and so multiplies by the deviation where it means to divide by it: a
    channel's scale is then its weights' variance instead of 1. Here it is what the paper says.

    Source: Qiao et al. 2019 (Weight Standardization), eq. 5.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(jnp.square(kernel).mean((0, 1, 2)) + 1e-5)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return out + bias.astype(self.dtype)


class StandardizedResBlock(nn.Module):
    """skip(x) + block_1(block_0(x, emb)), where a block is silu(norm(conv(x)) (1 + scale) + shift), the second without both.

    scale, shift = dense(silu(emb)); skip is the identity, or a 1 x 1 convolution where the channels change.

    Source: the tutorial's `ResnetBlock`.
    """

    features: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"]) -> Float[Array, "B H W F"]:
        told = nn.Dense(2 * self.features, name="emb")(nn.silu(emb)).astype(self.dtype)[:, None, None]
        scale, shift = jnp.split(told, 2, axis=-1)
        h = StandardizedConv(self.features, self.dtype, name="conv_0")(x)
        h = nn.silu(GroupNorm(self.norm_groups, name="norm_0")(h) * (1 + scale) + shift)
        h = StandardizedConv(self.features, self.dtype, name="conv_1")(h)
        h = nn.silu(GroupNorm(self.norm_groups, name="norm_1")(h))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, "skip")(x)
        return x + h


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the number of pixels N: the keys' softmax is over pixels, the queries' over channels.

        context = softmax_N(k)^T v      [D, D],        out = norm(dense(softmax_D(q) D^(-1/2) context))

    Nothing compares a pixel with a pixel: every query reads one summary of the image. Source: Shen et al. 2021, eq. 3
    (its softmax form); the tutorial's `LinearAttention`.
    """

    num_heads: int
    head_channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        q, k, v = _heads_of_pixels(x, self.num_heads, self.head_channels, self.dtype)
        q = nn.softmax(q.astype(jnp.float32), axis=-1).astype(self.dtype) * self.head_channels**-0.5
        k = nn.softmax(k.astype(jnp.float32), axis=1).astype(self.dtype)
        context = jnp.einsum("bnhd,bnhe->bhde", k, v)
        h = jnp.einsum("bnhd,bhde->bnhe", q, context).reshape(*x.shape[:3], -1)
        return GroupNorm(1, name="norm")(nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(h))


class Attention(nn.Module):
    """dense(softmax(q k^T D^(-1/2)) v) over pixels, with keys and the like of any width. Source: the tutorial's `Attention`."""

    num_heads: int
    head_channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        h = jax.nn.dot_product_attention(*_heads_of_pixels(x, self.num_heads, self.head_channels, self.dtype))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(h.reshape(*x.shape[:3], -1))


def _heads_of_pixels(
    x: Float[Array, "B H W C"], heads: int, channels: int, dtype: Any
) -> list[Float[Array, "B N H D"]]:
    """Queries, keys and values by one layer without a bias, laid out [q|k|v][head][channel]."""
    qkv = nn.Dense(3 * heads * channels, use_bias=False, dtype=dtype, name="qkv")(x)
    return [part.reshape(len(x), -1, heads, channels) for part in jnp.split(qkv, 3, axis=-1)]


def make_annotated(module: AnnotatedUNet, image_shape: tuple[int, int, int]) -> Network:
    """The tutorial's U-Net as a pair of pure functions.

    Args:
      module: the hyper-parameters.
      image_shape: (H, W, C) of x.

    Raises:
      ValueError: the image cannot be halved as often as the levels ask, groups do not divide the channels, or these are odd.
    """
    multiple = 2 ** (len(module.channel_mults) - 1)
    if image_shape[0] % multiple or image_shape[1] % multiple:
        raise ValueError(
            f"A U-Net with {len(module.channel_mults)} levels takes images whose sides are multiples of {multiple}; "
            f"got {image_shape[0]} x {image_shape[1]}. Use fewer channel_mults or another size."
        )
    if module.model_channels % 2 or module.model_channels < 4 or module.model_channels % module.norm_groups:
        raise ValueError(
            f"model_channels must be even, at least 4 and a multiple of norm_groups={module.norm_groups}; "
            f"got {module.model_channels}."
        )

    def init(key: Key[Array, ""]) -> Any:
        return module.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1))["params"]

    def apply(params: Any, x: Array, time: Array, cond: Cond, dropout_keys: Array | None = None) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, time, cond, dropout_keys))

    return Network(init, apply)
