"""One step, several placements. conftest.py gives eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax import times
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.training import sharding
from diffusion_jax.training.placement import make_placement
from diffusion_jax.training.step import Record, init_state, make_train_step

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
    return importance * losses, Record(times.step_time(steps, 5), losses, steps)


def run(placement, num_steps=10, batch_size=16, loss=loss_per_example, history=()):
    optimizer = optax.adamw(1e-2)
    step = placement.train(make_train_step(loss, optimizer, 0.9, seed=0))
    state, losses = init_state(init, optimizer, 0, history, shardings=placement.shardings), []
    for i in range(num_steps):
        batch = {"x": np.random.default_rng(i).normal(size=(batch_size, DIM)).astype(np.float32)}
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return state, np.array(losses)


def test_eight_devices_are_simulated():
    assert jax.local_device_count() == 8


def placed(name, num_devices, *mesh_shape):
    return make_placement(name, jax.local_devices()[:num_devices], *mesh_shape)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pmap", 1),
        ("pmap", 2),
        ("pmap", 8),
        ("sharded", 1),
        ("sharded", 4, (4, 1, 1)),
        ("sharded", 4, (2, 2, 1)),
        ("sharded", 8, (2, 2, 2)),
        ("sharded", 8),
    ],
)
def test_every_placement_gives_the_losses_and_parameters_of_one_device(arguments, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SIZE", 1)
    state, losses = run(placed(*arguments))
    want_state, want_losses = run(make_placement("single"))
    assert len(set(want_losses.tolist())) == 10, "the losses change, so that equality says something"
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for name in ("params", "ema_params"):
        jax.tree.map(
            lambda ours, want: np.testing.assert_allclose(ours, want, atol=1e-5),
            getattr(state, name),
            getattr(want_state, name),
        )


@pytest.mark.parametrize("name, num_devices", [("pmap", 1), ("pmap", 4), ("sharded", 4)])
def test_the_loss_history_records_all_examples_in_their_order_on_any_number_of_devices(name, num_devices):
    empty = times.init(num_steps=5, length=3)
    arguments = {"loss": loss_by_history, "history": empty}
    state, losses = run(placed(name, num_devices), **arguments)
    want, want_losses = run(make_placement("single"), **arguments)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    np.testing.assert_array_equal(state.loss_history.counts, np.full(5, 3))
    np.testing.assert_allclose(state.loss_history.losses, want.loss_history.losses, rtol=1e-4)
    p = times.probabilities(want.loss_history)
    assert p[4] > 2 * p[0], "the history decides what is drawn"
    first, _ = run(placed(name, num_devices), num_steps=1, **arguments)
    assert first.loss_history.counts.sum() > 5, "more than one device's share"


def test_state_is_never_stacked_over_devices():
    state, _ = run(make_placement("pmap"), num_steps=1)
    assert jax.tree.map(jnp.shape, state.params) == {"in": (DIM, 16), "out": (16, DIM)}
    assert int(state.step) == 1


def test_a_sharded_state_lies_where_its_placement_says_and_stays_there(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SIZE", 1)
    placement = placed("sharded", 8, (2, 4, 1))
    state, _ = run(placement, num_steps=2)
    for tree in (state.params, state.ema_params, state.opt_state[0].mu):
        assert tree["in"].sharding.spec == PartitionSpec(None, "fsdp")
        assert tree["out"].addressable_shards[0].data.shape == (4, DIM)
    assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize("mesh_shape, message", [((3, -1, 1), "8 devices"), ((4, 1, 1), "8 devices")])
def test_a_mesh_of_another_number_of_devices_is_refused(mesh_shape, message):
    with pytest.raises(ValueError, match=message):
        make_placement("sharded", mesh_shape=mesh_shape)


@pytest.mark.parametrize(
    "path, shape, want",
    [
        ("params/down_1_res/conv_in/kernel", (3, 3, 64, 128), (None, None, "fsdp", "tensor")),
        ("opt_state/0/mu/down_1_res/conv_out/kernel", (3, 3, 128, 64), (None, None, "tensor", "fsdp")),
        ("params/mid_attn/qkv/kernel", (256, 768), ("fsdp", "tensor")),
        ("params/mid_attn/out/kernel", (256, 256), ("tensor", "fsdp")),
        ("params/text/token_embed/embedding", (50257, 512), (None, "fsdp")),
        ("params/label_embed/embedding", (1001, 770), (None, None)),
        ("params/conv_out/bias", (64,), ()),
    ],
)
def test_arrays_are_split_by_layer_and_shape(path, shape, want):
    assert sharding.spec(path, shape, fsdp=4, tensor=2) == PartitionSpec(*(want if any(want) else ()))


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

    for placement in (
        make_placement("single"),
        make_placement("pmap"),
        make_placement("sharded", mesh_shape=(2, 2, 2)),
    ):
        np.testing.assert_array_equal(placement.map(double)(np.float32(2), batch), batch["x"] * 2)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        run(make_placement("pmap"), num_steps=1, batch_size=12)


def test_an_unknown_placement_is_refused():
    with pytest.raises(ValueError, match="sharded_by_hand"):
        make_placement("sharded_by_hand")
