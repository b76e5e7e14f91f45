"""A network's arrays stay split by rows where its kernels are split too. conftest.py gives eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import Network
from diffusion_jax.models.layers import AttentionBlock
from diffusion_jax.models.partition import keep_rows
from diffusion_jax.plan import hlo
from diffusion_jax.training.placement import make_placement

BLOCK = AttentionBlock(num_heads=4, qkv_order="legacy", norm_groups=8, dtype=jnp.float32)
X = np.random.default_rng(0).normal(size=(16, 4, 4, 128)).astype(np.float32)
TEXT = np.random.default_rng(1).normal(size=(16, 8, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(BLOCK.init, jax.random.key(0), X, TEXT)["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 12, shapes)


def block():
    return Network(
        lambda key: BLOCK.init(key, X, TEXT)["params"], lambda params, *x: BLOCK.apply({"params": params}, *x)
    )


def step_of(network):
    def step(params, batch, axis_name):
        loss = lambda p: jnp.mean(network.apply(p, batch["x"], batch["text"]) ** 2)  # noqa: E731
        loss, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), {"loss": loss}

    return step


def exchanged(network, params, mesh):
    place = make_placement("sharded", jax.local_devices(), mesh)
    compiled = place.lower_train(step_of(network), params, {"x": X, "text": TEXT}).compile()
    return {kind: total.bytes for kind, total in hlo.collectives(compiled.as_text()).items()}


def test_kernels_are_gathered_and_no_picture_moves(params):
    kernels = sum(leaf.nbytes for leaf in jax.tree.leaves(params) if leaf.size >= 2**14)
    kept, free = (exchanged(network, params, (1, 8, 1)) for network in (keep_rows(block()), block()))
    assert "all-to-all" not in kept
    assert kept["all-gather"] <= 2 * kernels  # on the way forward and on the way back
    assert sum(free.values()) > sum(kept.values()), "without it the partitioner moves more"


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_the_step_is_the_same(params, mesh):
    plain, _ = jax.jit(step_of(block()), static_argnums=2)(params, {"x": X, "text": TEXT}, None)
    place = make_placement("sharded", jax.local_devices(), mesh)
    split, _ = place.train(step_of(keep_rows(block())))(place.replicate(params), {"x": X, "text": TEXT})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), split, plain)


def test_rows_that_the_mesh_does_not_divide_are_left_alone(params):
    mesh = jax.make_mesh((1, 8, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.make_jaxpr(keep_rows(block()).apply)(params, X[:3], TEXT[:3])
        assert "sharding_constraint" not in str(traced)
        assert "sharding_constraint" in str(jax.make_jaxpr(keep_rows(block()).apply)(params, X, TEXT))
    assert "sharding_constraint" not in str(jax.make_jaxpr(keep_rows(block()).apply)(params, X, TEXT))
