"""The text transformer's two forms: a layer after the other, and one that runs several times."""

import jax
import numpy as np
import pytest

from diffusion_jax.models.text import TextTransformer, stacked

SHAPE = {"vocab_size": 20, "context_length": 5, "width": 16, "num_layers": 3, "num_heads": 2}
TOKENS = np.random.default_rng(0).integers(0, 20, (4, 5))
MASK = np.arange(5) < np.array([5, 3, 1, 4])[:, None]


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(TextTransformer(**SHAPE).init, jax.random.key(0), TOKENS, MASK)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)


def value_and_gradient(params, **form):
    module = TextTransformer(**SHAPE, **form)

    def loss(params):
        out = module.apply({"params": params}, TOKENS, MASK)
        return (out**2 * np.arange(16)).mean(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return out, grads


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_scanned_layers_give_the_same_as_layers_one_by_one(params, remat):
    out, grads = value_and_gradient(params)
    scanned, scanned_grads = value_and_gradient(stacked(params), scan_layers=True, remat=remat)
    np.testing.assert_allclose(scanned, out, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), scanned_grads, stacked(grads))


def test_scanned_layers_have_the_parameters_that_stacking_gives(params):
    module = TextTransformer(**SHAPE, scan_layers=True)
    fresh = module.init(jax.random.key(0), TOKENS, MASK)["params"]
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, stacked(params))
    kernel = fresh["blocks"]["qkv"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1]), "each layer begins with its own"


def test_a_scanned_program_is_no_longer_for_more_layers(params):
    def length(num_layers, scan_layers):
        module = TextTransformer(**SHAPE | {"num_layers": num_layers}, scan_layers=scan_layers)
        shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS, MASK)
        return len(jax.jit(module.apply).lower(shapes, TOKENS, MASK).as_text())

    assert length(12, True) < 1.05 * length(3, True)
    assert length(12, False) > 2 * length(3, False)
