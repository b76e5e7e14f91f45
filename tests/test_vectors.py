"""Vectors: the training loss is the reported bound, samples do not depend on the batch, pictures are drawn."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import build, discrete, losses, vectors
from diffusion_jax.keys import keys_per_example

PROBLEMS = [("swiss_roll", {}), ("heartbeat", {}), ("heartbeat", {"transition": "absorbing"})]


def made(name, **diffusion):
    """A debug model with parameters drawn at random."""
    config = importlib.import_module(f"configs.{name}").get_config("debug")
    config.diffusion.update(diffusion)
    config.parallel.placement = "single"
    model = build.model(config, None)
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    return model, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), template)


@pytest.mark.parametrize(("name", "diffusion"), PROBLEMS)
def test_the_mean_of_the_rescaled_kl_over_the_steps_is_the_bound_without_its_prior(name, diffusion):
    model, params = made(name, objective="rescaled_kl", num_table_steps=8, **diffusion)
    x0 = jnp.asarray(build.source(model.config, "validation").values[:256])
    network, steps = build.models.fed(model, lambda *args: model.network.apply(params, *args)), 8
    objective = build.objective(model)

    @jax.jit
    def loss(t, keys):
        return objective(network, x0, jnp.full(len(x0), t), keys, {})

    keys = keys_per_example(jax.random.key(1), jnp.arange(len(x0)))
    terms = np.array([loss((i + 1) / steps, jax.vmap(jax.random.fold_in, (0, None))(keys, i)) for i in range(steps)])
    by_loss, by_bound = terms.mean(axis=0) * x0.shape[1], -vectors.make_bound(model)(params, np.asarray(x0), 2)
    if name == "heartbeat":  # jsd ends without signal: no prior
        assert float(discrete.prior_nats(model.transition, x0).max()) == 0
    spread = np.hypot(by_loss.std(), by_bound.std()) / np.sqrt(len(x0))
    assert abs(by_loss.mean() - by_bound.mean()) < 4 * spread + 0.01


def test_the_discrete_loss_knows_its_kinds():
    with pytest.raises(ValueError, match="kind must be one of"):
        losses.categorical_loss(None, None, None, None, None, None, kind="mse")


@pytest.mark.parametrize(("name", "diffusion"), PROBLEMS)
def test_samples_do_not_depend_on_the_batch_and_are_drawn(name, diffusion):
    model, params = made(name, **diffusion)
    draw = vectors.make_draw(model, build.placement(model.config))
    whole, parts = draw(params, 5, 3), draw(params, 5, 3, batch_size=2)
    assert whole.shape == (5, *model.image_shape)
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-4)
    assert np.asarray(vectors.picture(name, whole)).min() < 255
