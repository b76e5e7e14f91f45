"""The train state and the train step, written once for every placement."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax import times
from diffusion_jax.keys import keys_per_example
from diffusion_jax.models import Params
from diffusion_jax.times import LossHistory
from diffusion_jax.training import ema
from diffusion_jax.training.placement import all_gather, all_mean, example_indices

Batch = dict[str, Array]
Metrics = dict[str, Array]
QUARTERS = 4  # of the training time, in which losses are told apart


class Record(NamedTuple):
    """What a loss was taken of, beside itself.

    t: the training times drawn.
    losses: before any importance weight.
    steps: of a table, where the times are drawn by a history of losses, which then takes them in.
    figures: more of each example, by name; their means are metrics.
    """

    t: Float[Array, "B"]
    losses: Float[Array, "B"]
    steps: Int[Array, "B"] | None = None
    figures: dict[str, Float[Array, "B"]] = {}


# (params, batch, keys [B], loss history) -> (losses [B], record); one that compares examples takes axis_name too.
LossPerExample = Callable[..., tuple[Float[Array, "B"], Record | None]]


class Guard(NamedTuple):
    """What became of steps that were not finite, counted from the run's beginning.

    skipped: steps that changed nothing; consecutive: those of them since the last that did.
    rollbacks: how often the run went back to a checkpoint; passed: batches that it then did not see again.
    """

    skipped: Int[Array, ""] = np.int32(0)
    consecutive: Int[Array, ""] = np.int32(0)
    rollbacks: Int[Array, ""] = np.int32(0)
    passed: Int[Array, ""] = np.int32(0)


class TrainState(NamedTuple):
    """All that training carries from step to step. Data order and noise follow from `next_batch` and the config's seed.

    loss_history: of a training time that is drawn by past losses; else ().
    more_ema: further averages of the parameters, in the order of the `Share`s that the step was made with.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema_params: Params
    loss_history: LossHistory | tuple[()] = ()
    more_ema: tuple[Params, ...] = ()
    guard: Guard = Guard()

    @property
    def next_batch(self) -> Int[Array, ""]:
        """The number of the batch that the next step sees, and of its noise."""
        return self.step + self.guard.passed


def init_state(
    init: Callable[[Key[Array, ""]], Params],
    optimizer: optax.GradientTransformation,
    seed: int,
    loss_history: LossHistory | tuple[()] = (),
    num_averages: int = 0,
    shardings: Callable[[TrainState], Any] | None = None,
) -> TrainState:
    """The state before the first step, one compiled function of the seed; its averages begin at the parameters.

    Args:
      init: key -> parameters.
      optimizer: the train step's.
      seed: of the parameters.
      loss_history: an empty one, where the training time is drawn by it.
      num_averages: how many averages there are beside the main one.
      shardings: a placement's (shapes -> where each array lies): the state is made there, never whole on one device.
    """

    def make(key: Key[Array, ""]) -> TrainState:
        params = init(key)
        # Copies: donating one buffer under two names is refused.
        main, *more = (jax.tree.map(jnp.copy, params) for _ in range(1 + num_averages))
        history, guard = (jax.tree.map(jnp.copy, tree) for tree in (loss_history, Guard()))
        return TrainState(jnp.int32(0), params, optimizer.init(params), main, history, tuple(more), guard)

    places = None if shardings is None else shardings(jax.eval_shape(make, jax.random.key(seed)))
    return jax.jit(make, out_shardings=places)(jax.random.key(seed))


def make_train_step(
    loss_per_example: LossPerExample,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    seed: int,
    accumulation: int = 1,
    more_averages: Sequence[ema.Share] = (),
    compares_examples: bool = False,
) -> Callable[[TrainState, Batch, str | None], tuple[TrainState, Metrics]]:
    """One step of gradient descent on a batch, as (state, batch, axis_name) -> (state, metrics).

    The noise of an example comes from a key folded from (seed, number of the batch, its index in the global batch): it is
    the same on one device and on many, in one piece and in several.

    A step whose loss or gradient is not finite changes nothing but `step` and the guard's counts.

    Args:
      loss_per_example: (params, batch, keys [B], loss history) -> (losses [B], what was drawn; None tells of nothing).
      optimizer: optax's, with clipping and schedule in it.
      ema_decay: see `ema.decay_at`.
      seed: of all noise.
      accumulation: pieces of the batch that are gone through one after the other, for as much less memory.
      more_averages: of `TrainState.more_ema`.
      compares_examples: whether the loss of an example depends on the others of its batch, wherever they lie: the loss is then
        given axis_name too, for `placement.all_gather`.

    Returns:
      The step; metrics are "loss", "grad_norm" (before clipping), "update_norm", "param_norm", all as they were computed,
      "loss_quarters" [2, 4]: for each quarter of the training time the sum of the losses there over the batch's size,
      and the share of the batch there; and the means of the record's figures.
    """

    def train_step(state: TrainState, batch: Batch, axis_name: str | None) -> tuple[TrainState, Metrics]:
        num_examples = len(jax.tree.leaves(batch)[0])
        # Folded twice: step + 1 keeps this stream apart from the one that made the parameters.
        batch_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.next_batch)
        keys = keys_per_example(batch_key, example_indices(num_examples, axis_name))

        of_all = {"axis_name": axis_name} if compares_examples else {}

        def gradient(batch: Batch, keys: Key[Array, "B"]) -> tuple[tuple[Float[Array, ""], Record | None], Params]:
            def mean_loss(params: Params) -> tuple[Float[Array, ""], Record | None]:
                losses, record = loss_per_example(params, batch, keys, state.loss_history, **of_all)
                return losses.mean(), record

            return jax.value_and_grad(mean_loss, has_aux=True)(state.params)

        (loss, record), grads = _in_pieces(gradient, accumulation, batch, keys)
        loss, grads = all_mean((loss, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        shares = [1 - ema.decay_at(state.step, ema_decay), *(share(state.step) for share in more_averages)]
        averages = zip((state.ema_params, *state.more_ema), shares, strict=True)
        main, *more = (ema.update(average, params, share) for average, share in averages)
        history = state.loss_history
        if record is not None and record.steps is not None:
            history = times.update(history, *all_gather((record.steps, record.losses), axis_name))

        metrics = {"loss": loss}
        for name, tree in (("grad_norm", grads), ("update_norm", updates), ("param_norm", params)):
            metrics[name] = optax.tree.norm(tree)
        metrics["loss_quarters"] = all_mean(_by_quarter(record), axis_name)
        figures = {} if record is None else {name: each.mean() for name, each in record.figures.items()}
        metrics |= all_mean(figures, axis_name)
        # Not of the updates too: all of them would have to be kept until the last is known, as large as the state again.
        # Of a finite gradient, whose squares did not overflow, the optimizer makes finite ones.
        ok = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        after = TrainState(state.step, params, opt_state, main, history, tuple(more), state.guard)
        after = jax.tree.map(lambda new, old: jnp.where(ok, new, old), after, state)
        return after._replace(step=state.step + 1, guard=_count(state.guard, ok)), metrics

    return train_step


def _in_pieces(gradient: Callable[..., Any], pieces: int, batch: Batch, keys: Key[Array, "B"]) -> Any:
    """`gradient` of the batch, ((loss, record), grads), as the mean over equal pieces, one after the other.

    Piece i is examples i, i + pieces, ...: where the batch is sharded, each piece is too, and nothing moves.
    """
    if pieces == 1:
        return gradient(batch, keys)
    size = len(keys)
    if size % pieces:
        raise ValueError(
            f"{size} examples cannot be gone through in {pieces} equal pieces: use a multiple of {pieces}."
        )

    def split(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(size // pieces, pieces, *x.shape[1:]), 0, 1)

    def joined(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(size, *x.shape[2:])

    def add(total: Any, piece: tuple[Batch, Key[Array, "b"]]) -> tuple[Any, Record | None]:
        (loss, record), grads = gradient(*piece)
        return jax.tree.map(jnp.add, total, (loss, grads)), record

    def go_through(parts: Any, unroll: int) -> Any:
        return jax.lax.scan(add, zeros, parts, unroll=unroll)

    parts = jax.tree.map(split, (batch, keys))
    (loss, _), grads = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, grads))
    # Of XLA's CPU compiler a convolution's gradient inside a loop takes tens of times as long as outside of one.
    unrolled, looped = (functools.partial(go_through, unroll=unroll) for unroll in (pieces, 1))
    total, records = jax.lax.platform_dependent(parts, cpu=unrolled, default=looped)
    loss, grads = jax.tree.map(lambda x: x / pieces, total)
    return (loss, jax.tree.map(joined, records)), grads


def _by_quarter(record: Record | None) -> Float[Array, "2 4"]:
    """For each quarter of the training time: the losses there over the batch's size, and the share of the batch there."""
    if record is None:
        return jnp.zeros((2, QUARTERS))
    quarter = jnp.clip(jnp.floor(QUARTERS * record.t), 0, QUARTERS - 1)
    member = quarter[:, None] == jnp.arange(QUARTERS)
    return jnp.stack([jnp.where(member, record.losses[:, None], 0), member]).mean(axis=1)


def _count(guard: Guard, ok: Bool[Array, ""]) -> Guard:
    return guard._replace(skipped=guard.skipped + ~ok, consecutive=jnp.where(ok, 0, guard.consecutive + 1))
