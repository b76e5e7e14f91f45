"""What the train step does beside descending: pieces of a batch, steps that are not finite, averages, losses by time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax import times
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.training import ema
from diffusion_jax.training.placement import PLACEMENTS, make_placement
from diffusion_jax.training.step import Guard, Record, init_state, make_train_step

DIM, BATCH, NUM_TABLE_STEPS = 6, 32, 5


def init(key):
    return {"w": jax.random.normal(key, (DIM, DIM)) / 3}


def loss_per_example(params, batch, keys, history):
    """Noise per example, of a size that a step drawn from the history says; infinite where the batch is."""
    steps, importance = times.draw(history, fold_in(keys, 0))
    t = times.step_time(steps, NUM_TABLE_STEPS)
    noisy = batch["x"] + t[:, None] * normal_per_example(fold_in(keys, 1), (DIM,))
    losses = jnp.mean((jnp.tanh(noisy @ params["w"]) - batch["x"]) ** 2, axis=-1)
    return importance * losses, Record(t, losses, steps)


def batch_of(number):
    return {"x": np.random.default_rng(number).normal(size=(BATCH, DIM)).astype(np.float32)}


SPOILT = batch_of(7) | {"x": np.where(np.arange(BATCH)[:, None] == 3, np.inf, batch_of(7)["x"])}
SHARES = (lambda step: 1 - ema.decay_at(step, 0.5), lambda step: ema.power_share(step, 2.0))


def start():
    return init_state(init, optax.adam(1e-2), 0, times.init(NUM_TABLE_STEPS, 2), num_averages=len(SHARES))


def placed(placement="single", **settings):
    step = make_train_step(loss_per_example, optax.adam(1e-2), 0.9, seed=0, more_averages=SHARES, **settings)
    return make_placement(placement).train(step)


def run(batches, placement="single", state=None, **settings):
    step, state, metrics = placed(placement, **settings), state or start(), []
    for batch in batches:
        state, values = step(state, batch)
        metrics.append(jax.device_get(values))
    return jax.device_get(state), metrics


def assert_close(ours, want, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), ours, want)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_batch_in_four_pieces_gives_the_large_batchs_step_in_every_placement(placement):
    batches = [batch_of(i) for i in range(4)]
    ours, metrics = run(batches, placement, accumulation=4)
    want, want_metrics = run(batches)
    assert_close(ours, want, rtol=2e-5, atol=2e-6)
    assert_close(metrics, want_metrics, rtol=2e-5)
    assert len({m["loss"].item() for m in metrics}) == 4


def test_records_of_pieces_are_in_the_order_of_the_batch():
    """Rows that overflow keep the last losses of the batch: which those are is told by their order."""
    ours, _ = run([batch_of(0)], accumulation=8)
    want, _ = run([batch_of(0)])
    np.testing.assert_array_equal(want.loss_history.counts, np.full(NUM_TABLE_STEPS, 2))
    assert_close(ours.loss_history, want.loss_history, rtol=1e-5)


def test_a_batch_that_cannot_be_cut_into_equal_pieces_is_refused():
    with pytest.raises(ValueError, match="32 examples cannot be gone through in 5 equal pieces"):
        run([batch_of(0)], accumulation=5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_step_that_is_not_finite_changes_nothing_but_the_step_and_the_counts(placement):
    before, _ = run([batch_of(0)], placement)
    after, metrics = run([batch_of(0), SPOILT], placement)
    assert not np.isfinite(metrics[1]["loss"])
    assert after.step == 2
    assert after.guard == Guard(1, 1, 0, 0)
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=before.step, guard=before.guard), before)


def test_a_gradient_that_overflows_is_skipped_though_its_loss_is_finite():
    def steep(params, batch, keys, history):
        return jnp.where(batch["x"][:, 0] > 0, 1e30 * params["w"][0, 0], params["w"][0, 0]), None

    step = make_placement("single").train(make_train_step(steep, optax.sgd(1.0), 0.9, seed=0))
    state, metrics = step(init_state(init, optax.sgd(1.0), 0), {"x": np.ones((BATCH, DIM), np.float32)})
    assert np.isfinite(metrics["loss"])
    assert state.guard.skipped == 1


def test_consecutive_skips_are_counted_from_the_last_good_step_and_training_goes_on():
    state, metrics = run([SPOILT, SPOILT, batch_of(0), SPOILT, batch_of(1)])
    assert state.guard == Guard(3, 0, 0, 0)
    state, _ = run([batch_of(0), SPOILT, SPOILT])
    assert state.guard == Guard(2, 2, 0, 0)
    assert np.isfinite(metrics[-1]["param_norm"])


def test_noise_moves_on_after_a_skipped_step_and_with_the_batches_passed_over():
    def losses(state, batches):
        return [m["loss"].item() for m in run(batches, state=state)[1]]

    first, again = losses(None, [batch_of(0)]), losses(None, [SPOILT, batch_of(0)])[1:]
    assert first != again
    passed_over = start()._replace(guard=Guard(passed=jnp.int32(1)))
    assert losses(passed_over, [batch_of(0)]) == again, "batch 1 and its noise, wherever the step stands"


def test_norms_are_those_of_the_update_and_of_the_parameters_after_it():
    before = start()
    w = np.asarray(before.params["w"])
    after, (metrics,) = run([batch_of(0)], state=before)
    np.testing.assert_allclose(metrics["update_norm"], np.linalg.norm(after.params["w"] - w), rtol=1e-4)
    np.testing.assert_allclose(metrics["param_norm"], np.linalg.norm(after.params["w"]), rtol=1e-6)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_losses_are_told_apart_by_the_quarter_of_their_time(placement):
    def loss(params, batch, keys, history):
        return 0 * batch["t"] + params["w"].sum(), Record(batch["t"], 10 + batch["t"])

    t = np.array([0.0, 0.1, 0.25, 0.3, 0.4, 0.76, 0.9, 1.0], np.float32)
    step = make_placement(placement).train(make_train_step(loss, optax.sgd(0.0), 0.9, seed=0))
    _, metrics = step(init_state(init, optax.sgd(0.0), 0), {"t": t})
    total, count = np.asarray(metrics["loss_quarters"], np.float64)
    np.testing.assert_allclose(count, np.array([2, 3, 0, 3]) / 8, rtol=1e-6)
    np.testing.assert_allclose(
        (total / np.maximum(count, 1e-9))[[0, 1, 3]], [10.05, 10 + 0.95 / 3, 10 + 2.66 / 3], rtol=1e-6
    )


def test_every_average_is_the_one_that_its_share_says():
    step, state, seen = placed(), start(), []
    for i in range(6):
        state, _ = step(state, batch_of(i))
        seen.append(np.asarray(state.params["w"]))
    first = np.asarray(start().params["w"])
    averages = [first, first, first]
    for i, w in enumerate(seen):
        shares = (1 - min(0.9, (1 + i) / (10 + i)), 1 - min(0.5, (1 + i) / (10 + i)), 1 - (1 - 1 / (i + 1)) ** 3)
        averages = [average + share * (w - average) for average, share in zip(averages, shares, strict=True)]
    ours = [state.ema_params["w"], *(average["w"] for average in state.more_ema)]
    np.testing.assert_allclose(ours, averages, rtol=1e-5, atol=1e-6)
