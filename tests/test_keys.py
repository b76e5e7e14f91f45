"""Keys: what is drawn for an example depends on its key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import keys as keys_lib

pytestmark = pytest.mark.usefixtures("strict_ranks")


def same(one, other):
    return bool((jax.random.key_data(one) == jax.random.key_data(other)).all())


def test_an_examples_key_depends_on_its_index_and_not_on_its_place():
    key = jax.random.key(0)
    assert same(
        keys_lib.keys_per_example(key, jnp.array([3, 7, 5]))[1], keys_lib.keys_per_example(key, jnp.array([7]))[0]
    )


def test_examples_and_streams_have_different_keys():
    keys = keys_lib.keys_per_example(jax.random.key(0), jnp.arange(50))
    everything = jnp.concatenate([keys, keys_lib.fold_in(keys, 0), keys_lib.fold_in(keys, 1)])
    assert len(np.unique(jax.random.key_data(everything), axis=0)) == 150


def test_a_traced_stream_is_the_same_stream():
    keys = keys_lib.keys_per_example(jax.random.key(0), jnp.arange(3))
    assert same(jax.jit(keys_lib.fold_in)(keys, 5), keys_lib.fold_in(keys, 5))


def test_each_row_is_drawn_from_its_own_key():
    keys = keys_lib.keys_per_example(jax.random.key(0), jnp.arange(4))
    together = keys_lib.normal_per_example(keys, (2, 3))
    assert together.shape == (4, 2, 3) and together.dtype == jnp.float32
    for i in range(4):
        np.testing.assert_array_equal(together[i], keys_lib.normal_per_example(keys[i : i + 1], (2, 3))[0])


def test_rows_are_unit_normal():
    keys = keys_lib.keys_per_example(jax.random.key(0), jnp.arange(500))
    draws = np.asarray(keys_lib.normal_per_example(keys, (40,)))  # 20,000 numbers: five standard errors below
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
    assert abs(draws.var() - 1) < 5 * np.sqrt(2 / draws.size)
    assert abs((draws[1:] * draws[:-1]).mean()) < 5 / np.sqrt(draws.size)
