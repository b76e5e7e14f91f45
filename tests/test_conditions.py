"""The small picture that an upsampler's training makes of the large one."""

import jax
import numpy as np

from configs import scenes_upsample
from diffusion_jax import build, conditions
from diffusion_jax.data.captions import CaptionTokenizer

KEYS = jax.random.split(jax.random.key(0), 400)


def test_noise_on_the_small_picture_has_every_size_up_to_the_most_and_is_each_examples_own():
    x = np.zeros((400, 8, 8, 3), np.float32)
    noise = np.asarray(conditions.noised(KEYS, x, 0.5))
    sizes = noise.std((1, 2, 3))
    assert sizes.max() < 0.6 and sizes.min() < 0.02
    np.testing.assert_allclose([sizes.mean(), noise.mean()], [0.25, 0], atol=0.03)
    np.testing.assert_array_equal(conditions.noised(KEYS[5:6], x[:1], 0.5)[0], noise[5])


def test_the_configs_noise_reaches_the_small_picture_and_none_leaves_it_the_mean():
    config = scenes_upsample.get_config("debug")
    tokenizer = CaptionTokenizer.train(["a red star"], 300)
    x0 = np.random.default_rng(0).uniform(-1, 1, (8, 64, 64, 3)).astype(np.float32)
    want = x0.reshape(8, 32, 2, 32, 2, 3).mean((2, 4))
    for most in (0.0, 0.4):
        config.diffusion.low_res_noise = most
        shown = build.training._of_picture(build.model(config, tokenizer), {}, x0, KEYS[:8])["low_res"]
        off = np.abs(shown - want).max()
        assert off < 1e-6 if most == 0 else 0.1 < off < 2.4
