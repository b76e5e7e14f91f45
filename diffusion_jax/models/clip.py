"""GLIDE's noise-aware CLIP: noisy images and captions to features that agree where the two belong together."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.denoiser import Cond
from diffusion_jax.models import Network, Params
from diffusion_jax.models.attention import attend
from diffusion_jax.models.layers import NORM_EPSILON

# Of CLIP's training images, one per channel, for pixels in 0..255.
PIXEL_MEAN = (122.77093945, 116.74601272, 104.09373519)
PIXEL_STD = (68.50053285, 66.63215831, 70.32316309)
MAX_LOGIT_SCALE = 100.0  # of similarities: the published weights', and the most that a learned one comes to
LOGIT_SCALE = "logit_scale"  # the name of its logarithm among the parameters
FIRST_LOGIT_SCALE = 1 / 0.07  # where a learned one begins, as CLIP's


class Encoder(NamedTuple):
    """An encoder as two pure functions.

    init: key -> params.
    apply: (params, *inputs) -> features [B, features], not of unit length; inputs are (images, time) or
      (tokens, text_length). With probe=True it gives what the last norm reads, [B, width].
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., Float[Array, "B D"]]


class ImageEncoder(nn.Module):
    """A vision transformer whose first token is the noise level: (images [B, H, W, 3], time [B]) -> [B, features].

        tokens = norm([time_embed[time], patch(pixels)] + position_embed),   features = out(norm(blocks(tokens)[:, 0]))

    pixels are the images, turned from [-1, 1] to 0..255 and standardised by CLIP's means and deviations. A time that is
    no whole number takes the nearest row of the table, one beyond its ends the last: nothing between was ever trained.
    Without a table (num_timesteps = 0, for clean images) the first token is one learned vector, and there is no time.

    The original pads its tokens to a multiple of 32 and adds -1e10 to the padding's logits, whose softmax is then 0 to
    the last bit: here nothing is padded.

    Under dtype bfloat16 the dense layers and the patches' convolution compute in bfloat16; parameters, norms,
    embeddings, the residual stream, softmax and the features stay float32.

    Source: glide-text2im's `clip.encoders.ImageEncoder`.
    """

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    features: int
    num_timesteps: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], time: Float[Array, "B"] | None = None, probe: bool = False
    ) -> Float[Array, "B D"]:
        size, width, batch = self.image_size, self.width, len(images)
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"CLIP's image encoder takes images [B, {size}, {size}, 3]; got {images.shape}.")
        if (time is None) == bool(self.num_timesteps):
            wants = f"times [B] of a table of {self.num_timesteps}" if self.num_timesteps else "no time"
            raise ValueError(f"this CLIP image encoder takes {wants}; got {time if time is None else time.shape}.")
        init = nn.initializers.normal(width**-0.5)
        if time is None:
            first = jnp.broadcast_to(self.param("class_embed", init, (width,)), (batch, width))
        else:
            row = jnp.clip(jnp.rint(time), 0, self.num_timesteps - 1).astype(jnp.int32)
            first = nn.Embed(self.num_timesteps, width, embedding_init=init, name="time_embed")(row)
        pixels = (127.5 * (images.astype(jnp.float32) + 1) - jnp.asarray(PIXEL_MEAN)) / jnp.asarray(PIXEL_STD)
        patch_init = nn.initializers.normal(math.sqrt(2 / (width * self.patch_size**2)))
        patch = (self.patch_size, self.patch_size)
        patches = nn.Conv(
            width, patch, patch, "VALID", use_bias=False, dtype=self.dtype, kernel_init=patch_init, name="patch"
        )(pixels)
        x = jnp.concatenate(
            [first[:, None], patches.reshape(batch, -1, width).astype(jnp.float32)], axis=1
        )  # [B, N, D]
        x = _layer_norm("norm_in")(x + self.param("position_embed", init, x.shape[1:]))
        for i in range(self.num_layers):
            x = Block(self.num_heads, self.num_layers, False, self.dtype, name=f"block_{i}")(x)
        return x[:, 0] if probe else _project(self.features, self.dtype)(_layer_norm("norm_out")(x[:, 0]))


class TextEncoder(nn.Module):
    """A causal transformer: (tokens [B, L], text_length [B]) -> [B, features], read at the caption's last token.

        features = out(norm(blocks(token_embed[tokens] + position_embed)[text_length - 1]))

    text_length counts the start and end tokens; what follows is padding that, attention being causal, is never seen.
    float32 and bfloat16 lie as in `ImageEncoder`. Source: glide-text2im's `clip.encoders.TextEncoder`.
    """

    vocab_size: int
    context_length: int
    width: int
    num_layers: int
    num_heads: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"], text_length: Int[Array, "B"], probe: bool = False
    ) -> Float[Array, "B D"]:
        if tokens.ndim != 2 or tokens.shape[1] != self.context_length or text_length.shape != tokens.shape[:1]:
            raise ValueError(
                f"CLIP's text encoder takes tokens [B, {self.context_length}] and text lengths [B]; "
                f"got {tokens.shape} and {text_length.shape}."
            )
        init = nn.initializers.normal
        x = nn.Embed(self.vocab_size, self.width, embedding_init=init(0.02), name="token_embed")(tokens)
        x = x + self.param("position_embed", init(0.01), (self.context_length, self.width))
        for i in range(self.num_layers):
            x = Block(self.num_heads, self.num_layers, True, self.dtype, name=f"block_{i}")(x)
        last = jnp.take_along_axis(x, (text_length - 1)[:, None, None], axis=1)[:, 0]  # [B, D]
        return last if probe else _project(self.features, self.dtype)(_layer_norm("norm_out")(last))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): exact GELU, an MLP four times as wide, and keys without a bias.

    A bias of the keys adds the same to all logits of a query and so does nothing. The original leaves it out, and by a
    slip zeroes the gradient of the middle third of the queries' and values' biases: training here does not repeat that.
    """

    num_heads: int
    num_layers: int  # of the whole transformer: deeper ones begin with smaller branches
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        width = x.shape[-1]
        branch_std = width**-0.5 / (2 * self.num_layers)

        def dense(features: int, std: float, name: str, use_bias: bool = True) -> nn.Dense:
            init = nn.initializers.normal(std)
            return nn.Dense(features, use_bias, dtype=self.dtype, kernel_init=init, name=name)

        h = _layer_norm("norm_attn")(x)
        q, k, v = (
            dense(width, width**-0.5, name, use_bias=name != "key")(h).reshape(*x.shape[:2], self.num_heads, -1)
            for name in ("query", "key", "value")
        )  # [B, L, heads, D / heads]
        h = attend(q, k, v, is_causal=self.causal).reshape(x.shape)
        x = x + dense(width, branch_std, "attn_out")(h)
        h = dense(4 * width, (2 * width) ** -0.5, "mlp_in")(_layer_norm("norm_mlp")(x))
        return x + dense(width, branch_std, "mlp_out")(nn.gelu(h, approximate=False))


def make_image_encoder(module: ImageEncoder) -> Encoder:
    """The image encoder as two pure functions; `apply` takes (params, images in [-1, 1], DDPM's steps or None).

    Raises:
      ValueError: heads do not divide the width, or patches the image.
    """
    _check_heads(module.width, module.num_heads)
    if module.image_size % module.patch_size:
        raise ValueError(f"patches of {module.patch_size} pixels do not divide an image of {module.image_size}.")
    shape = (1, module.image_size, module.image_size, 3)
    return _encoder(module, jnp.zeros(shape), jnp.zeros(1) if module.num_timesteps else None)


def make_text_encoder(module: TextEncoder) -> Encoder:
    """The text encoder as two pure functions; `apply` takes (params, tokens, text_length).

    Raises:
      ValueError: heads do not divide the width.
    """
    _check_heads(module.width, module.num_heads)
    return _encoder(module, jnp.zeros((1, module.context_length), jnp.int32), jnp.ones(1, jnp.int32))


def make_clip(image: ImageEncoder, text: TextEncoder, learn_logit_scale: bool = False) -> Network:
    """Both encoders' parameters under one network, whose `apply` gives an image's features, of unit length.

    Args:
      image, text: the encoders.
      learn_logit_scale: whether the logarithm of the similarities' scale is a parameter; see `logit_scale`.

    Raises:
      ValueError: as `make_image_encoder` and `make_text_encoder`.
    """
    images, texts = make_image_encoder(image), make_text_encoder(text)

    def init(key: Key[Array, ""]) -> Params:
        first, second = jax.random.split(key)
        scale = {LOGIT_SCALE: jnp.float32(math.log(FIRST_LOGIT_SCALE))} if learn_logit_scale else {}
        return {"image_encoder": images.init(first), "text_encoder": texts.init(second)} | scale

    def apply(params: Params, x: Array, time: Array, cond: Cond = None, dropout_keys: Array | None = None) -> Array:
        return unit_length(images.apply(params["image_encoder"], x, time))

    return Network(init, apply)


def logit_scale(params: Params) -> Float[Array, ""]:
    """What similarities are multiplied with: exp of the learned logarithm, or 100 where there is none."""
    if LOGIT_SCALE not in params:
        return jnp.float32(MAX_LOGIT_SCALE)
    return jnp.exp(params[LOGIT_SCALE])


def unit_length(features: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Features as CLIP compares them: z / (|z| + 1e-12)."""
    return features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-12)


def _encoder(module: nn.Module, *example: Any) -> Encoder:
    def init(key: Key[Array, ""]) -> Params:
        return module.init(key, *example)["params"]

    def apply(params: Params, *inputs: Any, probe: bool = False) -> Float[Array, "B D"]:
        return jnp.asarray(module.apply({"params": params}, *inputs, probe=probe))

    return Encoder(init, apply)


def _project(features: int, dtype: Any) -> Callable[[Array], Array]:
    """The last layer, without a bias; its output is float32 whatever it computes in."""
    layer = nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=nn.initializers.glorot_normal(), name="out")
    return lambda x: layer(x).astype(jnp.float32)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=jnp.float32, name=name)


def _check_heads(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"CLIP's attention cannot divide a width of {width} by {num_heads} heads.")
