"""Twenty kills at random moments of one run, each started again: nothing is lost but the steps since the last save."""

import concurrent.futures
import csv
import json
import multiprocessing
import re
import time

import forked
import jax
import numpy as np
import pytest

from diffusion_jax import sampling
from diffusion_jax.training import checkpoint

pytestmark = pytest.mark.slow
NUM_STEPS, SAVE_EVERY, SAMPLE_EVERY = 144, 6, 8
PHASES = ("compile", "step", "save", "sample")
KILLS, TOGETHER = 20, 2  # in as many runs beside each other
TIMEOUT = 300  # seconds, of one start


class Run:
    """train.py in a process of its own, watched from outside by what it prints and writes."""

    def __init__(self, workdir):
        self.workdir, self.started = workdir, time.time()
        self._said = workdir.with_name(f"{workdir.name}_{time.monotonic_ns()}")
        words = ["--config=configs/heartbeat.py:debug", f"--workdir={workdir}", "--config.parallel.placement=single"]
        words += ["--config.train.log_every_steps=1", f"--config.train.num_steps={NUM_STEPS}"]
        words += [f"--config.train.checkpoint_every_steps={SAVE_EVERY}"]
        words += [f"--config.train.sample_every_steps={SAMPLE_EVERY}"]
        self.process = multiprocessing.get_context("forkserver").Process(
            target=forked.train, args=(words, str(self._said))
        )
        self.process.start()

    def end(self):
        """Waits; the exit status."""
        self.process.join(TIMEOUT)
        return self.process.exitcode

    @property
    def out(self):
        return self._text("out")

    @property
    def err(self):
        return self._text("err")

    def _text(self, name):
        path = self._said.with_name(f"{self._said.name}.{name}")
        return path.read_text() if path.exists() else ""

    def printed(self, text):
        return text in self.out

    def began_at(self):
        """The step from which this run went on, as it says."""
        said = re.search(r"the run (?:continues from step (\d+)|starts)", self.out)
        return None if said is None else int(said[1] or 0)

    def step(self):
        """The last step that this run has logged; 0 before its first."""
        path = self.workdir / "metrics.csv"
        if not self.printed("start-up to the first step") or not path.exists():
            return 0
        lines = path.read_text().split("\n")[1:-1]
        return int(lines[-1].split(",")[0]) if lines else 0

    def phase(self):
        """Where it is. A step is logged, then shown, then saved."""
        step = self.step()
        if not step:
            return "compile" if self.printed("writes to") else "start"
        if any(map(self._is_new, self.workdir.glob("checkpoints/*.orbax-checkpoint-tmp"))):
            return "save"
        shown = self.workdir / "samples" / f"step_{step:07d}.png"
        return "sample" if step % SAMPLE_EVERY == 0 and not self._is_new(shown) else "step"

    def _is_new(self, path):
        try:
            return path.stat().st_mtime > self.started
        except OSError:
            return False


def kill_in(phase, run, rng):
    """Kills a run at a random moment of a phase; returns the phase that it was in, which may be the next one by then."""
    later = rng.integers(1, 8) if phase == "step" else 1  # steps; the first save and sample of a run are its longest
    delay = rng.uniform(0, {"compile": 0.4, "step": 0.005, "save": 0.04, "sample": 0.1}[phase])
    deadline = time.monotonic() + TIMEOUT
    while not (run.phase() == phase and (phase == "compile" or run.step() >= run.began_at() + later)):
        assert run.process.is_alive() and time.monotonic() < deadline, f"{phase} was missed:\n{run.out}{run.err}"
        time.sleep(0.002)
    time.sleep(delay)
    run.process.kill()
    run.end()
    return run.phase()


def kill_often(workdir, phases, rng):
    """Starts a run again and again, each time until a kill in the next of the phases; what happened at each."""
    kills = []
    for phase in phases:
        run = Run(workdir)
        was_in = kill_in(phase, run, rng)
        whole = max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)
        kills.append({"phase": was_in, "began": run.began_at(), "step": run.step(), "whole": whole, "err": run.err})
    return kills


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """([(work directory, what happened at each kill, its last run)], the work directory of the same run straight)."""
    folder, rng = tmp_path_factory.mktemp("kills"), np.random.default_rng(0)
    parts = rng.permutation(np.repeat(PHASES, KILLS // len(PHASES))).reshape(TOGETHER, -1)
    workdirs = [folder / f"killed_{i}" for i in range(TOGETHER)]
    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
        patch.chdir(forked.ROOT)
        patch.setenv("PYTHONPATH", str(forked.ROOT))
        patch.setenv(
            "PYTHONWARNINGS", "ignore:resource_tracker"
        )  # of semaphores that a killed process left, as it must
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        multiprocessing.set_forkserver_preload(["diffusion_jax.training.run", "forked"])
        kills = list(pool.map(kill_often, workdirs, parts, rng.spawn(TOGETHER)))
        last, straight = [Run(workdir) for workdir in workdirs], Run(folder / "straight")
        for run in (*last, straight):
            assert run.end() == 0, run.out + run.err
    return list(zip(workdirs, kills, last, strict=True)), folder / "straight"


def test_twenty_kills_fell_into_every_phase(killed):
    phases = [kill["phase"] for _, kills, _ in killed[0] for kill in kills]
    assert len(phases) == KILLS
    assert all(phases.count(phase) >= 2 for phase in PHASES), phases
    print("kills by phase:", {phase: phases.count(phase) for phase in PHASES})


def test_each_start_goes_on_from_the_last_whole_save_and_no_kill_loses_more_than_the_steps_since(killed):
    for _, kills, last in killed[0]:
        for kill, began in zip(kills, [kill["began"] for kill in kills[1:]] + [last.began_at()], strict=True):
            assert began == kill["whole"]
            in_the_works = SAVE_EVERY  # begun and not whole yet: the next save waits for it
            assert kill["step"] - began <= SAVE_EVERY + in_the_works
            assert "Traceback" not in kill["err"] and "damaged" not in kill["err"]


@pytest.mark.parametrize("which", range(TOGETHER))
def test_a_killed_run_ends_as_the_straight_one_bit_for_bit(killed, which):
    workdirs = killed[0][which][0], killed[1]
    ours, theirs = (
        json.loads((w / "checkpoints" / str(NUM_STEPS) / "checksums" / "metadata").read_text()) for w in workdirs
    )
    assert ours == theirs
    assert len(ours["state"]) > len(ours["ema"]) > 0
    params = [sampling.load(str(w), {}).params for w in workdirs]
    jax.tree.map(np.testing.assert_array_equal, *params)
    losses = [[(row["step"], row["loss"]) for row in csv.DictReader((w / "metrics.csv").open())] for w in workdirs]
    assert losses[0] == losses[1]
    assert [int(step) for step, _ in losses[0]] == list(range(1, NUM_STEPS + 1))


def test_nothing_is_left_of_the_writes_that_were_interrupted(killed):
    steps = [NUM_STEPS - 2 * SAVE_EVERY, NUM_STEPS - SAVE_EVERY, NUM_STEPS]
    for workdir, _, _ in killed[0]:
        assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == steps
        assert checkpoint.find(str(workdir))[1] == NUM_STEPS
