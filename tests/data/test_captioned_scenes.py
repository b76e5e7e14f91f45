"""The TFDS set of scenes: written and read back without TensorFlow, a network, or harm from a killed run."""

import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from diffusion_jax.data import captioned_scenes, scenes

TINY = {"train_images": 30, "validation_images": 8, "test_images": 6, "seed": 5}
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return captioned_scenes.prepare(tmp_path_factory.mktemp("data"), 32, 2, **TINY)


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_every_stored_example_is_the_scene_of_its_index(builder, split):
    source = builder.as_data_source(split)
    examples = [source[i] for i in range(len(source))]
    assert sorted(example["index"] for example in examples) == list(range(TINY[f"{split}_images"]))
    for example in examples:
        scene = scenes.draw_scene(5, int(example["index"]), split, 2)
        np.testing.assert_array_equal(example["image"], scenes.render(scene, 32))
        assert example["image"].dtype == np.uint8
        assert example["caption"].decode() == scenes.caption(scenes.describe(scene))


def test_a_prepared_set_is_not_rendered_again(builder, monkeypatch):
    monkeypatch.setattr(scenes, "render", lambda *_: pytest.fail("rendered again"))
    again = captioned_scenes.prepare(builder.data_path.parents[2], 32, 2, **TINY)
    assert again.data_path == builder.data_path
    assert len(again.as_data_source("train[:10]")) == 10


def test_a_different_number_of_examples_is_another_set(tmp_path):
    small = captioned_scenes.prepare(tmp_path, 24, 1, train_images=3, validation_images=2, test_images=2)
    large = captioned_scenes.prepare(tmp_path, 24, 1, train_images=4, validation_images=2, test_images=2)
    assert len(small.as_data_source("train")) == 3
    assert len(large.as_data_source("train")) == 4
    assert large.info.features["image"].shape == (24, 24, 3)


def test_the_listed_configs_are_named_by_objects_and_size():
    configs = captioned_scenes.CaptionedScenes.builder_configs
    assert {"one_object_32px", "two_objects_32px", "one_object_64px"} <= set(configs)
    assert configs["one_object_32px"] == captioned_scenes.make_config(32, 1)
    assert captioned_scenes.make_config(48, 2).name == "two_objects_48px"


def test_a_listed_config_is_prepared_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned_scenes.CaptionedScenes, "download_and_prepare", lambda *_, **__: None)
    built = captioned_scenes.prepare(tmp_path, 32, 1)
    assert built.builder_config is captioned_scenes.CaptionedScenes.builder_configs["one_object_32px"]


@pytest.mark.parametrize("arguments", [(32, 3), (0, 1)])
def test_impossible_configs_are_refused(arguments):
    with pytest.raises(ValueError, match="max_objects|image_size"):
        captioned_scenes.make_config(*arguments)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_neither_tensorflow_nor_a_network_is_needed(tmp_path):
    code = """
        import json, socket, sys

        def refuse(*_, **__):
            raise AssertionError("tried the network")

        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        from diffusion_jax.data import captioned_scenes
        built = captioned_scenes.prepare(sys.argv[1], 32, 1, train_images=4, validation_images=2, test_images=2)
        example = built.as_data_source("train")[0]
        print(json.dumps({"shape": example["image"].shape, "tensorflow": "tensorflow" in sys.modules}))
    """
    done = run(code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"shape": [32, 32, 3], "tensorflow": False}


def test_a_killed_preparation_does_not_break_the_next(tmp_path):
    code = """
        import os, sys
        from diffusion_jax.data import captioned_scenes, scenes
        real, calls = scenes.render, []

        def render(*arguments):
            calls.append(arguments)
            return os._exit(9) if len(calls) > 10 else real(*arguments)

        scenes.render = render
        captioned_scenes.prepare(sys.argv[1], 32, 2, train_images=30, validation_images=8, test_images=6, seed=5)
    """
    assert run(code, str(tmp_path)).returncode == 9
    assert list(tmp_path.glob("*/*/incomplete*")), "the kill left nothing behind: this test shows nothing"
    built = captioned_scenes.prepare(tmp_path, 32, 2, **TINY)
    assert len(built.as_data_source("train")) == 30
