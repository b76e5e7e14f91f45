"""What happens to a run whose steps are no longer finite: back to its last good checkpoint, or an end that says what to try."""

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.loop import Diverged
from diffusion_jax.training.step import Guard, TrainState


def go_back(
    failure: Diverged, most: int, checkpoints: Checkpoints, template: TrainState, shardings: TrainState
) -> TrainState:
    """The state to go on from: the last good checkpoint's, which passes over the batches and the noise seen since.

    It counts that in its guard, so that what follows is a function of the state alone and resumes exactly.

    Args:
      failure: how the run ended.
      most: how often a run may go back.
      checkpoints: the run's.
      template, shardings: see `Checkpoints.restore`.

    Raises:
      UserError: it has gone back that often, or there is no checkpoint.
    """
    failure.__traceback__ = None  # its frames hold a state, and the devices need not hold two
    checkpoints.wait()
    newest, before = checkpoints.latest(), failure.guard
    if newest is None or int(before.rollbacks) >= most:
        raise UserError(_report(failure, newest, checkpoints))
    state = checkpoints.restore_newest(newest, template, shardings)
    step = int(state.step)
    print(
        f"{failure}: goes back to step {step} (number {before.rollbacks + 1} of at most {most}), past the batches until there."
    )
    passed = before.passed + failure.step - step
    guard = Guard(before.skipped, np.int32(0), before.rollbacks + 1, passed)
    placed = jax.tree.map(lambda x, old: jax.device_put(np.int32(x), old.sharding), guard, state.guard)
    return state._replace(guard=placed)


def _report(failure: Diverged, newest: int | None, checkpoints: Checkpoints) -> str:
    lost = "none was finite" if failure.last_loss is None else f"the last finite one logged was {failure.last_loss:.4g}"
    where, again = "there is no checkpoint yet", ""
    if newest is not None:
        where = f"the last good checkpoint is {checkpoints.folder}/{newest}"
        again = (
            f"Go back to it, past these batches, with --config.train.rollbacks={int(failure.guard.rollbacks) + 3}; or "
        )
    return (
        f"{failure} (loss or gradient; of the losses {lost}), so the run has stopped; {where}. {again or 'Better '}start anew "
        "with a smaller config.optimizer.learning_rate, a longer warmup_steps, a clip_norm, or config.model.dtype=float32."
    )
