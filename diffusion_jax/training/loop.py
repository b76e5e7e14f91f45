"""The training loop."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from diffusion_jax.training.hooks import MetricWriter, progress_bar
from diffusion_jax.training.step import TrainState


class Cadence(NamedTuple):
    """When a run does what, in steps; it stops at num_steps, whatever the learning rate does."""

    num_steps: int
    log_every_steps: int
    sample_every_steps: int
    checkpoint_every_steps: int


class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that the loop can save before it ends; a second one ends at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: Any) -> None:
        self.name = signal.Signals(number).name
        self.restore()

    def restore(self) -> None:
        """Gives both signals their former meaning."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[dict[str, np.ndarray]],
    cadence: Cadence,
    save: Callable[[TrainState], None],
    wait: Callable[[], None],
    metrics: MetricWriter,
    sample_grid: Callable[[int, Any], Image.Image] | None,
    started: float,
) -> tuple[TrainState, str | None]:
    """Trains from the state's step to cadence.num_steps, or to a signal; saves in both cases.

    Args:
      state: where to begin; its buffers are donated.
      step: the placed train step.
      batches: from the state's step on.
      cadence: when to log, sample, save and stop.
      save: begins a checkpoint of a state.
      wait: blocks until what `save` began is on disk.
      metrics, sample_grid: where to show; None where a model has nothing to show.
      started: `time.monotonic()` at the program's start, to tell the time to the first step.

    Returns:
      The last state, and the name of the signal that ended the run (None if it came to its end).
    """
    stop = StopSignal()
    first_step = i = int(state.step)
    bar = progress_bar(first_step, cadence.num_steps)
    pending, since, since_step = [], time.monotonic(), first_step
    try:
        while i < cadence.num_steps and stop.name is None:
            state, values = step(state, next(batches))
            i += 1
            if i == first_step + 1:
                jax.block_until_ready(values)
                bar.write(f"start-up to the first step: {time.monotonic() - started:.1f} s")
                since, since_step = time.monotonic(), i
            pending.append(values)
            bar.update()
            last = i == cadence.num_steps
            if i % cadence.log_every_steps == 0 or last:
                means = {name: float(np.mean([v[name] for v in jax.device_get(pending)])) for name in values}
                now = time.monotonic()
                rate = (i - since_step) / max(now - since, 1e-9)
                metrics.write(i, {**means, "steps_per_second": rate})
                bar.set_postfix(loss=f"{means['loss']:.4f}")
                pending, since, since_step = [], now, i
            if sample_grid and (i % cadence.sample_every_steps == 0 or last):
                metrics.image(i, sample_grid(i, state.ema_params))
            if i % cadence.checkpoint_every_steps == 0:
                save(state)
    finally:
        stop.restore()
        bar.close()
    save(state)
    wait()
    return state, stop.name
