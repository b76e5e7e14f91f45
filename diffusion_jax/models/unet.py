"""One U-Net that is ADM's and, with a text transformer, GLIDE's; improved DDPM's is the same with other flags."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond
from diffusion_jax.models import Network
from diffusion_jax.models.layers import (
    AttentionBlock,
    GroupNorm,
    ResBlock,
    conv,
    depth_to_space,
    space_to_depth,
    timestep_embedding,
    upsample,
)
from diffusion_jax.models.text import TextTransformer


class UNet(nn.Module):
    """ADM's U-Net: (x [B, H, W, C], time [B], cond) -> [B, H, W, out_channels].

    Level l works at 1 / 2^l of the (patched) image with mult_l x model_channels channels. The condition is a dict with
    any of `label` [B] int, `tokens` [B, L] int and `mask` [B, L] bool; which ones is decided by num_classes and text.

    Under dtype bfloat16 the convolutions and attention of the blocks compute in bfloat16; parameters, norms, embeddings,
    softmax and the last convolution stay float32, as ADM keeps them.

    Source: guided-diffusion's `UNetModel`; glide-text2im's `Text2ImUNet`.
    """

    out_channels: int
    model_channels: int
    channel_mults: tuple[float, ...]
    num_res_blocks: int
    attention_factors: tuple[
        int, ...
    ] = ()  # attention where the image is downsampled by these factors, and in the middle
    num_heads: int = 1
    num_head_channels: int | None = None  # if set, the number of heads follows from it
    qkv_order: str = "legacy"
    adaptive_norm: bool = True
    norm_groups: int = 32
    resblock_updown: bool = True  # BigGAN's resampling inside a block; else a strided, or a nearest and a, convolution
    dropout: float = 0.0
    num_classes: int | None = None
    text: TextTransformer | None = None
    patch_size: int = 1  # > 1: patches become channels at the input and pixels again at the output
    remat: bool = False  # recompute each block in the backward pass: less memory, about a third more time
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, "B"],
        cond: Cond,
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C_out"]:
        emb, text = self._embed(time, cond)
        levels = len(self.channel_mults)
        widths = [int(mult * self.model_channels) for mult in self.channel_mults]

        def res(h: Array, features: int, name: str, resample: str | None = None) -> Array:
            block = nn.remat(ResBlock) if self.remat else ResBlock
            args = (features, self.adaptive_norm, self.dropout, self.norm_groups, self.dtype, resample)
            return block(*args, name=name)(h, emb, dropout_keys)

        def attend(h: Array, name: str) -> Array:
            block = nn.remat(AttentionBlock) if self.remat else AttentionBlock
            heads = h.shape[-1] // self.num_head_channels if self.num_head_channels else self.num_heads
            return block(heads, self.qkv_order, self.norm_groups, self.dtype, name=name)(h, text)

        def resample(h: Array, direction: str, name: str) -> Array:
            if self.resblock_updown:
                return res(h, h.shape[-1], name, direction)
            if direction == "down":
                return conv(h.shape[-1], 3, self.dtype, name, stride=2)(h)
            return conv(h.shape[-1], 3, self.dtype, name)(upsample(h))

        if self.patch_size > 1:
            x = space_to_depth(x, self.patch_size)
        h = conv(widths[0], 3, self.dtype, "conv_in")(x.astype(self.dtype))
        skips, index = [h], 1
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                h = res(h, width, f"down_{index}_res")
                if 2**level in self.attention_factors:
                    h = attend(h, f"down_{index}_attn")
                skips.append(h)
                index += 1
            if level < levels - 1:
                h = resample(h, "down", f"down_{index}_resample")
                skips.append(h)
                index += 1

        h = res(h, widths[-1], "mid_res_0")
        h = attend(h, "mid_attn")
        h = res(h, widths[-1], "mid_res_1")

        index = 0
        for level, width in reversed(list(enumerate(widths))):
            for block in range(self.num_res_blocks + 1):
                h = res(jnp.concatenate([h, skips.pop()], axis=-1), width, f"up_{index}_res")
                if 2**level in self.attention_factors:
                    h = attend(h, f"up_{index}_attn")
                if level and block == self.num_res_blocks:
                    h = resample(h, "up", f"up_{index}_resample")
                index += 1

        h = nn.silu(GroupNorm(self.norm_groups, name="norm_out")(h.astype(jnp.float32)))
        h = conv(self.out_channels * self.patch_size**2, 3, jnp.float32, "conv_out", zero_init=True)(h)
        return depth_to_space(h, self.patch_size) if self.patch_size > 1 else h

    def _embed(self, time: Float[Array, "B"], cond: Cond) -> tuple[Float[Array, "B E"], Float[Array, "B L D"] | None]:
        """The vector that every block is told (time, class, caption as a whole), and the caption's tokens."""
        width = 4 * self.model_channels
        emb = nn.Dense(width, name="time_embed_0")(timestep_embedding(time, self.model_channels))
        emb = nn.Dense(width, name="time_embed_1")(nn.silu(emb))
        if self.num_classes is not None:
            emb = emb + nn.Embed(self.num_classes, width, name="label_embed")(cond["label"])
        if self.text is None:
            return emb, None
        text = self.text(cond["tokens"], cond["mask"])
        # GLIDE takes the last position, usually padding, as the whole caption's vector.
        return emb + nn.Dense(width, name="text_pool")(text[:, -1].astype(jnp.float32)), text


def make_network(module: UNet, image_shape: tuple[int, int, int]) -> Network:
    """The U-Net as a pair of pure functions.

    Args:
      module: the hyper-parameters.
      image_shape: (H, W, C) of x.

    Raises:
      ValueError: the image cannot be halved as often as the levels ask, or heads do not divide the channels.
    """
    height, width, channels = image_shape
    multiple = module.patch_size * 2 ** (len(module.channel_mults) - 1)
    if height % multiple or width % multiple:
        raise ValueError(
            f"A U-Net with {len(module.channel_mults)} levels and patches of {module.patch_size} pixels takes images whose sides "
            f"are multiples of {multiple}; got {height} x {width}. Use fewer channel_mults, a smaller patch_size or another size."
        )
    heads_of = module.num_head_channels or module.num_heads
    bad = [w for w in {int(m * module.model_channels) for m in module.channel_mults} if w % heads_of]
    if bad:
        raise ValueError(f"Attention cannot divide {bad} channels by {heads_of} (num_head_channels, else num_heads).")
    if module.qkv_order not in ("legacy", "new"):
        raise ValueError(f"qkv_order must be 'legacy' or 'new'; got {module.qkv_order!r}.")

    def init(key: Key[Array, ""]) -> Any:
        cond = {}
        if module.num_classes is not None:
            cond["label"] = jnp.zeros(1, jnp.int32)
        if module.text is not None:
            cond["tokens"] = jnp.zeros((1, module.text.context_length), jnp.int32)
            cond["mask"] = jnp.ones((1, module.text.context_length), bool)
        return module.init(key, jnp.zeros((1, height, width, channels)), jnp.zeros(1), cond)["params"]

    def apply(params: Any, x: Array, time: Array, cond: Cond, dropout_keys: Array | None = None) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, time, cond, dropout_keys))

    return Network(init, apply)
