"""The MLP's shapes, and that it hears all that it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.mlp import MLP, make_mlp


def drawn(network):
    """Parameters all drawn at random, for a fresh network gives zero everywhere."""
    rng = np.random.default_rng(0)
    template = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), template)


@pytest.mark.parametrize("octaves, num_states", [(0, None), (4, None), (0, 3)])
def test_shapes_and_independence_of_batch_mates(octaves, num_states):
    network = make_mlp(MLP(multiple=2, width=8, depth=2, octaves=octaves, num_states=num_states), num_dims=5)
    x = jnp.arange(15).reshape(3, 5) % 3 if num_states else jax.random.normal(jax.random.key(1), (3, 5))
    time, params = jnp.array([0.0, 10.0, 900.0]), drawn(network)
    out = network.apply(params, x, time, {})
    assert out.shape == (3, 10)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[1:2], network.apply(params, x[1:2], time[1:2], {}), atol=1e-5)


def test_time_and_every_input_matter():
    network = make_mlp(MLP(multiple=1, width=8, depth=1, octaves=2), num_dims=3)
    params, x, time = drawn(network), jnp.array([[0.1, 0.2, 0.3]]), jnp.array([5.0])
    out = network.apply(params, x, time, {})
    assert not np.allclose(out, network.apply(params, x, time + 1, {}))
    for i in range(3):
        assert not np.allclose(out, network.apply(params, x.at[0, i].add(0.1), time, {}))


def test_a_fresh_network_gives_zero_and_one_without_blocks_is_refused():
    network = make_mlp(MLP(multiple=2, width=8, depth=2), num_dims=3)
    assert not network.apply(network.init(jax.random.key(0)), jnp.ones((2, 3)), jnp.ones(2), {}).any()
    with pytest.raises(ValueError, match="depth of at least 1"):
        make_mlp(MLP(multiple=2, width=8, depth=0), num_dims=3)
