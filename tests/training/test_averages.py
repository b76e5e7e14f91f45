"""A run that keeps several averages and goes through its batch in pieces: resumed exactly, each average there to sample from."""

import json
import shutil
import time

import jax
import numpy as np
import pytest

from configs.swiss_roll import get_config
from diffusion_jax import build, sampling
from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint, posthoc, run
from diffusion_jax.training.step import init_state


def config_of(**train):
    config = get_config("debug")
    config.parallel.placement = "single"
    config.optimizer.warmup_steps = 0
    config.ema.update(more_decays=(0.2,), posthoc_stds=(0.05, 0.1), snapshot_every_steps=2)
    config.train.update(accumulation=2, num_steps=6, checkpoint_every_steps=3, sample_every_steps=100)
    config.train.update(train)
    return config


def state_of(workdir, step):
    config = config_of()
    model, optimizer = build.model(config, None), build.optimizer(config)
    template = jax.eval_shape(lambda: init_state(model.network.init, optimizer, 0, (), len(build.averages(config))))
    return checkpoint.Checkpoints(workdir).restore(step, template)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averages")
    run.train(config_of(), workdir, time.monotonic())
    return workdir


def test_a_resumed_run_has_the_straight_ones_averages_bit_for_bit(trained, tmp_path):
    run.train(config_of(num_steps=3), tmp_path, time.monotonic())
    run.train(config_of(), tmp_path, time.monotonic())
    ours, want = state_of(tmp_path, 6), state_of(trained, 6)
    assert len(want.more_ema) == 3
    jax.tree.map(np.testing.assert_array_equal, ours, want)
    assert posthoc.steps_of(tmp_path) == [2, 3, 4, 6], "3 was the shorter run's end"


def test_every_average_can_be_sampled_from(trained):
    state = state_of(trained, 6)
    assert posthoc.steps_of(trained) == [2, 4, 6]
    for average, want in [
        (sampling.MAIN_AVERAGE, state.ema_params),
        (sampling.Average(decay=0.998), state.ema_params),
        (sampling.Average(decay=0.2), state.more_ema[0]),
        (sampling.Average(std=0.1), state.more_ema[2]),
    ]:
        params = sampling.load(str(trained), {}, average).params
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, want)
    leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(a)]) for a in (state.ema_params, *state.more_ema)]
    differences = [np.abs(a - b).max() for i, a in enumerate(leaves) for b in leaves[:i]]
    assert min(differences) > 1e-5, differences


def test_an_average_that_the_run_did_not_keep_is_told_with_those_it_did(trained):
    with pytest.raises(UserError, match="--ema_decay=0.9: the run kept averages of decay 0.998, 0.2 "):
        sampling.load(str(trained), {}, sampling.Average(decay=0.9))


def test_an_altered_average_is_not_sampled_from(trained, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    folder = workdir / "checkpoints" / "6"
    shutil.copytree(workdir / "checkpoints" / "3" / "state", folder / "state", dirs_exist_ok=True)
    with pytest.raises(UserError, match="state/more_ema/0/.* is not what was saved"):
        sampling.load(str(folder), {}, sampling.Average(decay=0.2))


def test_a_run_from_before_a_field_goes_on_with_the_fields_default(trained, tmp_path):
    workdir = tmp_path / "copy"
    config = config_of()
    config.ema.update(more_decays=(), posthoc_stds=())
    config.train.accumulation = 1
    run.train(config, workdir, time.monotonic())
    folder = workdir / "checkpoints" / "6"
    saved = json.loads((folder / "config" / "metadata").read_text())
    for group, field in (
        ("ema", "more_decays"),
        ("ema", "posthoc_stds"),
        ("train", "accumulation"),
        ("train", "rollbacks"),
    ):
        del saved[group][field]
    (folder / "config" / "metadata").write_text(json.dumps(saved))
    shutil.rmtree(folder / "checksums")
    config.train.num_steps = 7
    run.train(config, workdir, time.monotonic())
    assert checkpoint.find(str(workdir))[1] == 7
    config.ema.more_decays = (0.5,)
    with pytest.raises(UserError, match=r"ema.more_decays was \[\], now \(0.5,\)"):
        run.train(config, workdir, time.monotonic())


def test_a_batch_that_pieces_and_devices_cannot_share_is_told(tmp_path):
    with pytest.raises(UserError, match="in 3 accumulated pieces.*multiple of 3"):
        run.train(config_of(accumulation=3), tmp_path, time.monotonic())


@pytest.mark.parametrize("field", ["batch_size", "accumulation"])
def test_a_batch_of_nothing_or_in_no_pieces_is_told(tmp_path, field):
    with pytest.raises(UserError, match=f"config.train.{field}=0 must be at least 1"):
        run.train(config_of(**{field: 0}), tmp_path, time.monotonic())
