"""CLIP's training: the loss, its negatives on other devices, the bound of its scale, captions, a run, and what it guides."""

import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import scenes, scenes_clip
from diffusion_jax import build, losses, sampling
from diffusion_jax.build.clip import ClipCaptions
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models import clip
from diffusion_jax.training import checkpoint, run
from diffusion_jax.training.placement import all_gather, example_indices, make_placement
from diffusion_jax.training.step import init_state

CAPTIONS = tuple(
    f"a {size} {colour} circle" for size in ("small", "large") for colour in ("red", "blue", "green", "cyan")
)
TOKENIZER = CaptionTokenizer.train(CAPTIONS, 300)


def config_of(**changes):
    config = scenes_clip.get_config("debug")
    config.update_from_flattened_dict({"parallel.placement": "single", "train.num_steps": 2} | changes)
    return config


def features(seed, count=8, width=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def info_nce(z, w, scale):
    """The formula, in NumPy."""
    logits = scale * z @ w.T
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    return (rows + columns) / 2, np.argmax(logits, 1) == np.arange(len(z)), np.argmax(logits, 0) == np.arange(len(z))


def test_the_loss_is_symmetric_info_nce(x64):
    z, w = features(0), features(1)
    told = losses.contrastive_loss(z, w, z, w, np.arange(8), 7.0)
    for ours, want in zip(told, info_nce(z, w, 7.0), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-12)
    some = losses.contrastive_loss(z[2:5], w[2:5], z, w, np.arange(2, 5), 7.0)
    np.testing.assert_allclose(some.loss, told.loss[2:5], rtol=1e-12)


def test_the_losses_bounds_are_reached(x64):
    same = np.repeat(features(0, 1), 8, axis=0)
    told = losses.contrastive_loss(same, same, same, same, np.arange(8), 3.0)
    np.testing.assert_allclose(told.loss, math.log(8))
    np.testing.assert_array_equal(told.image_to_text, 1)
    apart = np.eye(8)
    told = losses.contrastive_loss(apart, apart, apart, apart, np.arange(8), 100.0)
    np.testing.assert_allclose(told.loss, 0, atol=1e-12)


def batch_of(config, size=8):
    rng = np.random.default_rng(0)
    tokens, mask = ClipCaptions(TOKENIZER).encode(CAPTIONS, config.clip.context_length)
    side = config.data.image_size
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    return {"image": images, "tokens": tokens[:size], "mask": mask[:size]}


def steps(placement, num_steps=3):
    config = config_of(**{"optimizer.learning_rate": 0.01})
    model, optimizer = build.model(config, TOKENIZER), optax.sgd(0.1)
    step = placement.train(build.train_step(model, optimizer))
    state, told = init_state(model.network.init, optimizer, 0, shardings=placement.shardings), []
    for _ in range(num_steps):
        state, metrics = step(state, batch_of(config))
        told.append(jax.device_get(metrics))
    return jax.device_get(state.params), told


@pytest.fixture(scope="module")
def on_one_device():
    return steps(make_placement("single"))


@pytest.mark.parametrize("arguments", [("pmap", 4), ("sharded", 4, (2, 2, 1))])
def test_on_four_devices_losses_gradients_and_shares_are_those_of_one(arguments, on_one_device):
    name, count, *mesh = arguments
    params, told = steps(make_placement(name, jax.local_devices()[:count], *mesh))
    want_params, want = on_one_device
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, want_params)
    for ours, theirs in zip(told, want, strict=True):
        for figure in ("loss", "grad_norm", *build.figures(build.model(config_of(), TOKENIZER))):
            np.testing.assert_allclose(ours[figure], theirs[figure], rtol=1e-5, err_msg=figure)
    assert len({float(t["loss"]) for t in told}) == 3


def test_a_pictures_gradient_sees_the_captions_of_other_devices():
    """One pair on each device: without the others' captions a loss of one pair is 0, and so is its gradient."""
    z, w = (features(seed, 4).astype(np.float32) for seed in (0, 1))

    def loss(z, w, axis_name):
        told = losses.contrastive_loss(z, w, *all_gather((z, w), axis_name), example_indices(len(z), axis_name), 3.0)
        return told.loss.mean()

    whole = jax.grad(loss, (0, 1))(z, w, None)
    apart = jax.pmap(
        functools.partial(jax.grad(loss, (0, 1)), axis_name="data"), "data", devices=jax.local_devices()[:4]
    )
    for ours, want in zip(apart(z[:, None], w[:, None]), whole, strict=True):
        np.testing.assert_allclose(ours[:, 0] / 4, want, rtol=1e-5, atol=1e-7)
        assert np.abs(want).max() > 0.01


def test_the_scale_is_learned_and_never_above_100():
    config = config_of(**{"optimizer.learning_rate": 1.0, "optimizer.clip_norm": 0.0, "optimizer.warmup_steps": 0})
    optimizer = build.optimizer(config)
    params = {clip.LOGIT_SCALE: jnp.float32(math.log(1 / 0.07)), "w": jnp.ones(3)}
    assert clip.logit_scale(params) == pytest.approx(1 / 0.07)
    state = optimizer.init(params)
    seen = []
    for sign in (-1.0, -1.0, -1.0, -1.0, *(1.0,) * 12):
        gradient = {name: jnp.full_like(leaf, sign) for name, leaf in params.items()}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(clip.logit_scale(params)))
    assert max(seen) == pytest.approx(100, rel=1e-6)
    assert min(seen[8:]) < 50, "from the bound it comes down again"
    assert float(params["w"][0]) != 1
    assert clip.logit_scale({}) == 100


def test_captions_are_read_at_their_end_token():
    tokens, mask = ClipCaptions(TOKENIZER).encode(["a small red circle", "", " ".join(["red"] * 40)], 16)
    end = TOKENIZER.encode([""], 1)[0][0, 0]
    lengths = mask.sum(1)
    assert lengths[0] == TOKENIZER.num_tokens("a small red circle") + 1 and tokens[0, lengths[0] - 1] == end
    assert lengths[1] == 1 and tokens[1, 0] == end
    assert lengths[2] == 16 and tokens[2, 15] != end
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()


@pytest.fixture
def examples(monkeypatch):
    """Eight pictures with captions in place of a data set."""
    shown = [
        {"image": image, "caption": text} for image, text in zip(batch_of(config_of())["image"], CAPTIONS, strict=True)
    ]
    monkeypatch.setattr(build, "source", lambda config, split="train": shown)


@pytest.fixture
def trained(examples, tmp_path):
    run.train(config_of(), tmp_path / "clip", time.monotonic())
    return tmp_path / "clip"


def test_a_run_writes_its_shares_goes_on_and_guides_a_text_model(trained, tmp_path, capsys):
    run.train(config_of(**{"train.num_steps": 4}), trained, time.monotonic())
    rows = [row.split(",") for row in (trained / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("image_to_text")
    assert [int(row[0]) for row in rows[1:]] == [2, 4]
    assert all(0 <= float(row[column]) <= 1 for row in rows[1:])
    assert 13 < float(rows[1][rows[0].index("logit_scale")]) < 16
    assert "--classifier=" in capsys.readouterr().out
    assert not (trained / "samples").exists()

    guide = sampling.load(str(trained), {})
    words = build.text_features(guide.model, guide.params, CAPTIONS[:2])
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, rtol=1e-5)

    config = scenes.get_config("debug")
    smallest = {"model.channel_mults": (1,), "model.attention_resolutions": (), "sample.num_steps": 2}
    config.update_from_flattened_dict({"parallel.placement": "single"} | smallest)
    config.diffusion.update(parameterization="velocity", loss_space="velocity")
    network = build.model(config, TOKENIZER).network
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(network.init, jax.random.key(0)))
    checkpoint.write_weights(tmp_path / "base", params, config.to_dict(), TOKENIZER.to_json())
    made = {}
    for scale in (0.0, 1000.0):
        out, overrides = tmp_path / f"{scale}", {"guidance": "none", "classifier_scale": scale}
        request = sampling.Request(str(tmp_path / "base"), CAPTIONS[:1], (), 2, overrides, 0, 2, str(out))
        sampling.run(dataclasses.replace(request, classifier=str(trained)))
        made[scale] = np.load(out / "samples.npz")["arr_0"].astype(int)
    assert np.abs(made[0.0] - made[1000.0]).max() > 5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train.accumulation": 2}, "compares all pairs.*Set it to 1"),
        ({"diffusion.schedule": "ddpm_linear", "diffusion.time": "loss_second_moment"}, "Set time=discrete_uniform"),
        ({"clip.vocab_size": 100}, "set config.clip.vocab_size to as many"),
        ({"text.tokenizer": "bert"}, "unknown config.text.tokenizer.*Known: clip, gpt2, trained"),
    ],
)
def test_what_a_clip_cannot_do_is_told_in_a_line(examples, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run.train(config_of(**changes), tmp_path, time.monotonic())
    assert "\n" not in str(error.value)
