"""Several processes of two simulated devices each, joined by gloo: they train, sample and resume as one process does."""

import csv
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import several
from safetensors.numpy import load_file

from configs import scenes
from diffusion_jax import build, processes
from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 300  # seconds, of one start
PMAP = {"parallel.placement": "pmap"}
SHARDED = {"parallel.placement": "sharded", "parallel.mesh": (2, 2, 1)}
SINGLE = {"parallel.placement": "single"}
PLACEMENTS = {"pmap": PMAP, "sharded": SHARDED}
SPOILT, ONE_ROLLBACK = (6, 7), {"train.max_skipped_steps": 2, "train.rollbacks": 1}


def start(*words):
    """A command as two processes of two devices each."""
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    env = os.environ | {"XLA_FLAGS": " ".join([*kept, "--xla_force_host_platform_device_count=2"])}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        joined = [f"--coordinator=localhost:{free.getsockname()[1]}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [sys.executable, *words, *joined, f"--process_id={i}"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def end(running, status):
    """Waits; what each said."""
    try:
        said = [process.communicate(timeout=TIMEOUT) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [status] * 2, said
    return [out for out, _ in said]


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(workdir):
    return [float(row["loss"]) for row in rows(workdir)]


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def preempted(workdir):
    """A run of which the second process gets SIGTERM after a few steps; the step that was saved."""
    fields = PMAP | {"train.num_steps": 1_000_000, "train.checkpoint_every_steps": 1_000_000}
    running, deadline = start("train.py", *several.as_flags(fields), f"--workdir={workdir}"), time.monotonic() + TIMEOUT
    while not (workdir / "metrics.csv").exists() or len(rows(workdir)) < 3:
        assert time.monotonic() < deadline and {process.poll() for process in running} == {None}
        time.sleep(0.01)
    running[1].send_signal(signal.SIGTERM)
    first, second = end(running, status=143)
    (step,) = saved_steps(workdir)
    assert f"preemption: saved step {step} in" in first and "preemption" not in second
    return step


def compared(folder):
    """What `several.evaluate` compares: pictures, and a checkpoint with parameters drawn at random that makes some."""
    if not (folder / "pictures").exists():
        rng, config = np.random.default_rng(0), scenes.get_config("debug")
        config.update_from_flattened_dict({"model.condition": "none", "data.image_size": 16, "sample.num_steps": 2})
        template = jax.eval_shape(build.model(config, None).network.init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: np.asarray(0.2 * rng.normal(size=leaf.shape), np.float32), template)
        checkpoint.write_weights(folder / "pictures", params, config.to_dict(), None)
        for name, count in (("real", 21), ("samples", 18)):
            np.savez(folder / f"{name}.npz", rng.integers(0, 256, (count, 16, 16, 3), np.uint8))
    return {"checkpoint": f"{folder}/pictures", "samples": f"{folder}/samples.npz", "real": f"{folder}/real.npz"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the runs of this module wrote; each run's folder by its name, and what the first of two processes said of it.

    alone, alone_spoilt: one process of one device. pmap, sharded, spoilt: two processes. stopped: preempted, and gone on with
    to where pmap goes at once. elastic: one process until step 3, two until 6, one until 10.
    """
    folder = tmp_path_factory.mktemp("runs")
    beyond = {"train.num_steps": max(preempted(folder / "stopped") + 3, 10), "train.checkpoints_to_keep": 1_000_000}
    elastic = str(folder / "elastic")
    several.train(folder / "alone", SINGLE)
    several.sample(folder / "alone", folder / "alone_samples")
    several.train(folder / "alone_spoilt", SINGLE | ONE_ROLLBACK, SPOILT)
    several.train(elastic, SINGLE | {"train.num_steps": 3})
    jobs = [
        ("train", {"workdir": f"{folder}/pmap", "fields": PMAP | beyond | {"train.checkpoint_every_steps": 10}}),
        ("train", {"workdir": f"{folder}/stopped", "fields": PMAP | beyond}),
        ("train", {"workdir": f"{folder}/sharded", "fields": SHARDED}),
        ("train", {"workdir": f"{folder}/spoilt", "fields": SHARDED | ONE_ROLLBACK, "spoilt": SPOILT}),
        ("train", {"workdir": elastic, "fields": SHARDED | {"train.num_steps": 6}}),
        *(("sample", {"workdir": f"{folder}/{p}/checkpoints/10", "out": f"{folder}/{p}_samples"}) for p in PLACEMENTS),
        ("evaluate", compared(folder) | {"out": f"{folder}/figures"}),
    ]
    first, second = end(start(several.__file__, f"--jobs={json.dumps(jobs)}"), status=0)
    assert not second.replace("[Gloo]", "").strip().startswith("==")
    for part in first.split("== ")[1:]:
        workdir, _, text = part.partition("\n")
        (folder / f"{pathlib.Path(workdir).name}.txt").write_text(text)
    several.train(elastic, SINGLE)
    several.evaluate(**compared(folder), out=folder / "alone_figures")
    return folder


def said(workdir):
    """By the first of two processes in their last run there."""
    return workdir.with_suffix(".txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_two_processes_train_and_sample_as_one(placement, folder):
    want = losses(folder / "alone")
    assert len(set(want)) == 10, "the losses change, so that equality says something"
    np.testing.assert_allclose(losses(folder / placement)[:10], want, rtol=1e-4)
    one, ours = (np.load(folder / f"{name}_samples" / "samples.npz")["arr_0"] for name in ("alone", placement))
    assert len(np.unique(one)) == one.size, "the samples differ from one another"
    np.testing.assert_allclose(ours, one, rtol=1e-3, atol=1e-4)
    assert f"trained to step {(last := saved_steps(folder / placement)[-1])}" in said(folder / placement)
    assert (folder / placement / "samples" / f"step_{last:07d}.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_two_processes_write_the_snapshots_of_averages_that_one_writes(placement, folder):
    for step in (5, 10):
        ours, one = (load_file(folder / w / "ema_snapshots" / f"{step:07d}.safetensors") for w in (placement, "alone"))
        assert ours.keys() == one.keys() and {name.partition("/")[0] for name in one} == {"0.05"}
        for name, want in one.items():
            np.testing.assert_allclose(ours[name], want, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(folder):
    one, ours = (json.loads((folder / name / "figures.json").read_text()) for name in ("alone_figures", "figures"))
    for (alone,), (together,) in zip(one, ours, strict=True):
        assert together.keys() == alone.keys() == {"fid", "kid", "precision", "recall", "density", "coverage"}
        for name, value in alone.items():
            np.testing.assert_allclose(together[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two_and_back(folder):
    assert "continues from step 3" in said(folder / "elastic")
    assert "trained to step 6" in said(folder / "elastic")
    np.testing.assert_allclose(losses(folder / "elastic"), losses(folder / "alone"), rtol=1e-4)


@pytest.mark.slow
def test_batches_that_spoil_one_process_take_both_back_to_their_checkpoint(folder):
    assert "steps 7 to 8 were not finite: goes back to step 5 (number 1 of at most 1)" in said(folder / "spoilt")
    ours, one, unspoilt = (rows(folder / name) for name in ("spoilt", "alone_spoilt", "alone"))
    assert [row["step"] for row in ours] == [str(step) for step in range(1, 11)]
    np.testing.assert_allclose(losses(folder / "spoilt"), losses(folder / "alone_spoilt"), rtol=1e-4)
    assert [row["loss"] for row in one[:5]] == [row["loss"] for row in unspoilt[:5]]
    assert one[5]["loss"] != unspoilt[5]["loss"], "other batches than those of before"


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_a_step_on_both_and_the_run_ends_as_the_straight_one(folder):
    stopped, straight = folder / "stopped", folder / "pmap"
    at, *_, last = (int(step) for step in re.findall(r"(?:from|to) step (\d+)", said(stopped)))
    assert 3 <= at < last == saved_steps(straight)[-1]
    ours, theirs = (
        json.loads((w / "checkpoints" / str(last) / "checksums" / "metadata").read_text()) for w in (stopped, straight)
    )
    assert ours["state"] == theirs["state"] and ours["ema"] == theirs["ema"]
    assert len(ours["state"]) > len(ours["ema"]) > 0
    assert [row["loss"] for row in rows(stopped)] == [row["loss"] for row in rows(straight)]
    assert len(rows(straight)) == last


@pytest.mark.parametrize(
    "variables, several",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # a batch script's own shell, outside srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_cluster_is_known_by_its_variables(variables, several, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.several_by_environment() == several


@pytest.mark.parametrize("given", [("host:1", None, None), (None, 2, 0), ("host:1", 2, None)])
def test_half_an_address_is_refused(given):
    with pytest.raises(UserError, match="go together"):
        processes.join("auto", *given)
