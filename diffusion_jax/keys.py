"""Random keys, one per example: what is drawn for example i depends on its key alone, not on batch, device or host."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def keys_per_example(key: Key[Array, ""], indices: Int[Array, "B"]) -> Key[Array, "B"]:
    """One key per global example index."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def fold_in(keys: Key[Array, "B"], stream: int | Int[Array, ""]) -> Key[Array, "B"]:
    """The same number folded into every key: an independent stream for each example."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, stream)


def normal_per_example(
    keys: Key[Array, "B"], shape: tuple[int, ...], dtype: Any = jnp.float32
) -> Float[Array, "B ..."]:
    """Unit normal [B, *shape], row i from keys[i]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
