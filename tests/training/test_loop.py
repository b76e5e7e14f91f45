"""The loop around a step: what it moves, what it tells, when it saves, when it gives up and where it goes back to."""

import csv
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint, loop
from diffusion_jax.training.goodput import NAMES, Goodput
from diffusion_jax.training.hooks import MetricWriter
from diffusion_jax.training.placement import make_placement
from diffusion_jax.training.rollback import go_back
from diffusion_jax.training.step import Record, init_state, make_train_step

BATCH = 8
OPTIMIZER = optax.sgd(0.1)


def loss_per_example(params, batch, keys, history):
    """The loss is the batch's own number, so that one that is not finite can be given; all times are in quarter 2."""
    losses = batch["x"] + 0 * params["w"]
    return losses, Record(jnp.full(BATCH, 0.6), losses)


def batches(numbers, seen=None):
    for number in numbers:
        if seen is not None:
            seen.append(number)
        yield {"x": np.full(BATCH, number, np.float32)}


class Run:
    """A run of the loop on batches of given numbers; remembers what was saved."""

    def __init__(self, workdir, step=None, sample_grid=None, evaluate=None):
        self.evaluate = evaluate
        self.workdir, self.saved, self.sample_grid = workdir, [], sample_grid
        self.step = step or make_placement("single").train(make_train_step(loss_per_example, OPTIMIZER, 0.9, seed=0))

    def train(self, numbers, cadence, state=None):
        state = state or init_state(lambda key: {"w": jnp.float32(1)}, OPTIMIZER, 0)
        names = (*loop.METRICS, "score") if self.evaluate else loop.METRICS
        metrics = MetricWriter(self.workdir, names, int(state.step))
        hooks = loop.Hooks(lambda s: self.saved.append(int(s.step)), lambda: None, metrics, self.sample_grid)
        hooks = hooks._replace(evaluate=self.evaluate)
        try:
            return loop.train(state, self.step, batches(numbers), cadence, hooks, time.monotonic())
        finally:
            metrics.close()

    def rows(self):
        return list(csv.DictReader((self.workdir / "metrics.csv").open()))


def cadence(num_steps, log=2, checkpoints=100, most=0):
    return loop.Cadence(num_steps, log, 100, checkpoints, max_skipped_steps=most)


NAN = np.nan


def test_figures_are_means_over_the_steps_since_the_last_and_blank_where_there_is_none(tmp_path):
    run = Run(tmp_path)
    run.train([1, 2, 3, 5], cadence(4))
    rows = run.rows()
    assert [(row["step"], row["loss"], row["loss_q2"]) for row in rows] == [("2", "1.5", "1.5"), ("4", "4", "4")]
    assert {row[f"loss_q{i}"] for row in rows for i in (0, 1, 3)} == {""}
    assert [row["param_norm"] for row in rows] == ["1", "1"]
    assert all(abs(sum(float(row[f"time_{name}"]) for name in NAMES) - 1) < 1e-3 for row in rows)


def test_an_evaluations_figures_stand_in_the_row_of_their_step_and_at_the_end(tmp_path):
    seen = []
    run = Run(tmp_path, evaluate=lambda ema_params: seen.append(float(ema_params["w"])) or {"score": len(seen)})
    run.train([1, 2, 3, 5, 7], cadence(5)._replace(evaluate_every_steps=3))
    found = [(row["step"], row["loss"], row["score"]) for row in run.rows()]
    assert found == [("2", "1.5", ""), ("3", "3", "1"), ("4", "5", ""), ("5", "7", "2")]
    assert seen == [1, 1]


def test_skipped_steps_are_counted_and_left_out_of_the_means(tmp_path):
    run = Run(tmp_path)
    run.train([1, NAN, NAN, NAN, 3, 4], cadence(6))
    assert [(row["loss"], row["skipped_steps"]) for row in run.rows()] == [("1", "1"), ("", "3"), ("3.5", "3")]


def test_a_transfer_that_the_step_makes_unasked_is_refused(tmp_path):
    compiled = jax.jit(make_train_step(loss_per_example, OPTIMIZER, 0.9, seed=0), static_argnums=2)
    on_the_way = []

    def step(state, batch):
        on_the_way.append(1)
        return compiled(state, batch, None)  # the batch is NumPy's

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        Run(tmp_path, step).train([1, 2, 3], cadence(3))
    assert len(on_the_way) == 2, "the first step compiles, and may"


def test_a_run_that_is_no_longer_finite_ends_where_it_is_logged_and_says_since_when(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(loop.Diverged, match="steps 4 to 6 were not finite") as failure:
        run.train([1, 2, 3, NAN, np.inf, NAN, NAN, NAN], cadence(8, checkpoints=1, most=3))
    assert (failure.value.step, failure.value.last_loss) == (6, 3.0)
    assert run.saved == [1, 2, 3], "never in the midst of skipped steps"


def test_fewer_skipped_steps_in_a_row_than_the_bound_are_no_end(tmp_path):
    run = Run(tmp_path)
    state, _ = run.train([1, NAN, NAN, 2, NAN, NAN], cadence(6, most=3))
    assert (int(state.step), int(state.guard.skipped)) == (6, 4)
    assert run.saved == [6], "the run's end is saved: its parameters are finite"


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    run, spoilt = Run(tmp_path), init_state(lambda key: {"w": jnp.float32(np.nan)}, OPTIMIZER, 0)
    run.train([1, 2], cadence(2, checkpoints=1), spoilt)
    assert run.saved == []


def test_goodput_says_where_the_time_went(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Goodput(started=90.0)
    assert clock.begin() == 10.0
    for name, seconds in (("data", 4.0), ("samples", 2.0), ("data", 1.0), ("checkpoints", 0.5)):
        with clock.spent(name):
            now[0] += seconds
        now[0] += 0.625  # a step
    assert clock.shares() == {"steps": 0.125, "startup": 0.5, "data": 0.25, "samples": 0.1, "checkpoints": 0.025}
    assert clock.line() == "goodput of 20 s: steps 12.5%, startup 50.0%, data 25.0%, samples 10.0%, checkpoints 2.5%"


def test_a_run_logs_the_share_of_its_pictures(tmp_path):
    def slow(step, params):
        time.sleep(0.3)
        return Image.new("RGB", (8, 8))

    run = Run(tmp_path, sample_grid=slow)
    run.train([1, 2, 3, 4], loop.Cadence(4, 4, 2, 100))
    assert 0.02 < float(run.rows()[-1]["time_samples"]) < 1


def test_no_steps_between_is_never_and_logs_and_saves_at_the_end(tmp_path):
    def refuse(*_):
        raise AssertionError("asked for never")

    run = Run(tmp_path, sample_grid=refuse, evaluate=refuse)
    run.train([1, 2, 4, 5], loop.Cadence(4, 0, 0, 0))
    assert ([row["loss"] for row in run.rows()], run.saved) == (["3"], [4])


def with_rollbacks(workdir, numbers, num_steps, most):
    """As training/run.py does: from the last checkpoint if there is one, and back to it when the run diverges."""
    template = jax.eval_shape(lambda: init_state(lambda key: {"w": jnp.float32(1)}, OPTIMIZER, 0))
    places = make_placement("single").shardings(template)
    checkpoints, seen = checkpoint.Checkpoints(workdir), []
    step = make_placement("single").train(make_train_step(loss_per_example, OPTIMIZER, 0.9, seed=0))
    state = init_state(lambda key: {"w": jnp.float32(1)}, OPTIMIZER, 0)
    if checkpoints.latest():
        state = checkpoints.restore(checkpoints.latest(), template, places)
    try:
        while True:
            metrics = MetricWriter(workdir, loop.METRICS, int(state.step))
            hooks = loop.Hooks(lambda s: checkpoints.save(s, {}, None), checkpoints.wait, metrics)
            source = batches(numbers[int(state.next_batch) :], seen)
            try:
                plan = loop.Cadence(num_steps, 1, 100, 4, max_skipped_steps=2)
                state, _ = loop.train(state, step, source, plan, hooks, time.monotonic())
                return jax.device_get(state), seen
            except loop.Diverged as failure:
                state = go_back(failure, most, checkpoints, template, places)
            finally:
                metrics.close()
    finally:
        checkpoints.close()


NUMBERS = [1, 2, 3, 4, 5, NAN, NAN, 8, NAN, NAN, 11, 12, 13, 14, 15, 16]


def test_a_diverged_run_goes_back_to_its_checkpoint_and_past_the_batches_since(tmp_path, capsys):
    state, seen = with_rollbacks(tmp_path, NUMBERS, 8, most=2)
    np.testing.assert_array_equal(seen, NUMBERS[:14])
    assert "steps 6 to 7 were not finite: goes back to step 4 (number 1 of at most 2)" in capsys.readouterr().out
    assert (int(state.step), int(state.guard.passed), int(state.guard.rollbacks)) == (8, 6, 2)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["step"], row["loss"]) for row in rows[4:]] == [("5", "11"), ("6", "12"), ("7", "13"), ("8", "14")]


def test_a_run_that_went_back_resumes_exactly(tmp_path):
    straight, _ = with_rollbacks(tmp_path / "straight", NUMBERS, 9, most=2)
    with_rollbacks(tmp_path / "resumed", NUMBERS, 8, most=2)
    resumed, seen = with_rollbacks(tmp_path / "resumed", NUMBERS, 9, most=2)
    assert seen == [15]
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


def test_a_run_that_may_go_back_no_more_ends_with_what_to_try_in_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        with_rollbacks(tmp_path, NUMBERS, 8, most=1)
    text = str(error.value)
    for words in (
        "steps 6 to 7 were",
        "was 8",
        f"{tmp_path}/checkpoints/4",
        "config.train.rollbacks=4",
        "learning_rate",
    ):
        assert words in text
    assert "\n" not in text
    with pytest.raises(UserError, match="none was finite.*no checkpoint yet"):
        with_rollbacks(tmp_path / "at once", [NAN] * 4, 4, most=1)
