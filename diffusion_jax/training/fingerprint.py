"""Fingerprints of arrays: 64 bits each, the same wherever and however an array lies, so that a checkpoint can be trusted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

SALTS = (0x9E3779B9, 0x3C6EF372)  # of the two sums


def fingerprint(tree: Any) -> dict[str, str]:
    """A fingerprint of each leaf, as name -> 16 hexadecimal digits.

    With w[i, j] the leaf's bits as 32-bit words, j along its last axis and i the linear index over the others:

        sum over i of odd(i) * (sum over j of odd(j) * mix(w[i, j]))   mod 2^32,

    twice, with other weights. The weights are hashes made odd and `mix` is a permutation, so that a change of any one word
    is always seen; of other changes, an exchange of places included, about one in 2^60 is not. Sums of integers are exact in
    every order: the value depends neither on the number of devices nor on the sharding, and a sharded array sends no more
    than partial sums.

    Args:
      tree: arrays, or typed keys, on any devices. With several processes each must call this for the same tree.

    Returns:
      Names as of `named_leaves`.
    """
    # One small program per shape, not one of the whole tree: that takes XLA minutes where there are thousands of leaves.
    # One after the other: what lies on the host need not fit on the device at once; and on CPUs, programs under way together run
    # in any order, so that the devices of a sharded array, or several processes, would wait for one another.
    sums = {name: jax.device_get(_sums(leaf)) for name, leaf in named_leaves(tree).items()}
    return {name: f"{int(first):08x}{int(second):08x}" for name, (first, second) in sums.items()}


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves (all that has a shape) by their names, as group/layer/kernel; a tuple's field counts by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): leaf
        for path, leaf in leaves
    }


@jax.jit
def _sums(x: Array) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    # Scalars, which lie whole on every device, so that every process can read them.
    words = _mix(jnp.atleast_1d(_words(x)))
    first, second = (_sum(words, np.uint32(salt)) for salt in SALTS)
    return first, second


def _sum(words: UInt32[Array, "..."], salt: np.uint32) -> UInt32[Array, ""]:
    columns = _odd(jax.lax.iota(jnp.uint32, words.shape[-1]), salt)
    if words.ndim > 1:
        columns = jax.lax.optimization_barrier(columns)  # else XLA hashes anew at every word, for five times as long
    rows = jnp.sum(words * columns, axis=-1, dtype=jnp.uint32)
    return jnp.sum(rows * _odd(_linear_index(rows.shape), ~salt), dtype=jnp.uint32)


def _words(x: Array) -> UInt32[Array, "..."]:
    """The array's bits, as many words as elements, or twice as many on one more axis."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation. Without it two changes of signs would cancel, for 2^31 times any odd number is 2^31."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    return x ^ (x >> 15)


def _linear_index(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The place of each element in row-major order, mod 2^32. No reshape, which could move an array between devices."""
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def _odd(index: UInt32[Array, "..."], salt: np.uint32) -> UInt32[Array, "..."]:
    """An odd number for each index: a hash with good avalanche (Wellons 2018, "Prospecting for hash functions"), made odd."""
    x = _mix(index ^ salt) * np.uint32(0x846CA68B)
    return (x ^ (x >> 16)) | np.uint32(1)
