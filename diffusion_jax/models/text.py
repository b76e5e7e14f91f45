"""GLIDE's text transformer: caption tokens -> one vector per token, and one for the whole caption."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models import Params
from diffusion_jax.models.attention import attend
from diffusion_jax.models.layers import NORM_EPSILON
from diffusion_jax.models.remat import rematerialised


class TextTransformer(nn.Module):
    """Pre-norm transformer without causal or padding mask, as GLIDE has it.

    A padded position (mask False) holds a learned vector of its own instead of a token's. Exact GELU, MLP four times as
    wide, qkv in one dense layer laid out [head][q|k|v][channel].

    Token embeddings begin at deviation 1 (PyTorch's default, and so GLIDE's). GLIDE leaves the positional and padding
    embeddings uninitialised; here they begin at 0.1, small beside the tokens: were the tokens small too, the average that
    each position's first attention adds would drown them, and captions would be learned late.

    With scan_layers the blocks' parameters lie stacked under "blocks", their layer first, and one compiled block runs
    num_layers times: a program of one block's size. `stacked` makes them of the parameters of the other form.

    Source: glide-text2im's `Text2ImUNet` and `xf.py`.
    """

    vocab_size: int
    context_length: int
    width: int
    num_layers: int
    num_heads: int
    dtype: Any = jnp.float32
    padding: bool = True  # False: a padded position holds its token's vector, and the mask is not read
    final_norm: bool = True
    scan_layers: bool = False
    remat: str = "none"  # what of each block is computed again in the backward pass, see remat.REMAT

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"] | None = None) -> Float[Array, "B L D"]:
        init, shape = nn.initializers.normal(0.1), (self.context_length, self.width)
        x = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0), name="token_embed")(
            tokens
        )
        x = x + self.param("position_embed", init, shape)
        if self.padding:
            if mask is None:
                raise ValueError(
                    "a text with padding embeddings needs the mask of its tokens: cond['mask'], True at a token."
                )
            x = jnp.where(mask[..., None], x, self.param("padding_embed", init, shape))
        x = self._through_blocks(x.astype(self.dtype))
        return _layer_norm("norm_out")(x).astype(self.dtype) if self.final_norm else x

    def _through_blocks(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        block = rematerialised(TransformerBlock, self.remat)
        if not self.scan_layers:
            for i in range(self.num_layers):
                x = block(self.num_heads, self.dtype, name=f"block_{i}")(x)
            return x
        layers = nn.scan(
            lambda module, x, _: (module(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.num_layers,
        )
        return layers(block(self.num_heads, self.dtype, name="blocks"), x, None)[0]


def stacked(params: Params) -> Params:
    """A text transformer's parameters with its blocks stacked, as scan_layers wants them."""
    names = sorted((name for name in params if name.startswith("block_")), key=lambda name: int(name[6:]))
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params[name] for name in names])
    return {name: value for name, value in params.items() if name not in names} | {"blocks": blocks}


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        b, length, width = x.shape
        h = _layer_norm("norm_attn")(x).astype(self.dtype)
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(b, length, self.num_heads, -1), 3, axis=-1)  # [B, L, heads, D / heads]
        h = attend(q, k, v).reshape(b, length, width)
        x = x + nn.Dense(width, dtype=self.dtype, name="attn_out")(h)
        h = _layer_norm("norm_mlp")(x).astype(self.dtype)
        h = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="mlp_in")(h), approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name="mlp_out")(h)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=jnp.float32, name=name)
