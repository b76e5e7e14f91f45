import numpy as np
from PIL import Image

from diffusion_jax import images


def test_uint8_to_float_and_back_is_exact():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(images.to_uint8(images.to_float(every)), every)


def test_floats_are_rounded_and_clamped():
    values = np.array([-3.0, -1.0, 0.0, 0.001, 1.0, 7.0]).reshape(1, 1, 6, 1)
    assert images.to_uint8(values).ravel().tolist() == [0, 0, 128, 128, 255, 255]


def test_grid_shows_each_image_in_its_place_enlarged():
    red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    grid = images.labelled_grid([("first", np.stack([red, blue])), ("second", np.stack([blue]))], cell_pixels=32)
    pixels = np.asarray(grid)
    assert pixels[4 + 20 + 16, 4 + 16].tolist() == [255, 0, 0]
    assert pixels[4 + 20 + 16, 4 + 36 + 16].tolist() == [0, 0, 255]
    assert pixels[4 + 56 + 20 + 16, 4 + 16].tolist() == [0, 0, 255]
    assert (pixels[4:20, 4:40] < 128).any(), "the label is drawn"


def test_grey_images_can_be_shown():
    assert images.labelled_grid([("grey", np.full((1, 8, 8, 1), 128, np.uint8))]).mode == "RGB"


def test_png_holds_the_pixels_and_no_temporary_is_left(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    images.save_png(images.to_pil(image), tmp_path / "x.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), image)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
