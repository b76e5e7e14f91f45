"""Given pictures: how files are read, and what an edit starts from."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import grids
from diffusion_jax.errors import UserError
from diffusion_jax.sampling import pictures

GRID = np.asarray(grids.uniform(10))
SHAPE = (8, 8, 3)


def draw(count=4):
    def noise(indices):
        return np.stack([np.full(SHAPE, float(i) + 1) for i in indices])

    return pictures.Draw(count, noise, lambda given, grid: given + grid[0])


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def picture(tmp_path):
    return save(tmp_path / "picture.png", np.arange(192).reshape(SHAPE))


@pytest.fixture
def mask(tmp_path):
    return save(tmp_path / "mask.png", np.repeat([[0] * 4 + [255] * 4], 8, axis=0))


def planned(edit, count=4):
    pictures.check(edit)
    return pictures.plan(edit, pictures.read(edit, SHAPE), GRID, draw(count))


def test_a_picture_of_the_models_size_is_read_bit_for_bit_and_white_is_redrawn(picture, mask):
    given = pictures.read(pictures.Edit(init_images=(picture,), mask=mask), SHAPE)
    np.testing.assert_array_equal(given.pictures[0], np.arange(192).reshape(SHAPE))
    np.testing.assert_array_equal(given.mask[0, :, 0], [True] * 4 + [False] * 4)
    assert [name for name, _ in given.rows()] == ["given", "kept"]
    assert pictures.read(pictures.Edit(), SHAPE).rows() == []


def test_other_shapes_are_cropped_to_the_middle_and_transparency_is_white(tmp_path):
    wide = np.zeros((16, 48, 4))
    wide[:, 16:32] = [255, 0, 0, 255]  # the middle third is red, the rest transparent
    given = pictures.read(pictures.Edit(init_images=(save(tmp_path / "wide.png", wide),)), SHAPE)
    np.testing.assert_array_equal(given.pictures[0], np.broadcast_to([255, 0, 0], SHAPE))
    clear = save(tmp_path / "clear.png", np.zeros((8, 8, 4)))
    np.testing.assert_array_equal(pictures.read(pictures.Edit(init_images=(clear,)), SHAPE).pictures, 255)


def test_strength_says_where_sampling_starts(picture):
    for strength, begin in ((1.0, 0), (0.7, 3), (0.2, 8), (None, 3)):
        plan = planned(pictures.Edit(init_images=(picture,), strength=strength))
        assert plan.inputs.begin == begin
        assert plan.edit == "none"
        assert plan.inputs.picture.shape == (4, *SHAPE)
    with pytest.raises(UserError, match="leaves the picture as it is"):
        planned(pictures.Edit(init_images=(picture,), strength=0.01))


def test_a_mask_starts_from_noise_and_repaint_takes_a_grid_that_rises(picture, mask):
    plain = planned(pictures.Edit(init_images=(picture,), mask=mask))
    assert (plain.edit, plain.inputs.begin) == ("replace", 0)
    rising = planned(pictures.Edit(init_images=(picture,), mask=mask, edit="repaint", resamples=3, strength=0.5))
    assert (np.diff(rising.grid) > 0).sum() == 2
    assert rising.grid[rising.inputs.begin] == GRID[5]
    whole = planned(pictures.Edit(init_images=(picture,), edit="product"))
    assert whole.inputs.mask.all()


def test_inversion_and_interpolation_begin_from_latents(picture):
    inverted = planned(pictures.Edit(init_images=(picture,), invert=True, strength=0.5))
    assert inverted.inputs.begin == 5
    expected = np.arange(192).reshape(SHAPE) / 127.5 - 1 + GRID[5]
    np.testing.assert_allclose(inverted.inputs.latents, np.broadcast_to(expected, (4, *SHAPE)), atol=1e-6)
    between = planned(pictures.Edit(interpolate=True), count=3).inputs.latents
    np.testing.assert_allclose(between[[0, -1]], [np.full(SHAPE, 1.0), np.full(SHAPE, 3.0)], atol=1e-5)
    two = planned(pictures.Edit(init_images=(picture, picture), invert=True, interpolate=True))
    assert two.inputs.latents.shape == (4, *SHAPE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": "m.png"}, "--mask says what to do with a picture"),
        ({"strength": 0.5}, "--strength says"),
        ({"invert": True}, "--invert says"),
        ({"init_images": ("a",), "edit": "repaint"}, "say which with --mask"),
        ({"init_images": ("a",), "edit": "product", "observation_noise": 0.0}, "must be positive"),
        ({"init_images": ("a",), "invert": True, "mask": "m"}, "takes neither --mask nor --edit"),
        ({"init_images": ("a", "b")}, "give 1 --init_image here; got 2"),
        ({"init_images": ("a", "b"), "interpolate": True}, "add --invert"),
    ],
)
def test_flags_that_do_not_go_together_are_told(fields, message):
    with pytest.raises(UserError, match=message):
        pictures.check(pictures.Edit(**fields))


def test_files_that_are_no_pictures_and_masks_that_say_nothing_are_told(tmp_path, picture):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for path, message in ((str(text), "no picture that can be read"), (str(tmp_path / "none.png"), "No such file")):
        with pytest.raises(UserError, match=message):
            pictures.read(pictures.Edit(init_images=(path,)), SHAPE)
    black = save(tmp_path / "black.png", np.zeros((8, 8)))
    with pytest.raises(UserError, match="is all black"):
        pictures.read(pictures.Edit(init_images=(picture,), mask=black), SHAPE)


def test_a_mask_is_black_where_the_picture_is_kept(tmp_path):
    Image.fromarray(np.repeat(np.array([[0] * 4 + [255] * 4], np.uint8), 8, axis=0)).save(tmp_path / "mask.png")
    kept = pictures.read_mask(str(tmp_path / "mask.png"), "--mask", (8, 8))
    np.testing.assert_array_equal(kept[..., 0], [[True] * 4 + [False] * 4] * 8)
    with pytest.raises(UserError, match="^--then_mask=.*none.png: No such file"):
        pictures.read_mask(str(tmp_path / "none.png"), "--then_mask", (8, 8))
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(UserError, match="^--then_mask=.* is all black"):
        pictures.read_mask(str(tmp_path / "black.png"), "--then_mask", (8, 8))
