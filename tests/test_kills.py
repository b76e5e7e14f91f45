"""Twenty kills at random moments of one run, each started again: nothing is lost but the steps since the last save."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from diffusion_jax import sampling
from diffusion_jax.training import checkpoint

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS, SAVE_EVERY, SAMPLE_EVERY = 240, 6, 8
PHASES = ("compile", "step", "save", "sample")
KILLS = 20
TIMEOUT = 300  # seconds, of one start


class Run:
    """train.py in a process of its own, watched from outside by what it prints and writes."""

    def __init__(self, workdir, cache):
        self.workdir, self.started = workdir, time.time()
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)}
        env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        words = ["train.py", "--config=configs/heartbeat.py:debug", f"--workdir={workdir}"]
        words += ["--config.parallel.placement=single", "--config.train.log_every_steps=1"]
        words += [f"--config.train.num_steps={NUM_STEPS}", f"--config.train.checkpoint_every_steps={SAVE_EVERY}"]
        words += [f"--config.train.sample_every_steps={SAMPLE_EVERY}"]
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.out, self.err = [], []
        self._readers = [
            threading.Thread(target=lambda stream=stream, lines=lines: lines.extend(iter(stream.readline, "")))
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def end(self):
        """Waits; the exit status."""
        status = self.process.wait(TIMEOUT)
        for reader in self._readers:
            reader.join()
        return status

    def printed(self, text):
        return any(text in line for line in self.out)

    def began_at(self):
        """The step from which this run went on, as it says."""
        said = re.search(r"the run (?:continues from step (\d+)|starts)", "".join(self.out))
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
        assert run.process.poll() is None and time.monotonic() < deadline, f"{phase} was missed:\n" + "".join(run.out)
        time.sleep(0.002)
    time.sleep(delay)
    run.process.kill()
    run.end()
    return run.phase()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(work directory, what happened at each kill, the last run, the same run straight)."""
    folder, rng, kills = tmp_path_factory.mktemp("kills"), np.random.default_rng(0), []
    cache, workdir = folder / "cache", folder / "killed"
    for phase in rng.permutation(np.repeat(PHASES, KILLS // len(PHASES))):
        run = Run(workdir, cache)
        was_in = kill_in(phase, run, rng)
        whole = max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)
        kills.append({"phase": was_in, "began": run.began_at(), "step": run.step(), "whole": whole, "err": run.err})
    last, straight = Run(workdir, cache), Run(folder / "straight", cache)
    assert last.end() == straight.end() == 0, "".join(last.err + straight.err)
    return workdir, kills, last, folder / "straight"


def test_twenty_kills_fell_into_every_phase(killed):
    phases = [kill["phase"] for kill in killed[1]]
    assert len(phases) == KILLS
    assert all(phases.count(phase) >= 2 for phase in PHASES), phases
    print("kills by phase:", {phase: phases.count(phase) for phase in PHASES})


def test_each_start_goes_on_from_the_last_whole_save_and_no_kill_loses_more_than_the_steps_since(killed):
    _, kills, last, _ = killed
    for kill, began in zip(kills, [kill["began"] for kill in kills[1:]] + [last.began_at()], strict=True):
        assert began == kill["whole"]
        in_the_works = SAVE_EVERY  # begun and not whole yet: the next save waits for it
        assert kill["step"] - began <= SAVE_EVERY + in_the_works
        assert not any("Traceback" in line or "damaged" in line for line in kill["err"])


def test_the_killed_run_ends_as_the_straight_one_bit_for_bit(killed):
    workdir, _, _, straight = killed
    ours, theirs = (
        json.loads((w / "checkpoints" / str(NUM_STEPS) / "checksums" / "metadata").read_text())
        for w in (workdir, straight)
    )
    assert ours == theirs
    assert len(ours["state"]) > len(ours["ema"]) > 0
    params = [sampling.load(str(w), {}).params for w in (workdir, straight)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    losses = [
        [(row["step"], row["loss"]) for row in csv.DictReader((w / "metrics.csv").open())] for w in (workdir, straight)
    ]
    assert losses[0] == losses[1]
    assert [int(step) for step, _ in losses[0]] == list(range(1, NUM_STEPS + 1))


def test_nothing_is_left_of_the_writes_that_were_interrupted(killed):
    workdir, _, _, _ = killed
    steps = [NUM_STEPS - 2 * SAVE_EVERY, NUM_STEPS - SAVE_EVERY, NUM_STEPS]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == [str(step) for step in steps]
    assert checkpoint.find(str(workdir))[1] == NUM_STEPS
