"""Figures from pictures: the same for every batch size and number of devices, and equal to the metrics one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.metrics import comparison, moments
from diffusion_jax.metrics.features import Extractor, make_extract
from diffusion_jax.metrics.frechet import frechet_distance
from diffusion_jax.metrics.kid import kernel_distance, kid
from diffusion_jax.metrics.neighbours import neighbours
from diffusion_jax.training.placement import make_placement

RNG = np.random.default_rng(0)
REAL = RNG.integers(0, 256, (300, 4, 4, 3), np.uint8)
MADE = RNG.integers(0, 200, (270, 4, 4, 3), np.uint8)
PROTOCOL = comparison.Protocol(kid_subsets=10, kid_subset_size=50)


def apply(params, images):
    x = jax.nn.relu(images.reshape(len(images), -1).astype(jnp.float32) / 255 @ params["w"])
    return {"pool": x, "spatial": x[:, :3] ** 2, "logits": 5 * x}


EXTRACTOR = Extractor("a layer", "0", {"w": RNG.normal(size=(48, 6)).astype(np.float32)}, apply, {})


def gathered(images, batch_size, placement):
    rows = -(-batch_size // placement.num_devices) * placement.num_devices
    batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    return comparison.gather("", make_extract(EXTRACTOR, placement)(batches, rows))


def all_figures(batch_size, devices, name="pmap"):
    placement = make_placement(name, jax.devices()[:devices])
    real, made = (gathered(images, batch_size, placement) for images in (REAL, MADE))
    own = comparison.own_figures(made, PROTOCOL)
    return own | comparison.figures(made, real.statistics, real.pool, PROTOCOL)


@pytest.mark.parametrize(("batch_size", "devices"), [(7, 8), (64, 1), (64, 8), (256, 8), (256, 1)])
def test_no_batch_size_and_no_number_of_devices_changes_a_figure(batch_size, devices):
    one = all_figures(7, 1)
    assert len(one) == 10
    other = all_figures(batch_size, devices)
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=2e-5, atol=1e-7, err_msg=name)


def test_the_sharded_placement_gives_the_same_figures():
    one, other = all_figures(64, 8), all_figures(64, 8, "sharded")
    np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=2e-5, atol=1e-7)


def test_the_figures_are_those_of_the_metrics_one_by_one():
    found = all_figures(64, 1)
    pool = [np.asarray(apply(EXTRACTOR.params, images)["pool"], float) for images in (REAL, MADE)]
    real, made = map(moments.from_features, pool)
    fid = frechet_distance(made.mean, moments.covariance(made), real.mean, moments.covariance(real))
    np.testing.assert_allclose(found["fid"], fid, rtol=1e-5)
    score = kid(*pool, num_subsets=10, subset_size=50)
    np.testing.assert_allclose([found["kid"], found["kid_spread"]], score, rtol=1e-4)
    few = comparison.Protocol(kid_subset_size=280)
    gathered_made = gathered(MADE, 64, make_placement("single"))
    alone = comparison.figures(gathered_made, gathered_made.statistics, pool[0], few)
    np.testing.assert_allclose(alone["kid"], kernel_distance(*pool), rtol=1e-4)
    assert "kid_spread" not in alone
    together = neighbours(*pool, k=3)._asdict()
    np.testing.assert_allclose([found[name] for name in together], list(together.values()), atol=1e-9)
    assert found["sfid"] != found["fid"]


def test_statistics_alone_give_the_frechet_distances_alone():
    real, made = (gathered(images, 64, make_placement("single")) for images in (REAL, MADE))
    assert comparison.figures(made, real.statistics, None, PROTOCOL).keys() == {"fid", "sfid"}


def test_grey_pictures_are_shown_as_rgb_and_others_are_refused():
    placement = make_placement("single")
    grey = REAL[:3, :, :, :1]
    extract = make_extract(EXTRACTOR, placement)
    (one,), (other,) = (list(extract([images], 4)) for images in (grey, np.repeat(grey, 3, axis=-1)))
    np.testing.assert_array_equal(one["pool"], other["pool"])
    assert one["pool"].shape == (3, 6)
    for wrong in (REAL.astype(np.float32)[:2], REAL[:2, :, :, :2], REAL[:5], REAL[:0]):
        with pytest.raises(ValueError):
            list(extract([wrong], 4))
    with pytest.raises(ValueError, match="no pictures"):
        comparison.gather("nothing", [])


def test_the_spread_over_seeds_is_the_standard_deviation_of_one_set():
    found = comparison.over_seeds([{"fid": 1.0, "kid": 5.0}, {"fid": 2.0, "kid": 5.0}, {"fid": 6.0}])
    assert found["mean"] == {"fid": 3.0}
    np.testing.assert_allclose(found["spread"]["fid"], 7**0.5)
    with pytest.raises(ValueError, match="at least 2"):
        comparison.over_seeds([{"fid": 1.0}])
