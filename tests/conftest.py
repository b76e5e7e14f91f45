"""What every test runs under: the CPU, a compilation cache that survives between runs, and our own warnings as errors."""

import importlib.metadata
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
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
# Loops emitted at once take half as long to compile as by way of MLIR. XLA refuses flags that it does not know: only the
# release that was tried is told.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

import jax  # noqa: E402
import pytest  # noqa: E402

# Modules that take longest, longest first: they begin first, so that no worker is left alone with one at the end.
LONGEST = (
    "test_samplers",
    "test_run",
    "test_configs",
    "test_processes",
    "test_kills",
    "test_stages",
    "test_openai",
    "test_plan",
    "test_sampler_orders",
)


def pytest_configure(config):
    # Only warnings that point at our own lines: what a dependency says of itself is not ours to fix.
    config.addinivalue_line("filterwarnings", "error:::diffusion_jax")


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


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
