"""Layers that ADM's U-Net and its kin are made of; images are [B, H, W, C], parameters float32."""

import math
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.keys import fold_in
from diffusion_jax.models.attention import attend

NORM_EPSILON = 1e-5  # PyTorch's; Flax's own default is 1e-6


def timestep_embedding(time: Float[Array, "B"], width: int, max_period: float = 10_000.0) -> Float[Array, "B D"]:
    """Sinusoidal embedding, cosines first: cos(time f_i), sin(time f_i) with f_i = max_period^(-i / half), half = width // 2.

    Args:
      time: the network's time, in DDPM's steps (0 to about 1000); may be fractional.
      width: D; an odd width ends with a zero.
      max_period: the longest period, in 1 / (2 pi) steps.

    Source: guided-diffusion's `timestep_embedding` (DDPM has sines first and divides by half - 1).
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(max_period) / half * jnp.arange(half, dtype=jnp.float32))
    angles = time.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))


class GroupNorm(nn.Module):
    """Group normalisation in float32 whatever the input's type, with PyTorch's epsilon.

        y = (x - mean) r + bias,   r = scale / sqrt(mean(x^2) - mean^2 + epsilon)

    Both means are taken over pixels first, channel by channel, then over a group's channels: one pass over x, and half the
    time that Flax's reduction over both at once takes a CPU. Where `max_groups` (ADM: 32) does not divide the channels,
    the largest of its divisors that does is used.
    """

    max_groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
        batch, channels = x.shape[0], x.shape[-1]
        groups = math.gcd(self.max_groups, channels)
        pixels = x.astype(jnp.float32).reshape(batch, -1, channels)

        def group_mean(values: Float[Array, "B N C"]) -> Float[Array, "B 1 C"]:
            means = values.mean(1).reshape(batch, groups, -1).mean(-1)
            return jnp.repeat(means, channels // groups, axis=-1, total_repeat_length=channels)[:, None]

        mean, mean_square = group_mean(pixels), group_mean(jnp.square(pixels))
        scale, bias = _Affine(name="norm")(channels)
        rate = scale * jax.lax.rsqrt(jnp.maximum(mean_square - jnp.square(mean), 0) + NORM_EPSILON)
        return ((pixels - mean) * rate + bias).reshape(x.shape).astype(x.dtype)


class _Affine(nn.Module):
    """A norm's learned scale and bias, in a module of their own so that parameters are named as Flax's norm names them."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        return self.param("scale", ones, (channels,)), self.param("bias", zeros, (channels,))


def conv(features: int, kernel: int, dtype: Any, name: str, stride: int = 1, zero_init: bool = False) -> nn.Conv:
    """Square convolution with PyTorch's symmetric padding (SAME pads a stride of 2 on one side only)."""
    pad = kernel // 2
    init = nn.initializers.zeros if zero_init else nn.initializers.lecun_normal()
    return nn.Conv(
        features, (kernel, kernel), (stride, stride), ((pad, pad), (pad, pad)), dtype=dtype, kernel_init=init, name=name
    )


def downsample(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """Average over 2 x 2 pixels."""
    # Four slices, added: a CPU takes longer over the mean of a reshaped array.
    return (x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]) / 4


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W C"]:
    """Nearest neighbour, twice as large."""
    b, h, w, c = x.shape
    # Stacked, not broadcast: behind a broadcast the partitioner forgets that the batch is split over the devices, and
    # the convolution that follows gathers the whole batch on each.
    x = jnp.stack([x, x], axis=2).reshape(b, 2 * h, w, c)
    return jnp.stack([x, x], axis=3).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B H/p W/p p*p*C"]:
    """Patches of patch x patch pixels become channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "B H W p*p*C"], patch: int) -> Float[Array, "B p*H p*W C"]:
    """Inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)


class Dropout(nn.Module):
    """Dropout with a key per example, so that an example's mask depends on its own key alone; off without keys."""

    rate: float

    def __call__(self, x: Float[Array, "B ..."], keys: Key[Array, "B"] | None) -> Float[Array, "B ..."]:
        if keys is None or self.rate == 0:
            return x
        layer_keys = fold_in(keys, zlib.crc32("/".join(self.path).encode()) & 0x7FFFFFFF)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(layer_keys)
        return jnp.where(keep, x / (1 - self.rate), 0)


class ResBlock(nn.Module):
    """ADM's residual block, which may also resample by two (BigGAN's way).

        h = conv3(resample(silu(norm(x))))
        h = norm(h) (1 + scale) + shift     (AdaGN; scale, shift = dense(silu(emb)))   or   norm(h + dense(silu(emb)))
        out = skip(resample(x)) + conv3(dropout(silu(h))),   the last conv zero at initialisation

    The embedding's dense layer and both norms stay in float32 under bfloat16. Source: guided-diffusion's `ResBlock`.
    """

    features: int
    adaptive_norm: bool
    dropout: float
    norm_groups: int
    dtype: Any
    resample: str | None = None  # "down", "up" or None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"], dropout_keys: Key[Array, "B"] | None
    ) -> Float[Array, "B H W F"]:
        h = nn.silu(GroupNorm(self.norm_groups, name="norm_in")(x))
        if self.resample:
            resample = {"down": downsample, "up": upsample}[self.resample]
            h, x = resample(h), resample(x)
        h = conv(self.features, 3, self.dtype, "conv_in")(h)
        width = self.features * (2 if self.adaptive_norm else 1)
        emb_out = nn.Dense(width, dtype=jnp.float32, name="emb")(nn.silu(emb)).astype(h.dtype)[:, None, None]
        if self.adaptive_norm:
            scale, shift = jnp.split(emb_out, 2, axis=-1)
            h = GroupNorm(self.norm_groups, name="norm_out")(h) * (1 + scale) + shift
        else:
            h = GroupNorm(self.norm_groups, name="norm_out")(h + emb_out)
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), dropout_keys)
        h = conv(self.features, 3, self.dtype, "conv_out", zero_init=True)(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, "skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over pixels, with text tokens (where given) prepended to the keys and values.

    qkv is one dense layer; its columns are laid out [head][q|k|v][channel] ("legacy", all of OpenAI's networks but one) or
    [q|k|v][head][channel] ("new", ADM at 64 pixels). The text's layer is [head][k|v][channel]. Logits and softmax are
    float32; the last layer is zero at initialisation. Source: guided-diffusion's and glide-text2im's `AttentionBlock`.
    """

    num_heads: int
    qkv_order: str
    norm_groups: int
    dtype: Any
    attention: str = "xla"  # see attention.attend

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], text: Float[Array, "B L D"] | None) -> Float[Array, "B H W C"]:
        b, height, w, c = x.shape
        heads, head_width = self.num_heads, c // self.num_heads
        h = GroupNorm(self.norm_groups, name="norm")(x).reshape(b, height * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(h)
        if self.qkv_order == "legacy":
            q, k, v = jnp.split(qkv.reshape(b, height * w, heads, 3 * head_width), 3, axis=-1)  # [B, N, heads, D]
        else:
            q, k, v = (part.reshape(b, height * w, heads, head_width) for part in jnp.split(qkv, 3, axis=-1))
        if text is not None:
            text_kv = nn.Dense(2 * c, dtype=self.dtype, name="text_kv")(text)
            text_k, text_v = jnp.split(text_kv.reshape(b, text.shape[1], heads, 2 * head_width), 2, axis=-1)
            k, v = jnp.concatenate([text_k, k], axis=1), jnp.concatenate([text_v, v], axis=1)
        h = attend(q, k, v, self.attention).reshape(b, height * w, c)
        h = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)
        return x + h.reshape(x.shape)
