"""GLIDE's text transformer: caption tokens -> one vector per token, and one for the whole caption."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models.attention import attend
from diffusion_jax.models.layers import NORM_EPSILON


class TextTransformer(nn.Module):
    """Pre-norm transformer without causal or padding mask, as GLIDE has it.

    A padded position (mask False) holds a learned vector of its own instead of a token's. Exact GELU, MLP four times as
    wide, qkv in one dense layer laid out [head][q|k|v][channel].

    Token embeddings begin at deviation 1 (PyTorch's default, and so GLIDE's). GLIDE leaves the positional and padding
    embeddings uninitialised; here they begin at 0.1, small beside the tokens: were the tokens small too, the average that
    each position's first attention adds would drown them, and captions would be learned late.

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
        x = x.astype(self.dtype)
        for i in range(self.num_layers):
            x = TransformerBlock(self.num_heads, self.dtype, name=f"block_{i}")(x)
        return _layer_norm("norm_out")(x).astype(self.dtype) if self.final_norm else x


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
