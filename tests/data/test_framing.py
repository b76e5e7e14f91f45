"""Pictures from files: every mode to RGB or grey, and ADM's resizing."""

import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import images


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GREY16 = Image.fromarray(np.full((2, 2), 257 * 100, np.uint16))
CLEAR = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
PALETTE = Image.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    "data, colour",
    [
        (saved(Image.new("L", (2, 2), 100)), (100, 100, 100)),
        (saved(GREY16), (100, 100, 100)),
        (saved(Image.new("1", (2, 2), 1)), (255, 255, 255)),
        (saved(PALETTE), (10, 200, 30)),
        (saved(CLEAR), (255, 255, 255)),
        (saved(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), (127, 127, 127)),  # 255 * (1 - 128 / 255)
        (saved(Image.new("LA", (2, 2), (10, 0))), (255, 255, 255)),
        (saved(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    ],
    ids=["grey", "16 bits", "1 bit", "palette", "clear", "half clear", "grey and alpha", "CMYK"],
)
def test_every_mode_becomes_rgb(data, colour):
    decoded = images.decode(data)
    assert decoded.shape == (2, 2, 3)
    assert (decoded == colour).all()


def test_a_camera_that_was_held_sideways_is_put_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[1, 0] = 255  # bottom left, which becomes top left
    upright = images.decode(saved(Image.fromarray(stored), "PNG", exif=exif))
    assert upright.shape == (3, 2, 3)
    assert upright[0, 0].min() == 255
    assert upright.sum() == 3 * 255


def test_grey_is_the_luma():
    assert images.decode(saved(Image.new("RGB", (1, 1), (255, 0, 0))), 1).item() == 76  # 0.299 * 255


def test_the_resize_halves_by_means_and_then_is_bicubic():
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    # The short side 50 is at least twice 20 once, and 25 is not: one halving, then 25 -> 20 and 35 -> 28. Pillow rounds the means
    # along each axis, the horizontal ones first.
    across = (image.reshape(70, 25, 2, 3).astype(int).sum(axis=2) + 1) // 2
    half = Image.fromarray(((across.reshape(35, 2, 25, 3).sum(axis=1) + 1) // 2).astype(np.uint8))
    wanted = np.asarray(half.resize((20, 28), Image.Resampling.BICUBIC))[4:24]
    np.testing.assert_array_equal(images.centre_crop(image, 20), wanted)


def test_twice_the_size_is_a_mean_of_two_by_two():
    image = np.zeros((4, 4, 1), np.uint8)
    image[::2, ::2] = 100
    assert (images.centre_crop(image, 2) == 25).all()


def test_a_picture_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.frame(image, 9, images.Framing(), None), image)


def test_a_random_crop_is_a_square_of_the_shrunk_picture():
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    seen = set()
    for seed in range(30):
        crop = images.random_crop(image, 16, np.random.default_rng(seed), 0.8)
        windows = [
            np.lib.stride_tricks.sliding_window_view(images.shrink(image, side), (16, 16), (0, 1)).transpose(
                0, 1, 3, 4, 2
            )
            for side in range(16, 21)
        ]
        assert any((window == crop).all(axis=(2, 3, 4)).any() for window in windows)
        seen.add(crop.tobytes())
    assert len(seen) > 20


def test_half_of_the_pictures_are_mirrored():
    image = np.arange(4, dtype=np.uint8).reshape(1, 4, 1).repeat(4, 0)
    framed = [images.frame(image, 4, images.Framing(flip=True), np.random.default_rng(i)) for i in range(200)]
    mirrored = sum((out == image[:, ::-1]).all() for out in framed)
    assert 70 < mirrored < 130
    assert all((out == image).all() or (out == image[:, ::-1]).all() for out in framed)
