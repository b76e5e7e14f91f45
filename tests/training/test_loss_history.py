"""A run whose training time is drawn by past losses: its history is in the checkpoint, and an older one can do without."""

import csv
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs.scenes import get_config
from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint, run


def config_of(**train):
    config = get_config("debug")
    config.parallel.placement = "single"
    config.model.update(condition="none", channels=8, channel_mults=(1,), attention_resolutions=(), norm_groups=4)
    config.diffusion.update(
        schedule="ddpm_cosine",
        num_table_steps=4,
        parameterization="eps",
        loss_space="eps",
        variance="learned_range",
        objective="rescaled_mse",
        time="loss_second_moment",
    )
    config.train.update(num_steps=8, checkpoint_every_steps=4, sample_every_steps=100, log_every_steps=4)
    config.train.update(train)
    return config


def restored(workdir, step, config):
    model, optimizer = build.model(config, None), build.optimizer(config)
    history = build.loss_history(model)
    template = jax.eval_shape(lambda: run.init_state(model.network.init, optimizer, config.seed, history))
    checkpoints = checkpoint.Checkpoints(workdir)
    try:
        return checkpoints.restore(step, template)
    finally:
        checkpoints.close()


@pytest.fixture(scope="module", autouse=True)
def no_files_but_the_runs():
    """Data in memory, and no pictures of samples: neither is what is tested."""
    pictures = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "source", lambda config: [{"image": picture} for picture in pictures])
        patch.setattr(run.samples, "sample_grid", lambda *_: lambda step, params: np.zeros((8, 8, 3), np.uint8))
        yield


def test_a_resumed_run_with_a_history_equals_the_straight_one_bit_for_bit(tmp_path):
    config, straight, resumed = config_of(), tmp_path / "straight", tmp_path / "resumed"
    run.train(config, straight, time.monotonic())
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "8")
    run.train(config, resumed, time.monotonic())
    ours, theirs = restored(straight, 8, config), restored(resumed, 8, config)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_array_equal(ours.loss_history.counts, [10] * 4)
    assert restored(straight, 4, config).loss_history.counts.sum() < 40, (
        "what it is drawn by changes after the resumption"
    )
    losses = [[row["loss"] for row in csv.DictReader((w / "metrics.csv").open())] for w in (straight, resumed)]
    assert losses[0] == losses[1]


def test_a_checkpoint_without_a_history_is_refused_by_a_run_that_needs_one_and_taken_by_another(tmp_path):
    config = config_of(num_steps=2)
    config.diffusion.time = "discrete_uniform"
    run.train(config, tmp_path, time.monotonic())
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(tmp_path / "checkpoints" / "2" / "state").item_metadata.tree
    assert set(tree) == {"step", "params", "opt_state", "guard"}, "a field that is empty is left out"
    assert restored(tmp_path, 2, config).loss_history == ()
    config.diffusion.time = "loss_second_moment"
    with pytest.raises(UserError, match="does not fit this model: missing loss_history/counts"):
        restored(tmp_path, 2, config)
