"""Which of many samples a CLIP likes best."""

import numpy as np
import pytest
from tiny import CLIP, saved

from diffusion_jax import build, images, sampling
from diffusion_jax.errors import UserError
from diffusion_jax.sampling import reranking, stages


def test_the_best_of_each_condition_come_first_in_the_order_of_samples():
    found = np.array([0.1, 5.0, 0.9, 4.0, 0.5, 6.0])
    every = np.array([0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(reranking.best(found, every, 1), [2, 5])
    np.testing.assert_array_equal(reranking.best(found, every, 2), [2, 5, 4, 1])
    np.testing.assert_array_equal(reranking.best(found, every, 3), [2, 5, 4, 1, 0, 3])
    np.testing.assert_array_equal(
        reranking.best(np.zeros(3), np.zeros(3, int), 3), [0, 1, 2]
    )  # equals: as they were made


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return sampling.load(saved(tmp_path_factory.mktemp("clip"), **CLIP), {})


def test_a_score_is_a_hundred_times_the_cosine_of_picture_and_caption(clip):
    pictures = np.random.default_rng(0).integers(0, 256, (reranking.BATCH_SIZE + 3, 16, 16, 3), np.uint8)
    every = np.arange(len(pictures)) % 2
    asked = stages.Conditions(("a star", "a ring"), every, prompts=("a star", "a ring"))
    found = reranking.scores(clip.model, clip.params, pictures, asked)
    texts = build.text_features(clip.model, clip.params, asked.prompts)
    time = np.zeros(len(pictures), np.float32)
    features = clip.model.network.apply(clip.params, images.to_float(pictures), time, {})
    np.testing.assert_allclose(found, 100 * (np.asarray(features) * texts[every]).sum(-1), atol=2e-3)
    assert np.abs(found).max() <= 100.001 and np.std(found) > 0


def test_what_is_no_clip_of_the_captions_is_told(clip, tmp_path):
    base = sampling.load(saved(tmp_path / "base"), {}).model
    plain = sampling.load(saved(tmp_path / "plain", **{"model.condition": "none"}), {}).model
    large = sampling.load(saved(tmp_path / "large", **{"data.image_size": 32}), {}).model
    for judge, model, message in (
        (base, base, "is no CLIP: its model.kind is unet"),
        (clip.model, plain, "judges pictures by their captions"),
        (clip.model, large, "reads images of 16 pixels, and --checkpoint makes 32"),
    ):
        with pytest.raises(UserError, match=message):
            reranking.check(judge, model, "runs/x")
    reranking.check(clip.model, base, "runs/clip")
