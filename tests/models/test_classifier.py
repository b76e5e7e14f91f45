"""What the classifier promises beside the original's numbers (tests/interop/test_openai.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.classifier import POOLS, Classifier, make_classifier

SMALL = {
    "out_channels": 5,
    "model_channels": 8,
    "channel_mults": (1, 2),
    "num_res_blocks": 1,
    "attention_factors": (2,),
    "num_head_channels": 8,
    "norm_groups": 4,
}


def build(image_shape=(8, 8, 3), **changes):
    """A network, compiled, and parameters all drawn at random, for a fresh one may give zero everywhere."""
    network = make_classifier(Classifier(**(SMALL | changes)), image_shape)
    rng = np.random.default_rng(0)
    template = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), template)
    return jax.jit(network.apply), params


def inputs(shape=(8, 8, 3), batch=3):
    return jax.random.normal(jax.random.key(1), (batch, *shape)), jnp.linspace(10.0, 900.0, batch)


@pytest.mark.parametrize("pool", POOLS)
def test_logits_depend_on_the_image_and_the_time_of_their_own_example(pool):
    apply, params = build(pool=pool)
    x, time = inputs()
    logits = apply(params, x, time)
    assert logits.shape == (3, 5) and logits.dtype == jnp.float32
    np.testing.assert_allclose(apply(params, x[1:2], time[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    assert not np.allclose(apply(params, x[::-1], time), logits)
    assert not np.allclose(apply(params, x, time[::-1]), logits)


@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2"])
def test_a_pool_without_positions_takes_any_size(pool):
    apply, params = build(pool=pool)
    assert apply(params, *inputs((12, 8, 3))).shape == (3, 5)


def test_dropout_follows_each_examples_own_key():
    apply, params = build(dropout=0.5)
    x, time = inputs()
    keys = jax.random.split(jax.random.key(2), 3)
    dropped = apply(params, x, time, None, keys)
    assert not np.allclose(dropped, apply(params, x, time))
    np.testing.assert_allclose(apply(params, x[2:], time[2:], None, keys[2:]), dropped[2:], rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_near_float32():
    x, time = inputs()
    exact, params = build()
    near = build(dtype=jnp.bfloat16)[0](params, x, time)
    want = exact(params, x, time)
    assert 0 < jnp.linalg.norm(near - want) < 0.05 * jnp.linalg.norm(want)


@pytest.mark.parametrize(
    "changes, shape, message",
    [
        ({"pool": "max"}, (8, 8, 3), "pool"),
        ({"num_head_channels": None}, (8, 8, 3), "num_head_channels"),
        ({}, (8, 9, 3), "multiples of 2"),
    ],
)
def test_a_wrong_hyper_parameter_is_named(changes, shape, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(Classifier(**(SMALL | changes)), shape)
