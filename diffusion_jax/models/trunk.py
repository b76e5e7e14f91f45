"""What ADM's U-Net and its classifier have in common: the flags, the embedded time, and the way down to the middle."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key

from diffusion_jax.models.layers import (
    AttentionBlock,
    ResBlock,
    conv,
    downsample,
    timestep_embedding,
    upsample,
)
from diffusion_jax.models.remat import REMAT, rematerialised


class Told(NamedTuple):
    """What every block is told beside its input: the time (and class, and caption as a whole), the caption's tokens, keys."""

    emb: Float[Array, "B E"]
    text: Float[Array, "B L D"] | None = None
    dropout_keys: Key[Array, "B"] | None = None


class Trunk(nn.Module):
    """The abstract base of `UNet` and `Classifier`; both call its methods inside their own compact `__call__`.

    Level l works at 1 / 2^l of the (patched) image with mult_l x model_channels channels: num_res_blocks blocks, each with
    attention behind it where 2^l is among the attention factors, then a halving, but on the last level.

    Source: what guided-diffusion's `UNetModel` and `EncoderUNetModel` have in common.
    """

    out_channels: int  # of the image; the classes of a classifier
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
    resblock_updown: bool = True  # BigGAN's resampling inside a block; else a layer of its own, see resample_conv
    resample_conv: bool = True  # that layer has a convolution: a strided one, or nearest neighbour and one
    dropout: float = 0.0
    remat: str = "none"  # what of each block is computed again in the backward pass, see REMAT
    attention: str = "xla"  # see attention.attend
    dtype: Any = jax.numpy.float32

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the image's own first."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mults)

    def embed_time(self, time: Float[Array, "B"]) -> Float[Array, "B E"]:
        width = 4 * self.model_channels
        emb = nn.Dense(width, name="time_embed_0")(timestep_embedding(time, self.model_channels))
        return nn.Dense(width, name="time_embed_1")(nn.silu(emb))

    def res(self, h: Array, told: Told, features: int, name: str, resample: str | None = None) -> Array:
        block = rematerialised(ResBlock, self.remat)
        args = (features, self.adaptive_norm, self.dropout, self.norm_groups, self.dtype, resample)
        return block(*args, name=name)(h, told.emb, told.dropout_keys)

    def attend(self, h: Array, told: Told, name: str, num_heads: int | None = None) -> Array:
        block = rematerialised(AttentionBlock, self.remat)
        heads = h.shape[-1] // self.num_head_channels if self.num_head_channels else num_heads or self.num_heads
        args = (heads, self.qkv_order, self.norm_groups, self.dtype, self.attention)
        return block(*args, name=name)(h, told.text)

    def resample(self, h: Array, told: Told, direction: str, name: str) -> Array:
        if self.resblock_updown:
            return self.res(h, told, h.shape[-1], name, direction)
        if not self.resample_conv:
            return downsample(h) if direction == "down" else upsample(h)
        if direction == "down":
            return conv(h.shape[-1], 3, self.dtype, name, stride=2)(h)
        return conv(h.shape[-1], 3, self.dtype, name)(upsample(h))

    def down(self, x: Float[Array, "B H W C"], told: Told) -> list[Float[Array, "B h w c"]]:
        """The first convolution's output and every block's on the way down: a U-Net's skips; the last is the lowest."""
        h = conv(self.widths[0], 3, jax.numpy.float32, "conv_in")(x.astype(jax.numpy.float32)).astype(self.dtype)
        outputs = [h]
        for level, width in enumerate(self.widths):
            for _ in range(self.num_res_blocks):
                index = len(outputs)
                h = self.res(h, told, width, f"down_{index}_res")
                if 2**level in self.attention_factors:
                    h = self.attend(h, told, f"down_{index}_attn")
                outputs.append(h)
            if level < len(self.widths) - 1:
                h = self.resample(h, told, "down", f"down_{len(outputs)}_resample")
                outputs.append(h)
        return outputs

    def middle(self, h: Float[Array, "B h w c"], told: Told) -> Float[Array, "B h w c"]:
        h = self.res(h, told, self.widths[-1], "mid_res_0")
        h = self.attend(h, told, "mid_attn")
        return self.res(h, told, self.widths[-1], "mid_res_1")


def check_trunk(module: Trunk, image_shape: tuple[int, int, int], patch_size: int = 1, *more_heads: int) -> None:
    """Raises ValueError if the levels cannot halve the image, heads do not divide the channels, or a name is unknown."""
    height, width, _ = image_shape
    multiple = patch_size * 2 ** (len(module.channel_mults) - 1)
    if height % multiple or width % multiple:
        raise ValueError(
            f"A U-Net with {len(module.channel_mults)} levels and patches of {patch_size} pixels takes images whose sides "
            f"are multiples of {multiple}; got {height} x {width}. Use fewer channel_mults, a smaller patch_size or another size."
        )
    attended = {w for level, w in enumerate(module.widths) if 2**level in module.attention_factors}
    for heads in [module.num_head_channels] if module.num_head_channels else [module.num_heads, *more_heads]:
        bad = [w for w in attended | {module.widths[-1]} if w % heads]
        if bad:
            raise ValueError(f"Attention cannot divide {bad} channels by {heads} (num_head_channels, else num_heads).")
    if module.qkv_order not in ("legacy", "new"):
        raise ValueError(f"qkv_order must be 'legacy' or 'new'; got {module.qkv_order!r}.")
    if module.remat not in REMAT:
        raise ValueError(f"remat must be one of {', '.join(REMAT)}; got {module.remat!r}.")
