"""XLA's choice of convolutions and glibc's memory, as the commands set them on a CPU."""

import fnmatch
import subprocess
import sys

import pytest

from diffusion_jax import cpu

EIGEN = f"{cpu.FLAG}=-individual_convolution"


@pytest.fixture
def x86_of(monkeypatch):
    def set_release(release, flags=None):
        monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(cpu.importlib.metadata, "version", lambda name: release)
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if flags is not None:
            monkeypatch.setenv("XLA_FLAGS", flags)
        cpu.choose_convolutions()
        return cpu.os.environ.get("XLA_FLAGS")

    return set_release


def test_releases_that_were_tried_are_told_and_others_not(x86_of):
    assert x86_of("0.10.2") == EIGEN
    assert x86_of("0.12.0.1") == EIGEN
    assert x86_of("0.9.2") is None
    assert x86_of("0.13.0") is None


def test_other_flags_stay_and_the_users_own_choice_wins(x86_of):
    assert x86_of("0.10.2", "--xla_dump_to=x") == f"--xla_dump_to=x {EIGEN}"
    assert x86_of("0.10.2", f"{cpu.FLAG}=-reduce") == f"{cpu.FLAG}=-reduce"


def test_the_installed_xla_knows_the_flag():
    code = "from diffusion_jax import cpu; cpu.choose_convolutions(); import jax; print(jax.numpy.ones(3).sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "3.0\n", done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_that_is_freed_is_not_faulted_in_again():
    code = """
import ctypes, resource, sys
from diffusion_jax import cpu
if sys.argv[1] == "keep":
    cpu.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():
    memory = libc.malloc(64 << 20)
    ctypes.memset(memory, 1, 64 << 20)
    libc.free(memory)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert 4 * faults["keep"] < faults["leave"], faults


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_a_steps_temporaries_are_not_faulted_in_again_on_threads_of_jax():
    code = """
import resource
from absl import flags
from diffusion_jax import cli
flags.FLAGS(["command"])
cli.start()
import jax, jax.numpy as jnp

def loss(w, y):
    for _ in range(4):
        y = jax.nn.silu(jax.lax.conv_general_dilated(y, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return y.sum()

step, faults = jax.jit(jax.grad(loss)), []
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(jnp.ones((3, 3, 32, 32)), jnp.ones((64, 32, 32, 32))).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # of the 26,000 pages of the temporaries


@pytest.mark.parametrize(
    "platforms, devices, expected",
    [("", [], True), ("", ["/dev/nvidia0"], False), ("", ["/dev/nvidiactl"], True), ("", ["/dev/vfio/7"], False),
     ("", ["/dev/accel0"], False), ("cpu", ["/dev/nvidia0"], True), ("cuda,cpu", [], False)],
)  # fmt: skip
def test_a_cpu_is_alone_where_nothing_else_is_there_or_asked_for(monkeypatch, platforms, devices, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(cpu.glob, "glob", lambda pattern: fnmatch.filter(devices, pattern))
    assert cpu.is_alone() is expected
