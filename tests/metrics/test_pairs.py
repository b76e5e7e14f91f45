"""evaluate's figures of pairs: the means of what each pair has, in any batches, and what are no pairs."""

import json
import pathlib
import pickle

import jax
import numpy as np
import pytest

from diffusion_jax import scores
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import pairs
from diffusion_jax.models import lpips

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden/metrics.npz")
RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 256, (5, 32, 33, 3), np.uint8)
MADE = np.clip(TRUTH.astype(int) + RNG.integers(-20, 21, TRUTH.shape), 0, 255).astype(np.uint8)


def saved(path, pictures):
    np.savez(path, pictures)
    return str(path)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_figures_are_the_means_of_scikit_images_in_any_batches(batch_size, tmp_path):
    made, truth = saved(tmp_path / "made.npz", GOLDEN["images"]), saved(tmp_path / "truth.npz", GOLDEN["truth"])
    record = pairs.compare(made, truth, None, None, batch_size)
    found = record["figures"][made]
    assert found.keys() == {"psnr", "ssim"}
    np.testing.assert_allclose(found["psnr"], GOLDEN["psnr_skimage"].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["ssim"], GOLDEN["ssim_skimage"].mean(), atol=1e-5)
    first = pairs.compare(made, truth, 1, None, batch_size)
    np.testing.assert_allclose(first["figures"][made]["psnr"], GOLDEN["psnr_skimage"][0], rtol=1e-5)
    assert first["made"]["num_samples"] == 1
    assert f"| {made} | 1 | {truth} |" in scores.table(first)


def test_equal_pairs_are_counted_and_leave_a_number_for_the_psnr_of_the_others(tmp_path):
    mixed = np.concatenate([TRUTH[:2], MADE[2:]])
    truth = saved(tmp_path / "truth.npz", TRUTH)
    record = pairs.compare(saved(tmp_path / "mixed.npz", mixed), truth, None, None, 4)
    (found,) = record["figures"].values()
    assert record["equal_pairs"] == 2
    error = ((mixed[2:] / 255 - TRUTH[2:] / 255) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found["psnr"], -10 * np.log10(error).mean(), rtol=1e-5)
    same = pairs.compare(truth, truth, None, None, 4)
    assert same["equal_pairs"] == 5
    assert same["figures"][truth].keys() == {"ssim"}
    assert "Infinity" not in json.dumps([record, same])


def test_lpips_is_that_of_the_file_and_its_hash_is_told(tmp_path):
    made, truth = saved(tmp_path / "made.npz", MADE), saved(tmp_path / "truth.npz", TRUTH)
    shapes = jax.eval_shape(lambda: lpips.init("alexnet", jax.random.key(0)))
    params = jax.tree.map(lambda x: np.abs(RNG.normal(0, 0.05, x.shape)).astype(np.float32), shapes)
    tree = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": params[f"weights_{i}"].reshape(1, 1, -1, 1)}} for i in range(5)}
    tree["AlexNet_0"] = {name.replace("conv", "Conv"): layer for name, layer in params["features"].items()}
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(jax.tree.map(np.asarray, tree)))
    record = pairs.compare(made, truth, None, str(tmp_path / "alexnet.ckpt"), 8)
    rows = [0, 1, 2, 3, 4, 4, 4, 4]
    expected = jax.jit(lpips.lpips)(params, MADE[rows], TRUTH[rows])[:5].mean()
    np.testing.assert_allclose(record["figures"][made]["lpips"], expected, rtol=1e-4)
    assert record["network"]["name"] == "LPIPS 0.1, AlexNet"
    assert len(record["network"]["sha256"]) == 64


def test_what_are_no_pairs_is_told_in_a_line(tmp_path):
    truth = saved(tmp_path / "truth.npz", TRUTH)
    for other, words in (
        (TRUTH[:4], "4 pictures and"),
        (TRUTH[:, :, :32], "32 x 32 pixels in 3"),
        (TRUTH[..., :1], "1 channel"),
    ):
        with pytest.raises(UserError, match=words) as error:
            pairs.compare(saved(tmp_path / "other.npz", other), truth, None, None, 4)
        assert "\n" not in str(error.value)
    small = saved(tmp_path / "small.npz", TRUTH[:, :8])
    with pytest.raises(UserError, match="11 pixels"):
        pairs.compare(small, small, None, None, 4)
