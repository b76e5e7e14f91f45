"""A residual MLP for data that are short vectors, of numbers or of categories."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.denoiser import Cond
from diffusion_jax.models import Network
from diffusion_jax.models.layers import timestep_embedding


class MLP(nn.Module):
    """Residual blocks, each told the time by a scale and a shift: (x [B, D], time [B], cond) -> [B, D * multiple].

    Numbers come in beside their sines and cosines at octaves of pi / 4, so that fine detail is within a small network's reach;
    categories come in as one-hot vectors. The condition is not read.

    Args:
      multiple: outputs per dimension. How they lie is the reader's choice: all means before all variances for numbers, the
        logits of one dimension beside each other for categories.
      width: of the blocks.
      depth: the number of blocks.
      octaves: of the sines; 0 is none.
      num_states: of categorical x; None for numbers.

    Source: timestep embedding and residual blocks as in Ho et al. 2020; sines of the input, Tancik et al. 2020.
    """

    multiple: int
    width: int
    depth: int
    octaves: int = 0
    num_states: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B D"] | Int[Array, "B D"],
        time: Float[Array, "B"],
        cond: Cond = None,
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B D*multiple"]:
        num_dims = x.shape[1]
        emb = nn.Dense(self.width, name="time_embed_0")(timestep_embedding(time, self.width))
        emb = nn.silu(nn.Dense(self.width, name="time_embed_1")(nn.silu(emb)))
        h = nn.Dense(self.width, name="in")(self._features(x))
        for i in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width, name=f"block_{i}_embed")(emb), 2, axis=-1)
            inner = nn.LayerNorm(name=f"block_{i}_norm")(h) * (1 + scale) + shift
            inner = nn.silu(nn.Dense(self.width, name=f"block_{i}_0")(inner))
            h = h + nn.Dense(self.width, kernel_init=nn.initializers.zeros, name=f"block_{i}_1")(inner)
        h = nn.silu(nn.LayerNorm(name="norm_out")(h))
        return nn.Dense(num_dims * self.multiple, kernel_init=nn.initializers.zeros, name="out")(h)

    def _features(self, x: Array) -> Float[Array, "B F"]:
        if self.num_states is not None:
            return jax.nn.one_hot(x, self.num_states).reshape(len(x), -1)
        angles = x[..., None] * (math.pi / 4 * 2.0 ** jnp.arange(self.octaves))[None, None]
        parts = [x[..., None], jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(parts, axis=-1).reshape(len(x), -1)


def make_mlp(module: MLP, num_dims: int) -> Network:
    """The MLP as a pair of pure functions.

    Args:
      module: the hyper-parameters.
      num_dims: D.

    Raises:
      ValueError: width or depth is too small.
    """
    if module.width < 2 or module.depth < 1:
        raise ValueError(
            f"An MLP needs a width of at least 2 and a depth of at least 1; got {module.width}, {module.depth}."
        )

    def init(key: Key[Array, ""]) -> Any:
        x = jnp.zeros((1, num_dims), jnp.float32 if module.num_states is None else jnp.int32)
        return module.init(key, x, jnp.zeros(1))["params"]

    def apply(params: Any, x: Array, time: Array, cond: Cond, dropout_keys: Array | None = None) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, time, cond, dropout_keys))

    return Network(init, apply)
