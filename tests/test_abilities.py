"""What sample.py can do beyond one picture from one caption, each by its own request on a tiny checkpoint."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import CLIP, saved

from diffusion_jax import sampling
from diffusion_jax.errors import UserError
from diffusion_jax.sampling import pictures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abilities")
    return {
        "base": saved(folder / "base"),
        "upsampler": saved(folder / "upsampler", **{"data.image_size": 32, "model.low_res": 16}),
        "inpaint": saved(folder / "inpaint", **{"model.inpaint": True}),
        "plain": saved(folder / "plain", **{"model.condition": "none"}),
        "clip": saved(folder / "clip", **CLIP),
    }


def request(out, checkpoint, **fields):
    options = {"prompts": ("a star",), "labels": (), "num_samples": 2, "overrides": {}, "seed": 0, "batch_size": 4}
    return sampling.Request(checkpoint=checkpoint, out=str(out), **options | fields)


def sample(out, checkpoint, **fields):
    sampling.run(request(out, checkpoint, **fields))
    return np.load(out / "samples.npz")["arr_0"]


def record(out):
    return json.loads((out / "samples.json").read_text())


@pytest.fixture
def picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "picture.png")
    return array, str(tmp_path / "picture.png")


def mask_file(path, columns):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, columns] = 255
    Image.fromarray(mask).save(path)
    return str(path)


def test_from_one_prompt_to_another_the_ends_are_the_prompts_own_pictures(tmp_path, made):
    pair = ("a large red star", "a small blue ring")
    between = sample(tmp_path / "between", made["base"], prompts=pair, interpolate_prompts=True, num_samples=3)
    first, last = (sample(tmp_path / text[-4:], made["base"], prompts=(text,), num_samples=1)[0] for text in pair)
    for end, single in ((between[0], first), (between[2], last)):
        assert np.abs(end.astype(int) - single).max() <= 1  # another program: rounding
    distances = [np.abs(picture.astype(int) - first).mean() for picture in between]
    assert distances[0] < distances[1] < distances[2]
    assert record(tmp_path / "between")["images"][1]["condition"] == "a large red star to a small blue ring"


@pytest.mark.parametrize("network", ["base", "inpaint"])
def test_edits_that_follow_each_other_change_what_each_is_told_alone(tmp_path, made, network):
    masks = [mask_file(tmp_path / "left.png", slice(0, 6)), mask_file(tmp_path / "right.png", slice(10, 16))]
    plain = sample(tmp_path / "plain", made[network])
    two = sample(tmp_path / "two", made[network], rounds=(("a ring", masks[0]), ("a cross", masks[1])))
    np.testing.assert_array_equal(two[:, :, 6:10], plain[:, :, 6:10])
    for columns in (slice(0, 6), slice(10, 16)):
        assert (two[:, :, columns] != plain[:, :, columns]).any(axis=(1, 2, 3)).all()
    assert record(tmp_path / "two")["rounds"] == [["a ring", masks[0]], ["a cross", masks[1]]]


def test_a_border_is_drawn_around_a_picture_that_stays(tmp_path, made, picture):
    given, path = picture
    edit = pictures.Edit(init_images=(path,))
    wide = sample(tmp_path / "wide", made["inpaint"], edit=edit, outpaint=(4.0, 0.0, 12.0, 2.0))
    assert wide.shape == (2, 18, 32, 3)
    for one in wide:
        np.testing.assert_array_equal(one[:16, 4:20], given)
    border = np.ones((18, 32), bool)
    border[:16, 4:20] = False
    assert (wide[0][border] != wide[1][border]).mean() > 0.5
    assert (wide[:, border] != 127).mean() > 0.9  # nothing is left grey


def test_the_samples_that_clip_likes_best_are_kept_with_their_own_numbers(tmp_path, made):
    many = {"prompts": ("a star", "a ring"), "num_samples": 4}
    every = sample(tmp_path / "all", made["base"], **many)
    best = sample(tmp_path / "best", made["base"], rerank=made["clip"], best=2, upsampler=None, **many)
    told = record(tmp_path / "best")["images"]
    assert [image["condition"] for image in told] == ["a star", "a ring"] * 2
    np.testing.assert_array_equal(best, every[[image["index"] for image in told]])
    for condition in (0, 1):
        scores = [image["clip_score"] for image in told[condition::2]]
        assert scores == sorted(scores, reverse=True)
    enlarged = sample(
        tmp_path / "large", made["base"], rerank=made["clip"], best=1, upsampler=made["upsampler"], **many
    )
    assert enlarged.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "large" / "base_samples.npz")["arr_0"], best[:2])


def test_an_animation_ends_with_the_pictures(tmp_path, made):
    final = sample(tmp_path / "out", made["base"], prompts=("a star", "a ring"), num_samples=3, animation=True)
    with Image.open(tmp_path / "out" / "animation.gif") as film, Image.open(tmp_path / "out" / "grid.png") as grid:
        assert film.n_frames == 4  # one a step
        frames = []
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
        wanted = np.asarray(grid.convert("RGB")).astype(int)
    distances = [np.abs(frame - wanted).mean() for frame in frames]
    assert distances[-1] < 3 < distances[0]  # a GIF has 256 colours
    assert len(final) == 6


def test_variations_are_of_the_picture_and_differ_by_their_noise(tmp_path, made, picture):
    given, path = picture
    edit = pictures.Edit(init_images=(path,), invert=True)
    same = sample(tmp_path / "same", made["base"], edit=edit, overrides={"eta": 0.0})
    np.testing.assert_array_equal(same[0], same[1])
    varied = sample(tmp_path / "varied", made["base"], edit=edit, overrides={"eta": 0.7})
    assert (varied[0] != varied[1]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interpolate_prompts": True}, "goes between two --prompt"),
        ({"outpaint": (4, 0, 4, 0)}, "draws a border around one --init_image"),
        ({"outpaint": (4, 0), "edit": pictures.Edit(init_images=("a.png",))}, "wants LEFT,TOP,RIGHT,BOTTOM"),
        (
            {"outpaint": (4, 0, 4, 0), "edit": pictures.Edit(init_images=("a.png",)), "upsampler": "up"},
            "another size than the model's",
        ),
        (
            {"rounds": (("a", "m.png"),), "upsampler": "up"},
            "leave --interpolate, --interpolate_prompts and --upsampler",
        ),
        ({"rerank": "clip", "best": 3}, "--best=3 are more than --num_samples=2"),
        ({"rerank": "clip", "base_samples": "small.npz"}, "leave --base_samples and --interpolate_prompts out"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_read(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        sampling.run(request(tmp_path / "out", "no/such/checkpoint", **fields))
    assert not (tmp_path / "out").exists()


def test_edits_by_caption_need_a_model_of_captions(tmp_path, made):
    with pytest.raises(UserError, match="--then_prompt needs a checkpoint of captions"):
        sample(tmp_path / "out", made["plain"], prompts=(), rounds=(("a", "m.png"),))
