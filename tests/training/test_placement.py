"""One step, several placements. conftest.py gives eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax import times
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.training.placement import make_placement
from diffusion_jax.training.step import init_state, make_train_step

DIM = 6


def init(key):
    w_in, w_out = jax.random.split(key)
    return {"in": jax.random.normal(w_in, (DIM, 16)) / 3, "out": jax.random.normal(w_out, (16, DIM)) / 4}


def loss_per_example(params, batch, keys, history):
    """A denoising problem small enough to compile at once: noise per example, as in the real loss."""
    noisy = batch["x"] + normal_per_example(keys, (DIM,))
    return jnp.mean((jnp.tanh(noisy @ params["in"]) @ params["out"] - batch["x"]) ** 2, axis=-1), None


def loss_by_history(params, batch, keys, history):
    """The same, with as much noise as a step drawn from the history says."""
    steps, importance = times.draw(history, fold_in(keys, 1))
    noise = (steps + 1)[:, None] * normal_per_example(fold_in(keys, 2), (DIM,))
    losses, _ = loss_per_example(params, {"x": batch["x"] + noise}, keys, ())
    return importance * losses, (steps, losses)


def run(placement, num_steps=10, batch_size=16, loss=loss_per_example, history=()):
    optimizer = optax.adamw(1e-2)
    step = placement.train(make_train_step(loss, optimizer, 0.9, seed=0))
    state, losses = init_state(init, optimizer, 0, history), []
    for i in range(num_steps):
        batch = {"x": np.random.default_rng(i).normal(size=(batch_size, DIM)).astype(np.float32)}
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return state, np.array(losses)


def test_eight_devices_are_simulated():
    assert jax.local_device_count() == 8


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_pmap_gives_the_losses_and_parameters_of_one_device(num_devices):
    state, losses = run(make_placement("pmap", jax.local_devices()[:num_devices]))
    want_state, want_losses = run(make_placement("single"))
    assert len(set(want_losses.tolist())) == 10, "the losses change, so that equality says something"
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for name in ("params", "ema_params"):
        jax.tree.map(
            lambda ours, want: np.testing.assert_allclose(ours, want, atol=1e-5),
            getattr(state, name),
            getattr(want_state, name),
        )


@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_loss_history_records_all_examples_in_their_order_on_any_number_of_devices(num_devices):
    empty = times.init(num_steps=5, length=3)
    arguments = {"loss": loss_by_history, "history": empty}
    state, losses = run(make_placement("pmap", jax.local_devices()[:num_devices]), **arguments)
    want, want_losses = run(make_placement("single"), **arguments)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    np.testing.assert_array_equal(state.loss_history.counts, np.full(5, 3))
    np.testing.assert_allclose(state.loss_history.losses, want.loss_history.losses, rtol=1e-4)
    p = times.probabilities(want.loss_history)
    assert p[4] > 2 * p[0], "the history decides what is drawn"
    first, _ = run(make_placement("pmap", jax.local_devices()[:num_devices]), num_steps=1, **arguments)
    assert first.loss_history.counts.sum() > 5, "more than one device's share"


def test_state_is_never_stacked_over_devices():
    state, _ = run(make_placement("pmap"), num_steps=1)
    assert jax.tree.map(jnp.shape, state.params) == {"in": (DIM, 16), "out": (16, DIM)}
    assert int(state.step) == 1


def test_noise_depends_on_the_step_and_on_the_seed():
    def first_losses(seed):
        step = make_train_step(loss_per_example, optax.sgd(0.0), 0.9, seed)
        state = init_state(init, optax.sgd(0.0), 0)
        batch = {"x": np.ones((4, DIM), np.float32)}
        placed = make_placement("single").train(step)
        losses = []
        for _ in range(2):
            state, metrics = placed(state, batch)
            losses.append(float(metrics["loss"]))
        return losses

    assert len({*first_losses(0), *first_losses(1)}) == 4


def test_map_returns_rows_in_order_on_any_number_of_devices():
    batch = {"x": np.arange(16.0, dtype=np.float32).reshape(16, 1)}

    def double(shared, batch, axis_name):
        return batch["x"] * shared

    for placement in (make_placement("single"), make_placement("pmap")):
        np.testing.assert_array_equal(placement.map(double)(np.float32(2), batch), batch["x"] * 2)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        run(make_placement("pmap"), num_steps=1, batch_size=12)


def test_an_unknown_placement_is_refused():
    with pytest.raises(ValueError, match="sharded_by_hand"):
        make_placement("sharded_by_hand")
