"""PSNR and SSIM: scikit-image's figures, and what can be said by hand."""

import pathlib

import numpy as np
import pytest

from diffusion_jax.metrics.pixels import psnr, ssim

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden/metrics.npz")


def test_psnr_and_ssim_are_those_of_scikit_image():
    np.testing.assert_allclose(psnr(GOLDEN["images"], GOLDEN["truth"]), GOLDEN["psnr_skimage"], rtol=1e-5)
    np.testing.assert_allclose(ssim(GOLDEN["images"], GOLDEN["truth"]), GOLDEN["ssim_skimage"], atol=1e-5)


def test_equal_pictures_have_ssim_one_and_no_noise():
    truth = GOLDEN["truth"]
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-6)
    assert np.isinf(psnr(truth, truth)).all()


def test_the_psnr_of_a_shift_by_one_grey_level_is_that_of_the_range():
    truth = np.full((1, 4, 4, 3), 100, np.uint8)
    np.testing.assert_allclose(psnr(truth + 1, truth), 20 * np.log10(255), rtol=1e-5)


def test_the_ssim_of_two_flat_pictures_is_that_of_their_light():
    a, b = np.full((1, 12, 12, 1), 50, np.uint8), np.full((1, 12, 12, 1), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    np.testing.assert_allclose(ssim(a, b), (2 * 50 * 150 + c1) / (50**2 + 150**2 + c1), rtol=1e-4)


def test_what_are_no_pairs_of_pictures_is_refused():
    truth = GOLDEN["truth"]
    with pytest.raises(ValueError, match="uint8"):
        psnr(truth.astype(np.float32), truth)
    with pytest.raises(ValueError, match="of one shape"):
        psnr(truth[:1], truth)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(truth[:, :10], truth[:, :10])
