"""The tutorial's U-Net: its size, its attention and convolutions against their formulas, and that all of it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.annotated import (
    AnnotatedUNet,
    LinearAttention,
    StandardizedConv,
    make_annotated,
    sines_first_embedding,
)

SMALL = AnnotatedUNet(out_channels=1, model_channels=8, channel_mults=(1, 2), num_heads=2, num_head_channels=4)


def drawn(template, scale=0.3):
    """Parameters all drawn at random, so that no bias is 0 and no gain 1."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), template)


def build(module=SMALL, image_shape=(8, 8, 1)):
    network = make_annotated(module, image_shape)
    return jax.jit(network.apply), drawn(jax.eval_shape(network.init, jax.random.key(0)))


def counted(dim, mults, channels):
    """The published class's parameters, layer by layer from its description."""
    emb = 4 * dim

    def res(i, o):
        blocks = (9 * i + 1) * o + 2 * o + (9 * o + 1) * o + 2 * o
        return (emb + 1) * 2 * o + blocks + (0 if i == o else (i + 1) * o)

    def attention(c, linear):
        return 2 * c + 3 * 128 * c + (128 + 1) * c + (2 * c if linear else 0)

    widths = [dim, *(m * dim for m in mults)]
    total = (channels + 1) * dim + (dim + 1) * emb + (emb + 1) * emb + res(2 * dim, dim) + (dim + 1) * channels
    total += 2 * res(widths[-1], widths[-1]) + attention(widths[-1], False)
    for level, (i, o) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        out = 9 * i if level == len(mults) - 1 else 4 * i
        total += 2 * res(i, i) + attention(i, True) + (out + 1) * o
        total += 2 * res(o + i, o) + attention(o, True) + (9 * o + 1) * i
    return total


# 2,020,257 and 7,095,427 are also what PyTorch counts in a class of these layers.
@pytest.mark.parametrize("channels, mults, count", [(1, (1, 2, 4), 2_020_257), (3, (1, 2, 4, 8), 7_095_427)])
def test_it_has_the_published_number_of_parameters(channels, mults, count):
    network = make_annotated(AnnotatedUNet(channels, channel_mults=mults), (32, 32, channels))
    template = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(template)) == count == counted(28, mults, channels)


@pytest.mark.parametrize("shape, out_channels", [((8, 8, 1), 1), ((6, 10, 3), 6)])
def test_any_size_and_channel_count_works_and_an_example_ignores_its_batch_mates(shape, out_channels):
    apply, params = build(SMALL.clone(out_channels=out_channels), shape)
    x, time = jax.random.normal(jax.random.key(1), (3, *shape)), jnp.array([0.0, 17.5, 299.0])
    out = apply(params, x, time, {})
    assert out.shape == (3, *shape[:2], out_channels)
    assert out.dtype == jnp.float32
    alone = apply(params, x[1:2], time[1:2], {})
    np.testing.assert_allclose(out[1:2], alone, atol=1e-5 * jnp.abs(out).max(), rtol=0)


def test_the_time_matters():
    apply, params = build()
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    assert jnp.abs(apply(params, x, jnp.array([3.0]), {}) - apply(params, x, jnp.array([40.0]), {})).max() > 1e-3


def test_bfloat16_stays_near():
    apply, params = build()
    rough, _ = build(SMALL.clone(dtype=jnp.bfloat16))
    x, time = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.array([3.0, 200.0])
    out, near = apply(params, x, time, {}), rough(params, x, time, {})
    assert near.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(near - out) < 0.02 * jnp.linalg.norm(out)


def test_gradients_reach_every_parameter():
    apply, params = build()  # its groups have two channels each: a norm of single ones would take their biases away
    x, time = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.array([1.0, 30.0, 100.0, 250.0])
    grads = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(apply(p, x, time, {}) - x[::-1]))))(params)
    largest = {jax.tree_util.keystr(path): jnp.abs(g).max() for path, g in jax.tree_util.tree_leaves_with_path(grads)}
    assert min(largest.values()) > 1e-6, min(largest, key=largest.get)


def test_linear_attention_is_its_formula(x64):
    heads, width = 2, 4
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 6))
    module = LinearAttention(heads, width, jnp.float64)
    params = drawn(jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x))["params"])
    out = module.apply({"params": params}, jnp.asarray(x))

    def softmax(logits, axis):
        e = np.exp(logits)
        return e / e.sum(axis, keepdims=True)

    expected = []
    for image in x.reshape(2, 15, 6):
        q, k, v = np.split(image @ np.asarray(params["qkv"]["kernel"]), 3, axis=-1)  # [N, heads x D]
        columns = [slice(i * width, (i + 1) * width) for i in range(heads)]
        h = [softmax(q[:, c], 1) / 2 @ (softmax(k[:, c], 0).T @ v[:, c]) for c in columns]  # sqrt(4) is 2
        h = np.concatenate(h, axis=1) @ params["out"]["kernel"] + params["out"]["bias"]
        h = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
        expected.append(h * params["norm"]["norm"]["scale"] + params["norm"]["norm"]["bias"])
    # the softmax and the norm are float32 whatever comes in
    np.testing.assert_allclose(out.reshape(2, 15, 6), expected, atol=2e-5)


def test_standardised_weights_do_not_know_their_own_scale_and_mean():
    module, x = StandardizedConv(3, jnp.float32), jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    params = drawn(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    moved = params | {"kernel": 7 * params["kernel"] + jnp.array([1.0, -2.0, 0.5])}
    outs = [module.apply({"params": p}, x) for p in (params, moved)]
    np.testing.assert_allclose(*outs, atol=2e-2)  # 1e-5 beside a variance of 0.09
    # Inputs of unit deviation come out with one of sqrt(9 x 4), away from the border.
    many = jax.random.normal(jax.random.key(2), (2000, 3, 3, 4))
    np.testing.assert_allclose(module.apply({"params": params}, many)[:, 1, 1].std(0), 6, rtol=0.06)


def test_the_embedding_has_its_sines_first_and_ends_at_a_period_of_ten_thousand():
    time = np.array([0.0, 1.0, 250.0])
    got = sines_first_embedding(jnp.asarray(time), 6)
    angles = time[:, None] * np.array([1.0, 1e-2, 1e-4])
    np.testing.assert_allclose(got, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=2e-5)


@pytest.mark.parametrize(
    "module, image_shape, told",
    [
        (SMALL, (7, 8, 1), "multiples of 2"),
        (SMALL.clone(model_channels=6), (8, 8, 1), "multiple of norm_groups=4"),
        (SMALL.clone(model_channels=9, norm_groups=3), (8, 8, 1), "must be even"),
    ],
)
def test_what_cannot_be_built_is_refused(module, image_shape, told):
    with pytest.raises(ValueError, match=told):
        make_annotated(module, image_shape)
