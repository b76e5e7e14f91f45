"""What docs/glide.md says is true: its recipes, its commands, and where each fine-tune begins."""

import importlib
import itertools
import pathlib
import re

import pytest

from diffusion_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "glide.md").read_text()
COMMANDS = re.findall(r"^python train\.py --config=configs/(\w+)\.py --workdir=(\S+)", PAGE, re.MULTILINE)
WRITTEN = {workdir for _, workdir in COMMANDS}


def recipe(name):
    return importlib.import_module(f"configs.{name}").get_config()


def test_every_recipe_that_is_named_is_there():
    named = set(re.findall(r"`(?:configs/)?(\w+)\.py`", PAGE)) - {"train"}
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / "configs" / f"{name}.py").exists()]


def test_every_field_that_is_named_is_there():
    known = cli.field_names(recipe("default"))
    named = set(re.findall(r"config\.((?:\w+\.)+\w+)", PAGE))
    assert named and not named - set(known)


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS if recipe(name).train.init_from])
def test_a_fine_tune_begins_where_an_earlier_command_writes(name):
    earlier = itertools.takewhile(lambda command: command[0] != name, COMMANDS)
    written = [workdir for _, workdir in earlier]
    assert recipe(name).train.init_from in written


def test_sampling_takes_what_the_commands_write():
    taken = set(re.findall(r"--(?:checkpoint|upsampler|classifier|rerank)=(\S+)", PAGE))
    assert len(taken) == 11 and taken == WRITTEN


def test_guides_and_upsamplers_fit_what_they_stand_beside():
    base, clip, upsampler = (recipe(name) for name in ("scenes_base", "scenes_clip", "scenes_upsample"))
    assert base.data.image_size == clip.data.image_size == upsampler.model.low_res
    assert (base.diffusion.schedule, base.diffusion.num_table_steps) == (
        clip.diffusion.schedule,
        clip.diffusion.num_table_steps,
    )
