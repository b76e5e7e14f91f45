"""The train state and the train step, written once for every placement."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import times
from diffusion_jax.keys import keys_per_example
from diffusion_jax.models import Params
from diffusion_jax.times import LossHistory
from diffusion_jax.training import ema
from diffusion_jax.training.placement import all_gather, all_mean, example_indices

Batch = dict[str, Array]
# Steps of a table, and the losses there before any importance weight.
Record = tuple[Int[Array, "B"], Float[Array, "B"]]
LossPerExample = Callable[
    [Params, Batch, Key[Array, "B"], LossHistory | tuple[()]], tuple[Float[Array, "B"], Record | None]
]


class TrainState(NamedTuple):
    """All that training carries from step to step. Data order and noise follow from the step and the config's seed.

    loss_history: of a training time that is drawn by past losses; else ().
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema_params: Params
    loss_history: LossHistory | tuple[()] = ()


def init_state(
    init: Callable[[Key[Array, ""]], Params],
    optimizer: optax.GradientTransformation,
    seed: int,
    loss_history: LossHistory | tuple[()] = (),
) -> TrainState:
    """The state before the first step, one compiled function of the seed; its EMA begins at the parameters."""

    def make(key: Key[Array, ""]) -> TrainState:
        params = init(key)
        # A copy: donating one buffer under two names is refused.
        history = jax.tree.map(jnp.copy, loss_history)
        return TrainState(jnp.int32(0), params, optimizer.init(params), jax.tree.map(jnp.copy, params), history)

    return jax.jit(make)(jax.random.key(seed))


def make_train_step(
    loss_per_example: LossPerExample, optimizer: optax.GradientTransformation, ema_decay: float, seed: int
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """One step of gradient descent on a batch, as (state, batch, axis_name) -> (state, metrics).

    The noise of an example comes from a key folded from (seed, step, its index in the global batch): it is the same on
    one device and on many.

    Args:
      loss_per_example: (params, batch, keys [B], loss history) -> (losses [B], what to record in the history or None).
      optimizer: optax's, with clipping and schedule in it.
      ema_decay: see `ema.decay_at`.
      seed: of all noise.

    Returns:
      The step; metrics are "loss" and "grad_norm" (before clipping).
    """

    def train_step(state: TrainState, batch: Batch, axis_name: str | None) -> tuple[TrainState, dict[str, Any]]:
        num_examples = len(jax.tree.leaves(batch)[0])
        # Folded twice: step + 1 keeps this stream apart from the one that made the parameters.
        step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        keys = keys_per_example(step_key, example_indices(num_examples, axis_name))

        def mean_loss(params: Params) -> tuple[Float[Array, ""], Record | None]:
            losses, record = loss_per_example(params, batch, keys, state.loss_history)
            return losses.mean(), record

        (loss, record), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        loss, grads = all_mean((loss, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema.update(state.ema_params, params, ema.decay_at(state.step, ema_decay))
        history = state.loss_history
        if record is not None:
            history = times.update(history, *all_gather(record, axis_name))
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, ema_params, history), metrics

    return train_step
