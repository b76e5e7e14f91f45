"""What the U-Net promises beside the originals' numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import Network
from diffusion_jax.models.layers import Dropout, GroupNorm, depth_to_space, space_to_depth, timestep_embedding
from diffusion_jax.models.text import TextTransformer
from diffusion_jax.models.unet import UNet, make_network

TEXT = TextTransformer(vocab_size=20, context_length=5, width=8, num_layers=1, num_heads=2)
SMALL = {"out_channels": 3, "model_channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "norm_groups": 4}


def build(image_shape=(8, 8, 3), **changes):
    """A network, compiled, and parameters all drawn at random, for a fresh network gives zero everywhere."""
    network = make_network(UNet(**(SMALL | changes)), image_shape)
    rng = np.random.default_rng(0)
    template = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), template)
    return Network(network.init, jax.jit(network.apply)), params


def inputs(shape, batch=3):
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    return x, jnp.linspace(10.0, 900.0, batch)


def test_a_fresh_network_gives_zero():
    network = make_network(UNet(**SMALL), (8, 8, 3))
    x, time = inputs((8, 8, 3))
    params = jax.jit(network.init)(jax.random.key(0))
    assert not jax.jit(network.apply)(params, x, time, {}).any()


@pytest.mark.parametrize(
    "shape, changes",
    [
        ((8, 12, 3), {}),
        ((8, 8, 1), {"out_channels": 1}),
        ((6, 6, 4), {"out_channels": 8}),
        ((16, 8, 3), {"patch_size": 2}),
        ((8, 8, 3), {"resblock_updown": False, "adaptive_norm": False, "attention_factors": (1, 2), "num_heads": 2}),
    ],
)
def test_any_size_and_channel_count_works(shape, changes):
    network, params = build(shape, **changes)
    x, time = inputs(shape)
    out = network.apply(params, x, time, {})
    assert out.shape == (3, *shape[:2], changes.get("out_channels", 3))
    assert np.isfinite(out).all()


def test_an_example_ignores_its_batch_mates():
    network, params = build(text=TEXT, num_classes=4, attention_factors=(2,), dropout=0.5)
    x, time = inputs((8, 8, 3))
    cond = {
        "label": jnp.arange(3),
        "tokens": jnp.arange(15).reshape(3, 5),
        "mask": jnp.arange(15).reshape(3, 5) % 4 > 0,
    }
    keys = jax.random.split(jax.random.key(2), 3)
    whole = network.apply(params, x, time, cond, keys)
    alone = network.apply(params, x[1:2], time[1:2], jax.tree.map(lambda v: v[1:2], cond), keys[1:2])
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["label", "tokens", "mask"])
def test_every_part_of_the_condition_matters(name):
    network, params = build(text=TEXT, num_classes=4)
    x, time = inputs((8, 8, 3), batch=1)
    cond = {
        "label": jnp.array([1]),
        "tokens": jnp.array([[1, 2, 3, 4, 5]]),
        "mask": jnp.array([[True] * 3 + [False] * 2]),
    }
    changed = {"label": jnp.array([2]), "tokens": jnp.array([[1, 7, 3, 4, 5]]), "mask": jnp.array([[True] * 5])}
    out = network.apply(params, x, time, cond)
    assert jnp.abs(network.apply(params, x, time, cond | {name: changed[name]}) - out).max() > 1e-3


def test_a_masked_token_does_not_matter():
    network, params = build(text=TEXT)
    x, time = inputs((8, 8, 3), batch=1)
    mask = jnp.array([[True, True, False, False, False]])
    outs = [network.apply(params, x, time, {"tokens": jnp.array([[1, 2, i, i, i]]), "mask": mask}) for i in (3, 9)]
    np.testing.assert_array_equal(*outs)


def test_text_reaches_the_image_through_attention_and_as_a_whole():
    network, params = build(text=TEXT)
    x, time = inputs((8, 8, 3), batch=1)
    cond = {"tokens": jnp.array([[1, 2, 3, 4, 5]]), "mask": jnp.ones((1, 5), bool)}
    other = cond | {"tokens": jnp.array([[6, 7, 8, 9, 10]])}

    def effect(off):
        silenced = params | {name: jax.tree.map(jnp.zeros_like, params[name]) for name in off if name in params}
        if "text_kv" in off:
            attention = params["mid_attn"]
            silenced["mid_attn"] = attention | {"text_kv": jax.tree.map(jnp.zeros_like, attention["text_kv"])}
        return jnp.abs(network.apply(silenced, x, time, cond) - network.apply(silenced, x, time, other)).max()

    assert effect(["text_pool"]) > 1e-4
    assert effect(["text_kv"]) > 1e-4
    assert effect(["text_pool", "text_kv"]) == 0


def test_parameters_stay_float32_and_so_does_the_output_under_bfloat16():
    network, params = build(dtype=jnp.bfloat16, text=TEXT.clone(dtype=jnp.bfloat16))
    x, time = inputs((8, 8, 3))
    cond = {"tokens": jnp.ones((3, 5), jnp.int32), "mask": jnp.ones((3, 5), bool)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert network.apply(params, x, time, cond).dtype == jnp.float32
    text = str(jax.make_jaxpr(network.apply)(params, x, time, cond))
    assert "bf16[3,8,8,8]" in text, "the blocks compute in bfloat16"


@pytest.mark.parametrize(
    "shape, changes, message",
    [
        ((9, 8, 3), {}, "multiples of 2"),
        ((6, 6, 3), {"patch_size": 4}, "multiples of 8"),
        ((8, 8, 3), {"num_heads": 3}, "cannot divide"),
        ((8, 8, 3), {"qkv_order": "other"}, "qkv_order"),
        ((8, 8, 3), {"remat": "other"}, "remat must be one of none, full, dots"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(shape, changes, message):
    with pytest.raises(ValueError, match=message):
        make_network(UNet(**(SMALL | changes)), shape)


def test_each_rematerialisation_policy_keeps_less_of_the_forward_pass():
    x, time = inputs((8, 8, 3))
    kept = {}
    for policy in ("none", "dots", "full"):
        network = make_network(UNet(**SMALL, attention_factors=(1, 2), remat=policy), (8, 8, 3))
        params = jax.eval_shape(network.init, jax.random.key(0))
        _, backward = jax.eval_shape(
            lambda p, network=network: jax.vjp(lambda p: network.apply(p, x, time, {}), p), params
        )
        kept[policy] = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert kept["full"] < kept["dots"] < kept["none"]


def test_group_norm_has_flax_values_and_parameters():
    x = 3 + jax.random.normal(jax.random.key(0), (2, 5, 4, 12))
    ours, flax_norm = GroupNorm(6), nn.GroupNorm(6, epsilon=1e-5)
    params = {"scale": jnp.linspace(0.5, 2, 12), "bias": jnp.linspace(-1, 1, 12)}
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)["params"]["norm"]) == {"scale": (12,), "bias": (12,)}
    np.testing.assert_allclose(
        ours.apply({"params": {"norm": params}}, x), flax_norm.apply({"params": params}, x), atol=2e-5
    )


def test_patches_go_back_to_their_places():
    x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    assert space_to_depth(x, 4).shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, 4), 4), x)


def test_dropout_keeps_the_mean_and_is_off_without_keys():
    layer, x = Dropout(0.25), jnp.ones((64, 1000))
    np.testing.assert_array_equal(layer.apply({}, x, None), x)
    out = layer.apply({}, x, jax.random.split(jax.random.key(0), 64))
    np.testing.assert_allclose(out.mean(), 1, atol=0.01)
    np.testing.assert_allclose((out == 0).mean(), 0.25, atol=0.01)


def test_odd_embedding_widths_end_with_a_zero():
    out = timestep_embedding(jnp.array([3.0]), 7)
    assert out.shape == (1, 7)
    assert out[0, -1] == 0
