"""Several processes of two simulated devices each, joined by gloo: they train, sample and resume as one process does."""

import csv
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from diffusion_jax import processes
from diffusion_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
    "--config=configs/swiss_roll.py:debug",  # a network that compiles in seconds
    "--config.model.width=128",  # large enough to be sharded
    "--config.train.num_steps=10",
    "--config.train.log_every_steps=1",
    "--config.train.sample_every_steps=10",
    "--config.train.checkpoint_every_steps=5",
)
PLACEMENTS = {
    "pmap": ("--config.parallel.placement=pmap",),
    "sharded": ("--config.parallel.placement=sharded", "--config.parallel.mesh=2,2,1"),
}


def command(*arguments, count=1, devices=4, timeout=300):
    """Runs a command as `count` processes of `devices` devices each; returns what the first one and all others said."""
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    env = dict(os.environ, XLA_FLAGS=" ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = [f"--coordinator=localhost:{port}", f"--num_processes={count}"] if count > 1 else []
    running = [
        subprocess.Popen(
            [sys.executable, *arguments, *joined, *([f"--process_id={i}"] if count > 1 else [])],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count, said
    return [out for out, _ in said]


def losses(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def samples(checkpoint, out, **how):
    command("sample.py", f"--checkpoint={checkpoint}", f"--out={out}", "--num_samples=16", **how)
    return np.load(out / "samples.npz")["arr_0"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    command("train.py", *SMALL, f"--workdir={workdir}", devices=1)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_two_processes_train_and_sample_as_one(placement, alone, tmp_path):
    workdir = tmp_path / "run"
    first, second = command("train.py", *SMALL, *PLACEMENTS[placement], f"--workdir={workdir}", count=2, devices=2)
    assert "trained to step 10" in first and not second.replace("[Gloo]", "").strip().startswith("trained")
    want = losses(alone)
    assert len(set(want.values())) == 10, "the losses change, so that equality says something"
    np.testing.assert_allclose(list(losses(workdir).values()), list(want.values()), rtol=1e-4)
    ours, one = (
        samples(path, tmp_path / name, **how)
        for path, name, how in ((workdir, "ours", {"count": 2, "devices": 2}), (alone, "one", {"devices": 1}))
    )
    assert len(np.unique(one)) == one.size, "the samples differ from one another"
    np.testing.assert_allclose(ours, one, rtol=1e-3, atol=1e-4)
    assert (workdir / "samples" / "step_0000010.png").exists()


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one_and_back(alone, tmp_path):
    half, rest = (f"--config.train.num_steps={n}" for n in (5, 8))
    sharded = PLACEMENTS["sharded"]
    command("train.py", *SMALL, half, *sharded, f"--workdir={tmp_path}", count=2, devices=2)
    (said,) = command("train.py", *SMALL, rest, f"--workdir={tmp_path}", devices=1)
    assert "continues from step 5" in said
    first, _ = command("train.py", *SMALL, f"--workdir={tmp_path}", count=2, devices=2)
    assert "continues from step 8" in first
    np.testing.assert_allclose(list(losses(tmp_path).values()), list(losses(alone).values()), rtol=1e-4)


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
