"""What the benchmarks compute beside their clocks."""

import importlib.util
import pathlib

import jax
import pytest

from configs.default import get_config
from diffusion_jax import build

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_time_inside_of_nested_and_overlapping_spans_counts_once():
    covered = script("startup_train").covered
    assert covered([]) == 0
    assert covered([(4.0, 5.0), (0.0, 3.0), (1.0, 2.0), (2.5, 3.5)]) == 4.5


def test_the_parts_of_a_start_up_are_told_apart_and_sum_to_it():
    # Imported at 3; tracing from 4 to 8, where an operation of its own compiles from 5 to 6; the step's compilation 8 to 12.
    found = script("startup_train").parts(1.0, 3.0, 13.5, [(4.0, 8.0)], [(5.0, 6.0), (8.0, 12.0)])
    expected = {"import": 2.0, "build": 1.0, "trace": 3.0, "compile": 5.0, "first step": 1.5, "total": 12.5}
    assert found == pytest.approx(expected)


# 827,491 and 7,992,451: numbers of parameters of the PyTorch U-Nets of the same shapes, counted by PyTorch.
@pytest.mark.parametrize("size, parameters", [("tiny", 827_491), ("small", 7_992_451)])
def test_train_py_is_started_with_the_network_that_pytorch_trains(size, parameters):
    shapes = script("shapes")
    config, prefix = get_config(), "--config."
    for flag in shapes.recipe_flags(shapes.SIZES[size]):
        name, value = flag.split("=")
        if name.startswith(prefix):
            group, field = name.removeprefix(prefix).split(".")
            old = config[group][field]
            config[group][field] = tuple(map(int, value.split(","))) if isinstance(old, tuple) else type(old)(value)
    model = build.model(config, None)
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(template)) == parameters
    assert model.image_shape == (shapes.SIZES[size]["image"],) * 2 + (3,)
