"""R-precision: 1 for features that agree, chance for those that say nothing, and no caption against its own words."""

import numpy as np
import pytest

from diffusion_jax.metrics.r_precision import r_precision


def test_features_that_agree_score_one_and_others_by_the_share_of_pictures():
    texts = np.eye(10)
    assert r_precision(3 * texts, texts, range(10), num_distractors=9) == 1
    wrong = texts.copy()
    wrong[:4] = np.roll(texts[:4], 1, axis=0)
    assert r_precision(wrong, texts, range(10), num_distractors=None) == 0.6


def test_features_that_say_nothing_score_by_chance():
    assert np.isclose(r_precision(np.ones((20, 3)), np.ones((20, 3)), range(20), num_distractors=4), 1 / 5)
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 3000, 16))
    got = r_precision(images, texts, range(3000), num_distractors=9)
    assert abs(got - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 3000)


def test_a_caption_that_returns_is_no_distractor_of_itself():
    captions = ["a", "a", "b", "b", "c", "c"]
    features = np.repeat(np.eye(3), 2, axis=0)
    assert r_precision(features, features, captions, num_distractors=2) == 1
    with pytest.raises(ValueError, match="3 different captions"):
        r_precision(features, features, captions, num_distractors=3)


def test_features_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="one caption per picture"):
        r_precision(np.ones((3, 2)), np.ones((4, 2)), range(3))
    with pytest.raises(ValueError, match="not 0"):
        r_precision(np.zeros((3, 2)), np.ones((3, 2)), range(3))
