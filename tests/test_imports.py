"""Imports run one way, and each dependency stays in its own part of the house. Read from the source, so nothing is run."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "diffusion_jax"

# The mathematical core, from the bottom up: a module imports from the layers below its own and from nowhere else.
CORE = [
    {"schedules", "keys", "weights"},
    {"predictions", "times", "grids", "discrete"},
    {"denoiser", "posterior"},
    {"guidance", "likelihood", "samplers"},
    {"losses"},
    {"editing", "samplers.ddim", "samplers.multistep"}
    | {f"samplers.{name}" for name in ("ancestral", "euler", "heun", "midpoint")},
    {
        f"samplers.{name}"
        for name in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_ancestral", "lms", "plms", "unipc")
    },
]
CORE_DEPENDENCIES = {"jax", "numpy", "jaxtyping"}
# Who may import what stands far from the core.
FLAX = "models"
BUILD = {"build", *(f"build.{name}" for name in ("clip", "data", "models", "sampling", "training"))}
CONFIG_READERS = {
    *BUILD,
    "cli",
    "sampling.loading",
    "training.beginning",
    "training.run",
    "plan.__main__",
    "plan.layout",
    "plan.recipe",
}


def imports_of(path):
    """Dotted names of all that a file imports, at any depth; `from a import b` gives a.b (b may be a module)."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(path):
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def inside(name):
    """Modules of the package that a module imports, without its own package's root."""
    found = set()
    for imported in imports_of(FILES[name]):
        head, _, tail = imported.partition(".")
        while head == PACKAGE and tail:
            if tail in FILES:
                found.add(tail)
                break
            tail = tail.rpartition(".")[0]
    return found


def outside(name):
    """Top-level names of other libraries that a module imports."""
    return {imported.split(".")[0] for imported in imports_of(FILES[name])} - {PACKAGE} - set(sys.stdlib_module_names)


def reached_from(name):
    seen, waiting = set(), [name]
    while waiting:
        for imported in inside(waiting.pop()) - seen:
            seen.add(imported)
            waiting.append(imported)
    return seen


CORE_NAMES = [name for layer in CORE for name in sorted(layer)]


def test_the_walk_sees_what_is_there():
    assert {"schedules", "samplers", "samplers.ddim", "build"} <= set(FILES)
    assert inside("samplers.ddim") == {"keys", "samplers", "schedules"}
    assert "jax" in outside("schedules")


def test_every_sampler_has_its_place_in_the_core():
    assert {name for name in FILES if name.startswith("samplers.")} <= set(CORE_NAMES)


@pytest.mark.parametrize("name", CORE_NAMES)
def test_the_core_depends_on_jax_and_numpy_alone(name):
    assert outside(name) <= CORE_DEPENDENCIES


@pytest.mark.parametrize("name", CORE_NAMES)
def test_the_core_imports_only_from_the_layers_below(name):
    depth = next(i for i, layer in enumerate(CORE) if name in layer)
    assert inside(name) <= set().union(*CORE[:depth])


@pytest.mark.parametrize("name", FILES)
def test_flax_stays_with_the_models(name):
    if name != FLAX and not name.startswith(f"{FLAX}."):
        assert "flax" not in outside(name)


@pytest.mark.parametrize("name", FILES)
def test_gradio_stays_with_the_page(name):
    assert "gradio" not in outside(name) or name == "app.page"


@pytest.mark.parametrize("name", FILES)
def test_a_config_is_seen_at_the_entrances_alone(name):
    seen = outside(name) & {"ml_collections", "configs"}
    assert not seen or name in CONFIG_READERS


def test_nothing_below_build_sees_a_config_or_an_entrance():
    assert not reached_from("build") & (CONFIG_READERS - BUILD)


def test_no_import_comes_back_to_where_it_started():
    assert {name for name in FILES if name in reached_from(name)} == set()
