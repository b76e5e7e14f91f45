"""The training loop."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from PIL import Image

from diffusion_jax.training import goodput
from diffusion_jax.training.goodput import CHECKPOINTS, DATA, SAMPLES, Goodput
from diffusion_jax.training.hooks import MetricWriter, progress_bar
from diffusion_jax.training.step import QUARTERS, Guard, Metrics, TrainState

# Steps that are given to the devices before the one that they work at is done. With more, batches would pile up on the
# devices, and the wait for data would look longer than what it costs.
AHEAD = 2
STEP_METRICS = ("loss", "grad_norm", "update_norm", "param_norm")
METRICS = (
    *STEP_METRICS,
    *(f"loss_q{i}" for i in range(QUARTERS)),
    *("skipped_steps", "skipped_examples", "steps_per_second"),
    *(f"time_{name}" for name in goodput.NAMES),
)


class Cadence(NamedTuple):
    """When a run does what, in steps, 0 being never; it stops at num_steps, whatever the learning rate does, and then
    does once more what it does at all, and logs and saves in any case.

    evaluate_every_steps: metrics are logged then too.
    max_skipped_steps: as many in a row, seen where metrics are logged, and the run has diverged; 0 is no limit.
    """

    num_steps: int
    log_every_steps: int
    sample_every_steps: int
    checkpoint_every_steps: int
    snapshot_every_steps: int = 0
    max_skipped_steps: int = 0
    evaluate_every_steps: int = 0


class Hooks(NamedTuple):
    """What the loop calls.

    save: begins a checkpoint of a state; wait: blocks until what `save` began is on disk.
    metrics: where figures and pictures go.
    sample_grid: (step, EMA parameters) -> a picture; None where a model has nothing to show.
    snapshot: keeps the averages of a state; called where cadence.snapshot_every_steps is not 0.
    preempted: step -> whether to save and stop there; with several processes, the same on all of them.
    evaluate: EMA parameters -> figures by name, for metrics; None where there are none.
    skipped_examples: of this process's share, those since its start that could not be used.
    """

    save: Callable[[TrainState], None]
    wait: Callable[[], None]
    metrics: MetricWriter
    sample_grid: Callable[[int, Any], Image.Image] | None = None
    snapshot: Callable[[TrainState], None] = lambda state: None
    preempted: Callable[[int], bool] = lambda step: False
    skipped_examples: Callable[[], int] = lambda: 0
    evaluate: Callable[[Any], dict[str, float]] | None = None


class Diverged(Exception):
    """Too many steps in a row were not finite.

    step: the last of them; guard: its counts; last_loss: the last that was finite and logged, or None.
    """

    def __init__(self, step: int, guard: Guard, last_loss: float | None):
        super().__init__(f"steps {step - guard.consecutive + 1} to {step} were not finite")
        self.step, self.guard, self.last_loss = step, guard, last_loss


class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that the loop can save before it ends; a second one ends at once.

    Several processes must stop at the same step: there JAX takes SIGTERM, and says through `preempted` what they agreed on.
    """

    def __init__(self, preempted: Callable[[int], bool]) -> None:
        self.name: str | None = None
        self._preempted = preempted
        numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._note) for number in numbers}

    def _note(self, number: int, frame: Any) -> None:
        self.name = signal.Signals(number).name
        self.restore()

    def at(self, step: int) -> bool:
        """Whether to stop after a step."""
        if self.name is None and self._preempted(step):
            self.name = "preemption"
        return self.name is not None

    def restore(self) -> None:
        """Gives both signals their former meaning."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[dict[str, np.ndarray]],
    cadence: Cadence,
    hooks: Hooks,
    started: float,
) -> tuple[TrainState, str | None]:
    """Trains from the state's step to cadence.num_steps, or to a signal; saves in both cases.

    A state in the midst of skipped steps is not saved: it may be beyond what can be mended, and would push out a good one.
    Only at num_steps it is, if its parameters are finite.

    Args:
      state: where to begin; its buffers are donated.
      step: the placed train step.
      batches: from the state's next batch on.
      cadence: when to log, sample, save and stop.
      hooks: what is called then.
      started: `time.monotonic()` at the program's start, to tell the time to the first step.

    Returns:
      The last state, and the name of the signal that ended the run (None if it came to its end).

    Raises:
      Diverged: cadence.max_skipped_steps in a row were not finite.
    """
    stop, clock = StopSignal(hooks.preempted), Goodput(started)
    first_step = i = int(state.step)
    bar = progress_bar(first_step, cadence.num_steps)
    log = _Log(hooks.metrics, clock, bar, first_step, hooks.skipped_examples)
    try:
        while i < cadence.num_steps and not stop.at(i):
            with clock.spent(DATA):
                batch = next(batches)
            # What the loop moves between host and devices, it moves on purpose. (Compiling moves constants.)
            with jax.transfer_guard("allow" if i == first_step else "disallow"):
                state, values = step(state, batch)
            i += 1
            log.add(i, values)
            bar.update()
            last = i == cadence.num_steps
            figures = {}
            if hooks.evaluate and _due(cadence.evaluate_every_steps, i, last):
                with clock.spent(SAMPLES):
                    figures = hooks.evaluate(state.ema_params)
            if _due(cadence.log_every_steps, i) or last or figures:
                log.write(i, state.guard, cadence.max_skipped_steps, figures)
            if _due(cadence.snapshot_every_steps, i, last):
                with clock.spent(CHECKPOINTS):
                    hooks.snapshot(state)
            if hooks.sample_grid and _due(cadence.sample_every_steps, i, last):
                with clock.spent(SAMPLES):
                    hooks.metrics.image(i, hooks.sample_grid(i, state.ema_params))
            if _due(cadence.checkpoint_every_steps, i):
                with clock.spent(CHECKPOINTS):
                    _save_if_good(state, hooks.save)
        with clock.spent(CHECKPOINTS):
            _save_if_good(state, hooks.save, at_the_end=i == cadence.num_steps)
            hooks.wait()
        bar.write(clock.line())
    finally:
        stop.restore()
        bar.close()
    return state, stop.name


class _Log:
    """The figures of the steps since the last ones that were written."""

    def __init__(self, metrics: MetricWriter, clock: Goodput, bar: Any, first_step: int, skipped: Callable[[], int]):
        self._skipped = skipped
        self._metrics, self._clock, self._bar = metrics, clock, bar
        self._window, self._first, self._since, self._since_step = [], True, time.monotonic(), first_step
        self._last_loss: float | None = None

    def add(self, step: int, values: Metrics) -> None:
        """Takes in a step's metrics, without waiting for them but for those of AHEAD steps before."""
        self._window.append(values)
        if self._first:
            jax.block_until_ready(values)
            self._bar.write(f"start-up to the first step: {self._clock.begin():.1f} s")
            self._first, self._since, self._since_step = False, time.monotonic(), step
        elif len(self._window) > AHEAD:
            jax.block_until_ready(self._window[-1 - AHEAD])

    def write(self, step: int, guard: Guard, max_skipped_steps: int, figures: dict[str, float]) -> None:
        """Writes what was taken in, and the figures; raises Diverged after too many skipped steps."""
        window, guard = jax.device_get((self._window, guard))
        scalars, now = summary(window), time.monotonic()
        self._last_loss = loss = scalars.get("loss", self._last_loss)
        scalars |= {
            "skipped_steps": int(guard.skipped),
            "skipped_examples": self._skipped(),
            "steps_per_second": (step - self._since_step) / max(now - self._since, 1e-9),
        }
        scalars |= {f"time_{name}": share for name, share in self._clock.shares().items()} | figures
        self._metrics.write(step, scalars)
        shown = {} if loss is None else {"loss": f"{loss:.4f}"}
        self._bar.set_postfix(shown, goodput=f"{scalars['time_steps']:.0%}", skipped=scalars["skipped_steps"])
        self._window, self._since, self._since_step = [], now, step
        if 0 < max_skipped_steps <= guard.consecutive:
            raise Diverged(step, guard, loss)


def _due(every_steps: int, step: int, last: bool = False) -> bool:
    """Whether what is done every so many steps (0: never), and at the last, is done now."""
    return every_steps > 0 and (last or step % every_steps == 0)


def summary(window: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Means over the steps of a window that were not skipped; what none of them tells is left out."""
    good = [values for values in window if np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])]
    if not good:
        return {}
    names = [name for name in good[0] if name != "loss_quarters"]
    scalars = {name: float(np.mean([values[name] for values in good])) for name in names}
    total, share = np.sum([values["loss_quarters"] for values in good], axis=0)
    return scalars | {f"loss_q{i}": float(total[i] / share[i]) for i in range(QUARTERS) if share[i]}


def _save_if_good(state: TrainState, save: Callable[[TrainState], None], at_the_end: bool = False) -> None:
    if int(state.guard.consecutive) == 0 or (at_the_end and np.isfinite(jax.jit(optax.tree.norm)(state.params))):
        save(state)
