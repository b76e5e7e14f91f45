"""Sampling in stages: an upsampler after its base, a classifier's pull, a network that sees what it repaints."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import CLIP, saved

from diffusion_jax import build, conditions, sampling
from diffusion_jax.errors import UserError
from diffusion_jax.sampling import pictures, stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    label = {"model.condition": "label", "model.null_class": False}
    return {
        "base": saved(folder / "base"),
        "upsampler": saved(folder / "upsampler", **{"data.image_size": 32, "model.low_res": 16}),
        "other": saved(folder / "other", **{"data.image_size": 32, "model.low_res": 8}),
        "inpaint": saved(folder / "inpaint", **{"model.inpaint": True}),
        "label": saved(folder / "label", **label),
        "plain": saved(folder / "plain", **{"model.condition": "none"}),
        "classifier": saved(
            folder / "classifier",
            **{
                "model.condition": "none",
                "model.kind": "classifier",
                "model.patch_size": 1,
                "model.norm_groups": 8,
                "model.head_channels": 8,
            },
        ),
        "clip": saved(folder / "clip", **CLIP),
        "label_upsampler": saved(folder / "label_upsampler", **label, **{"data.image_size": 32, "model.low_res": 16}),
    }


def sample(out, name, made, **fields):
    options = {"prompts": (), "labels": (), "num_samples": 2, "overrides": {}, "seed": 0, "batch_size": 4} | fields
    sampling.run(sampling.Request(checkpoint=made[name], out=str(out), **options))
    return dict(np.load(out / "samples.npz"))


def test_two_stages_in_one_command_equal_two_commands(tmp_path, made):
    whole = sample(tmp_path / "whole", "base", made, prompts=("a red circle", "a star"), upsampler=made["upsampler"])
    small = sample(tmp_path / "small", "base", made, prompts=("a red circle", "a star"))
    base = dict(np.load(tmp_path / "whole" / "base_samples.npz"))
    assert whole["arr_0"].shape == (4, 32, 32, 3) and base["arr_0"].shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(base["arr_0"], small["arr_0"])
    again = sample(
        tmp_path / "again",
        "upsampler",
        made,
        num_samples=None,
        base_samples=str(tmp_path / "small" / "samples.npz"),
    )
    np.testing.assert_array_equal(whole["arr_0"], again["arr_0"])
    assert again["prompts"].tolist() == ["a red circle", "a star"] * 2
    record = json.loads((tmp_path / "whole" / "samples.json").read_text())
    assert record["base_checkpoint"] == made["base"]


def test_an_upsampler_follows_its_small_picture(tmp_path, made):
    for name, value in (("dark", 0), ("light", 255)):
        np.savez(tmp_path / f"{name}.npz", arr_0=np.full((1, 16, 16, 3), value, np.uint8))
    one, other = (
        sample(
            tmp_path / name,
            "upsampler",
            made,
            prompts=("a star",),
            num_samples=None,
            base_samples=str(tmp_path / f"{name}.npz"),
        )["arr_0"]
        for name in ("dark", "light")
    )
    assert np.abs(one.astype(int) - other).max() > 10


def test_classes_travel_in_adms_format(tmp_path, made):
    small = sample(tmp_path / "small", "label", made, labels=(3, 1))
    assert small["arr_1"].tolist() == [3, 1, 3, 1]
    large = sample(
        tmp_path / "large",
        "label_upsampler",
        made,
        num_samples=None,
        base_samples=str(tmp_path / "small" / "samples.npz"),
    )
    assert large["arr_1"].tolist() == [3, 1, 3, 1]
    assert large["arr_0"].shape == (4, 32, 32, 3)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("name", ["label", "plain"])
def test_a_classifier_pulls_with_its_scale(tmp_path, made, name, sampler):
    made_by = [
        sample(
            tmp_path / f"scale{scale}",
            name,
            made,
            labels=(2,),
            classifier=made["classifier"],
            overrides={"sampler": sampler, "classifier_scale": scale},
        )["arr_0"].astype(int)
        for scale in (0.0, 1e6)
    ]
    assert np.abs(made_by[0] - made_by[1]).max() > 10
    if name == "label":
        plain = sample(tmp_path / "none", name, made, labels=(2,), overrides={"sampler": sampler})["arr_0"]
        assert np.abs(made_by[0] - plain).max() <= 8  # another program: rounding


def test_clip_pulls_towards_the_prompt(tmp_path, made):
    """The network is told the same caption each time; what its pictures gain is CLIP's."""
    loaded = sampling.load(made["clip"], {})
    features = build.text_features(loaded.model, loaded.params, ("a star", "a red circle"))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    options = {"sampler": "ddim", "guidance": "none"}
    none, weak, strong = (
        sample(
            tmp_path / f"scale{scale}",
            "base",
            made,
            prompts=("a star",),
            classifier=made["clip"],
            overrides=options | {"classifier_scale": scale},
        )["arr_0"].astype(int)
        for scale in (0.0, 1.0, 100.0)
    )
    assert 0 < np.abs(weak - none).mean() < np.abs(strong - none).mean()


def test_a_network_that_repaints_is_shown_the_kept_part(tmp_path, made):
    rng = np.random.default_rng(0)
    picture, mask = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edit = pictures.Edit(init_images=(str(tmp_path / "picture.png"),), mask=str(tmp_path / "mask.png"))
    out = sample(tmp_path / "out", "inpaint", made, prompts=("a star",), edit=edit)["arr_0"]
    np.testing.assert_array_equal(out[:, mask == 0], np.broadcast_to(picture[mask == 0], out[:, mask == 0].shape))
    model = sampling.load(made["inpaint"], {}).model
    given = pictures.read(edit, model.image_shape)
    cond = stages.with_pictures({}, 2, model, given, None)
    assert cond["inpaint_mask"].shape == (2, 16, 16, 1)
    np.testing.assert_array_equal(cond["inpaint_mask"][0, ..., 0], mask == 0)
    assert np.abs(cond["inpaint_image"][0][mask > 0]).max() == 0


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("upsampler", {}, "is an upsampler: give it small pictures"),
        ("base", {"base_samples": "x.npz"}, "is no upsampler"),
        ("upsampler", {"base_samples": "nowhere.npz"}, "No such file"),
        ("base", {"upsampler": "other"}, "enlarges pictures of 8 pixels"),
        ("base", {"upsampler": "base"}, "enlarges pictures of 0 pixels"),
        ("label", {"upsampler": "upsampler"}, "told captions, and there are none"),
        ("base", {"classifier": "classifier"}, "knows classes"),
        ("label", {"classifier": "clip"}, "knows captions"),
        ("label", {"classifier": "base"}, "is no classifier"),
        ("label", {"overrides": {"classifier_scale": 2.0}}, "give one"),
        ("label", {"labels": (8,)}, "has 0 to 7"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(tmp_path, made, name, fields, says):
    fields = {key: made.get(value, value) if isinstance(value, str) else value for key, value in fields.items()}
    with pytest.raises(UserError, match=says) as caught:
        sample(tmp_path / "out", name, made, **fields)
    assert "\n" not in str(caught.value)


def test_area_downsampling_is_the_mean_of_each_block():
    x = jnp.arange(2 * 4 * 4 * 1.0).reshape(2, 4, 4, 1)
    small = conditions.area_downsample(x, 2)
    np.testing.assert_allclose(small[0, 0, 0, 0], np.mean([0, 1, 4, 5]))
    np.testing.assert_allclose(small.mean((1, 2)), x.mean((1, 2)))
    with pytest.raises(ValueError, match="does not divide"):
        conditions.area_downsample(x, 3)
