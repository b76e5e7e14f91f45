"""What every test runs under: the CPU, a compilation cache that survives between runs, and our own warnings as errors."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parent.parent

# Before the first import of jax. A value that is already set wins, so that `JAX_PLATFORMS=cuda pytest` works too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Eight simulated devices, so that placements are tested wherever the suite runs.
# Programs are compiled without optimisation: the suite compiles many and runs each a few times.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_configure(config):
    # Only warnings that point at our own lines: what a dependency says of itself is not ours to fix.
    config.addinivalue_line("filterwarnings", "error:::diffusion_jax")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Compiled programs are dropped with their module: a worker would keep gigabytes of them otherwise."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision inside the test: for measured orders and for round trips to the last digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_ranks():
    """Broadcasting between different ranks raises: a [B] that meets a [B, H, W, C] is a mistake, not a wish."""
    with jax.numpy_rank_promotion("raise"):
        yield
