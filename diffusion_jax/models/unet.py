"""One U-Net that is ADM's and, with a text transformer, GLIDE's; improved DDPM's is the same with other flags."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond
from diffusion_jax.models import Network
from diffusion_jax.models.layers import GroupNorm, conv, depth_to_space, space_to_depth
from diffusion_jax.models.text import TextTransformer
from diffusion_jax.models.trunk import Told, Trunk, check_trunk


class UNet(Trunk):
    """ADM's U-Net: (x [B, H, W, C], time [B], cond) -> [B, H, W, out_channels].

    The condition is a dict with what the flags below ask for:
      num_classes: `label` [B] int.
      text: `tokens` [B, L] int and `mask` [B, L] bool (True: a token; not read by a text without padding embeddings).
      low_res: `low_res` [B, h, w, C], an image to enlarge, in [-1, 1].
      inpaint: `inpaint_image` [B, H, W, C] in [-1, 1] and `inpaint_mask` [B, H, W, 1], 1 where the image is given; both
        zero where absent.

    Under dtype bfloat16 the convolutions and attention of the blocks compute in bfloat16; parameters, norms, embeddings,
    softmax, the first and the last convolution stay float32, as GLIDE keeps them.

    Source: guided-diffusion's `UNetModel` and `SuperResModel`; glide-text2im's `Text2ImUNet` and its kin.
    """

    num_heads_up: int | None = None  # on the way up; None is num_heads
    num_classes: int | None = None
    text: TextTransformer | None = None
    low_res: bool = False
    inpaint: bool = False
    patch_size: int = 1  # > 1: patches become channels at the input and pixels again at the output

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, "B"],
        cond: Cond,
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C_out"]:
        told = self._told(time, cond, dropout_keys)
        x = with_images(x, cond, self.low_res, self.inpaint)
        if self.patch_size > 1:
            x = space_to_depth(x, self.patch_size)
        skips = self.down(x, told)
        h = self.middle(skips[-1], told)

        index = 0
        for level, width in reversed(list(enumerate(self.widths))):
            for block in range(self.num_res_blocks + 1):
                h = self.res(jnp.concatenate([h, skips.pop()], axis=-1), told, width, f"up_{index}_res")
                if 2**level in self.attention_factors:
                    h = self.attend(h, told, f"up_{index}_attn", self.num_heads_up)
                if level and block == self.num_res_blocks:
                    h = self.resample(h, told, "up", f"up_{index}_resample")
                index += 1

        h = nn.silu(GroupNorm(self.norm_groups, name="norm_out")(h.astype(jnp.float32)))
        h = conv(self.out_channels * self.patch_size**2, 3, jnp.float32, "conv_out", zero_init=True)(h)
        return depth_to_space(h, self.patch_size) if self.patch_size > 1 else h

    def _told(self, time: Float[Array, "B"], cond: Cond, dropout_keys: Key[Array, "B"] | None) -> Told:
        """The vector that every block is told (time, class, caption as a whole), and the caption's tokens."""
        emb = self.embed_time(time)
        width = emb.shape[-1]
        if self.num_classes is not None:
            emb = emb + nn.Embed(self.num_classes, width, name="label_embed")(cond["label"])
        if self.text is None:
            return Told(emb, None, dropout_keys)
        text = self.text(cond["tokens"], cond.get("mask"))
        # GLIDE takes the last position, usually padding, as the whole caption's vector.
        emb = emb + nn.Dense(width, name="text_pool")(text[:, -1].astype(jnp.float32))
        return Told(emb, text, dropout_keys)


def input_parts(channels: int, low_res: bool, inpaint: bool) -> dict[str, int]:
    """How many channels each part of what `with_images` gives has, in their order."""
    parts = {"x": channels}
    if inpaint:
        parts |= {"inpaint_image": channels, "inpaint_mask": 1}
    return parts | ({"low_res": channels} if low_res else {})


def with_images(x: Float[Array, "B H W C"], cond: Cond, low_res: bool, inpaint: bool) -> Float[Array, "B H W C_in"]:
    """The noisy image with the given ones behind it, as channels: [x, image x mask, mask, enlarged low_res].

    The small image is enlarged bilinearly, half a pixel of its border repeated (PyTorch's align_corners=False).

    Source: the forward methods of guided-diffusion's `SuperResModel` and glide-text2im's `InpaintText2ImUNet` and
    `SuperResInpaintText2ImUnet`. Rounding a small image to uint8's grid first is the sampler's affair, not the network's.
    """
    parts = [x]
    if inpaint:
        image, mask = cond.get("inpaint_image"), cond.get("inpaint_mask")
        mask = jnp.zeros_like(x[..., :1]) if mask is None else mask
        parts += [jnp.zeros_like(x) if image is None else image * mask, mask]
    if low_res:
        small = cond["low_res"]
        parts.append(jax.image.resize(small, (*x.shape[:3], small.shape[-1]), "linear", antialias=False))
    return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else x


def make_network(module: UNet, image_shape: tuple[int, int, int]) -> Network:
    """The U-Net as a pair of pure functions.

    Args:
      module: the hyper-parameters.
      image_shape: (H, W, C) of x.

    Raises:
      ValueError: the image cannot be halved as often as the levels ask, or heads do not divide the channels.
    """
    check_trunk(module, image_shape, module.patch_size, *([module.num_heads_up] if module.num_heads_up else []))

    def init(key: Key[Array, ""]) -> Any:
        x, cond = jnp.zeros((1, *image_shape)), {}
        if module.num_classes is not None:
            cond["label"] = jnp.zeros(1, jnp.int32)
        if module.text is not None:
            cond["tokens"] = jnp.zeros((1, module.text.context_length), jnp.int32)
            cond["mask"] = jnp.ones((1, module.text.context_length), bool)
        if module.low_res:
            cond["low_res"] = x
        return module.init(key, x, jnp.zeros(1), cond)["params"]

    def apply(params: Any, x: Array, time: Array, cond: Cond, dropout_keys: Array | None = None) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, time, cond, dropout_keys))

    return Network(init, apply)
