"""Runs that begin at another checkpoint: what is taken, the new channels' zeros, what is refused."""

import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import swiss_roll
from configs.scenes import get_config
from diffusion_jax import build, sampling
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint, run, warm_start
from diffusion_jax.training.fingerprint import named_leaves
from diffusion_jax.training.placement import make_placement
from diffusion_jax.training.step import init_state
from diffusion_jax.training.warm_start import Inputs

TOKENIZER = CaptionTokenizer.train(["a large red circle on a white background"], 300)
PICTURES = {"none": {}, "low_res": {"model.low_res": 4}, "inpaint": {"model.inpaint": True}}
PICTURES["both"] = PICTURES["low_res"] | PICTURES["inpaint"]


def config_of(**changes):
    config = get_config("debug")
    config.update_from_flattened_dict({"parallel.placement": "single", "train.num_steps": 1} | changes)
    return config


def inputs(config):
    return Inputs(*build.input_parts(config))


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    template = jax.eval_shape(build.model(config, TOKENIZER).network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.asarray(0.1 * rng.normal(size=leaf.shape), np.float32), template)


def cond_of(model, seed):
    """A condition whose pictures are noise and whose masks are of any size."""
    rng = np.random.default_rng(seed)
    cond = {name: np.stack([leaf] * 2) for name, leaf in model.blank_cond.items()}
    floats = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in cond.items() if leaf.ndim == 4}
    return cond | floats


@pytest.mark.parametrize("old, new, patch", [("none", "inpaint", 1), ("low_res", "both", 4)])
def test_a_widened_network_is_the_old_one_whatever_the_new_channels_hold(old, new, patch):
    size = {
        "model.patch_size": patch,
        "data.image_size": 8 * patch,
        "model.condition": "none",
        "model.channel_mults": (1,),
    }
    before, after = (config_of(**PICTURES[name], **size) for name in (old, new))
    saved, fresh = random_params(before), random_params(after, seed=1)
    found = warm_start.match(saved, fresh, inputs(before), inputs(after), "refuse")
    assert list(found.widened) == [warm_start.FIRST] and not found.new and not found.left
    state = warm_start.begin(init_state(lambda key: fresh, build.optimizer(after), 0), saved, found)
    models = [build.model(config, TOKENIZER) for config in (before, after)]
    first, second = (jax.jit(model.network.apply) for model in models)
    conds = [cond_of(models[1], seed) for seed in (0, 1)]
    for name in models[0].blank_cond:
        conds[1][name] = conds[0][name]
    x = np.random.default_rng(2).normal(size=(2, 8 * patch, 8 * patch, 3)).astype(np.float32)
    times = np.array([3.0, 700.0], np.float32)
    want = first(saved, x, times, conds[0])
    ours = [second(state.params, x, times, cond) for cond in conds]
    np.testing.assert_array_equal(*ours)
    np.testing.assert_allclose(ours[0], want, atol=1e-5)
    assert np.abs(second(fresh, x, times, conds[0]) - second(fresh, x, times, conds[1])).max() > 0.1


def test_a_widened_kernel_has_zeros_for_what_is_new_and_the_rest_in_its_place():
    there, here = Inputs({"x": 2, "low_res": 1}, 2), Inputs({"x": 2, "inpaint_mask": 1, "low_res": 1}, 2)
    kernel = np.arange(12, dtype=np.float32).reshape(1, 1, 12, 1)
    wide = np.asarray(warm_start.widen(kernel, there, here)).reshape(4, 4)
    old = np.arange(12.0).reshape(4, 3)  # [pixel of the patch, channel]
    np.testing.assert_array_equal(wide, np.stack([old[:, 0], old[:, 1], 0 * old[:, 0], old[:, 2]], axis=1))


@pytest.fixture
def examples(monkeypatch):
    """Eight pictures with captions in place of a data set."""
    rng = np.random.default_rng(0)
    shown = [{"image": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), "caption": "a red star"} for _ in range(8)]
    monkeypatch.setattr(build, "source", lambda config, split="train": shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a checkpoint of a text model as `convert` writes them."""
    folder = tmp_path_factory.mktemp("warm")
    config = tiny(folder)
    checkpoint.write_weights(folder / "text", random_params(config), config.to_dict(), TOKENIZER.to_json())
    return folder


def tiny(folder, **changes):
    smallest = {"model.channel_mults": (1,), "model.attention_resolutions": (), "train.init_from": str(folder / "text")}
    return config_of(**smallest | changes)


def test_a_fine_tune_begins_at_the_checkpoint_keeps_its_tokenizer_and_tells_all(examples, folder, tmp_path, capsys):
    """To a network that repaints and has attention in more places; of no steps, so that what it began at is what it saves."""
    changes = {"model.inpaint": True, "train.num_steps": 0, "model.attention_resolutions": (8,)}
    run.train(tiny(folder, **changes), tmp_path, time.monotonic())
    made, want = sampling.load(str(tmp_path), {}), sampling.load(str(folder / "text"), {})
    assert made.model.tokenizer.to_json() == TOKENIZER.to_json()
    ours, theirs = (named_leaves(loaded.params) for loaded in (made, want))
    for name, leaf in theirs.items():
        if name != warm_start.FIRST:
            np.testing.assert_array_equal(ours[name], leaf)
    told, whole = capsys.readouterr().out, (tmp_path / "init_from.txt").read_text()
    new = sorted(ours.keys() - theirs.keys())
    assert f"taken: {len(theirs) - 1} arrays" in told and f"new, begun untrained: {len(new)} arrays" in told
    assert "widened with zeros: 1 array\n" in told and "conv_in/kernel [3, 3, 48, 16] -> [3, 3, 112, 16]" in told
    assert "left" not in told and "  mid_attn/qkv/kernel [" in whole
    assert all(f"  {name} [" in whole for name in ours)


def test_a_fine_tune_begins_at_the_averages_and_a_resumed_one_does_not_read_them_again(tmp_path, capsys):
    def toy(**changes):
        config = swiss_roll.get_config("debug")
        config.update_from_flattened_dict({"parallel.placement": "single"} | changes)
        return config

    run.train(toy(), tmp_path / "base", time.monotonic())
    capsys.readouterr()
    changes = {"train.init_from": str(tmp_path / "base"), "train.num_steps": 0}
    changes |= {"diffusion.parameterization": "x0", "diffusion.loss_space": "x0"}
    run.train(toy(**changes), tmp_path / "fine", time.monotonic())
    told = capsys.readouterr().out
    assert "new" not in told.partition("taken")[2].partition("writes to")[0]
    assert "now x0: the network knows the former" in told
    base, fine = (sampling.load(str(tmp_path / name), {}).params for name in ("base", "fine"))
    jax.tree.map(np.testing.assert_array_equal, fine, base)
    shutil.rmtree(tmp_path / "base")
    run.train(toy(**changes | {"train.num_steps": 1}), tmp_path / "fine", time.monotonic())
    assert sampling.load(str(tmp_path / "fine"), {}).step == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.channels": 24}, "parameters of another shape: .* there and .* here.*init_reshaped=new"),
        ({"model.patch_size": 2}, "conv_in/kernel is"),
        ({"train.init_reshaped": "fresh"}, "Known: new, refuse"),
        ({"train.init_from": "nowhere"}, "no such directory. Train that stage first"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_a_line(examples, folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run.train(tiny(folder, **changes), tmp_path / "run", time.monotonic())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_other_shapes_begin_untrained_where_the_config_says_so():
    ours, theirs = ({"a": np.zeros(3), "b": np.full(size, 5.0), "c": np.ones(1)} for size in (2, 4))
    theirs = theirs | {"d": np.ones(7)}
    found = warm_start.match(theirs, ours, Inputs({"x": 3}, 1), Inputs({"x": 3}, 1), "new")
    assert found.taken.keys() == {"a", "c"} and found.new == {"b": (2,)} and found.left == {"b": (4,), "d": (7,)}
    assert "left, not of this network: 2 arrays" in warm_start.report(found)
    with pytest.raises(UserError, match="none of its parameters"):
        warm_start.match({"e": np.ones(1)}, ours, Inputs({"x": 3}, 1), Inputs({"x": 3}, 1), "new")


@pytest.mark.parametrize("placement", ["pmap", "sharded"])
def test_on_many_devices_the_beginning_is_the_same_and_lies_as_the_placement_says(placement):
    place, optimizer = make_placement(placement), optax.adam(1e-3)
    there, here = Inputs({"x": 3}, 1), Inputs({"x": 3, "inpaint_mask": 1}, 1)

    def params(channels, value):
        return {
            "conv_in": {"kernel": jnp.full((3, 3, channels, 512), value)},
            "mid": {"kernel": jnp.full((256, 256), value)},
        }

    state = init_state(lambda key: params(4, 1.0), optimizer, 0, num_averages=1, shardings=place.shardings)
    found = warm_start.match(params(3, 2.0), state.params, there, here, "refuse")
    begun = warm_start.begin(state, place.replicate(params(3, 2.0)), found)
    assert jax.tree.map(lambda x: x.sharding, begun) == jax.tree.map(lambda x: x.sharding, state)
    for tree in (begun.params, begun.ema_params, *begun.more_ema):
        np.testing.assert_array_equal(tree["mid"]["kernel"], 2)
        np.testing.assert_array_equal(tree["conv_in"]["kernel"], np.broadcast_to([[2], [2], [2], [0]], (3, 3, 4, 512)))
    step = place.train(lambda state, batch, axis_name: (state, {}))
    step(begun, {"x": np.zeros((8, 1), np.float32)})
