"""Fingerprints: the same wherever an array lies, another for any change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from diffusion_jax.training.fingerprint import fingerprint


def of(x):
    return fingerprint({"x": x})["x"]


def tree():
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.standard_normal((3, 16, 24)).astype(np.float32),
        "bias": rng.standard_normal(16).astype(jnp.bfloat16),
        "count": np.int32(7),
        "mask": rng.random((8, 8)) < 0.5,
        "small": rng.integers(-128, 128, 40, dtype=np.int8),
        "half": rng.standard_normal((8, 5)).astype(np.float16),
        "waves": (rng.standard_normal((8, 3)) + 1j).astype(np.complex64),
        "empty": np.zeros((0, 8), np.float32),
    }


def test_a_fingerprint_is_the_same_on_one_device_and_on_eight_sharded_by_any_axis_or_replicated():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    keys = jax.random.split(jax.random.key(1), 8)
    whole = {**jax.tree.map(jnp.asarray, tree()), "keys": keys}
    one = jax.device_put(whole, SingleDeviceSharding(jax.devices()[3]))
    wanted = fingerprint(whole)
    assert all(len(value) == 16 for value in wanted.values())
    assert fingerprint(one) == wanted
    assert fingerprint(jax.device_put(whole, NamedSharding(mesh, PartitionSpec()))) == wanted
    for spec in [(None, "a", "b"), (None, "b", "a"), (None, None, ("a", "b")), (None, ("a", "b"))]:
        kernel = jax.device_put(whole["kernel"], NamedSharding(mesh, PartitionSpec(*spec)))
        assert of(kernel) == wanted["kernel"]
    for name in ("bias", "mask", "small", "half", "waves", "keys"):
        assert of(jax.device_put(whole[name], NamedSharding(mesh, PartitionSpec(("a", "b"))))) == wanted[name]


@pytest.mark.parametrize("name", [name for name, x in tree().items() if x.size])
def test_every_flip_of_one_bit_is_seen(name):
    x = np.atleast_1d(tree()[name])
    before, rng = of(jnp.asarray(x)), np.random.default_rng(0)
    for byte in rng.permutation(x.nbytes)[:30]:
        flipped = x.copy()
        bit = 0 if x.dtype == bool else rng.integers(8)
        flipped.view(np.uint8).reshape(-1)[byte] ^= np.uint8(1 << bit)
        assert of(jnp.asarray(flipped)) != before


def test_an_exchange_of_places_is_seen_and_so_is_a_part_that_became_zero():
    x = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    changed = [x[::-1], x[:, ::-1], x[:, :, ::-1], x.swapaxes(0, 1).reshape(x.shape), np.roll(x, 1), x * (x > -1)]
    for i, j in ((0, 1), (7, 99), (3, 63)):
        swapped = x.copy().reshape(-1)
        swapped[[i, j]] = swapped[[j, i]]
        changed.append(swapped.reshape(x.shape))
    found = {of(jnp.asarray(np.ascontiguousarray(y))) for y in [x, *changed]}
    assert len(found) == 1 + len(changed)


def test_changes_of_many_signs_do_not_cancel():
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    two = x.copy()
    two[1, 2], two[3, 0] = -two[1, 2], -two[3, 0]
    found = [of(jnp.asarray(y)) for y in (x, -x, two)]
    assert len({value[:8] for value in found}) == len({value[8:] for value in found}) == 3


def test_negative_zero_and_the_bits_of_a_nan_count():
    bits = np.array([0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFC00000], np.uint32)
    assert len({of(jnp.asarray(word[None].view(np.float32))) for word in bits}) == len(bits)


def test_the_two_sums_are_of_different_weights():
    halves = [(value[:8], value[8:]) for value in (of(jnp.zeros(9, jnp.int32).at[i].set(1)) for i in range(9))]
    assert len({first for first, _ in halves} | {second for _, second in halves}) == 18


def test_words_of_64_bits_count_whole(x64):
    x = jnp.arange(6, dtype=jnp.int64).reshape(2, 3)
    assert len({of(x), of(x + 2**40), of(x.T), of(x.astype(jnp.float64))}) == 4
