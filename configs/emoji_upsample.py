"""A small GLIDE on captioned emoji, its second stage: 32 to 64 pixels, told the caption and the small picture, and not guided.

    python -m diffusion_jax.data prepare emoji --image_size=64 --licences=all --groups=smileys,animals,food
    python train.py --config=configs/emoji_upsample.py --workdir=runs/emoji_upsample
    python sample.py --checkpoint=runs/emoji --upsampler=runs/emoji_upsample --prompt="a red apple, in the style of Noto"

The small picture is the large one's mean over 2 x 2 pixels, with a little noise, for the base's pictures are not so clean.
Run so far to step 500 of its 1,000, on all emoji (tfds:emoji/64px_all), on both cores of an AMD EPYC beside the base's training
(2026-11-30, 17 minutes).
Source: Nichol et al. 2021 (GLIDE), section 4; noise: Ho et al. 2022 (cascaded diffusion).
"""

from ml_collections import ConfigDict

from configs.emoji import get_config as emoji_config
from configs.families import finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = emoji_config()
    config.data.update(name="tfds:emoji/64px_all_smileys_animals_food", image_size=64)
    config.model.update(low_res=32, channels=32, attention_resolutions=(8,), head_channels=16)
    config.diffusion.update(cond_dropout=0.0, low_res_noise=0.2)
    config.optimizer.update(learning_rate=2e-3, decay_steps=1000)
    config.ema.decay = 0.998
    config.train.update(num_steps=1000, sample_every_steps=500, checkpoint_every_steps=500)
    config.sample.update(num_steps=10, guidance="none")
    return finish(config, variant, "emoji_upsample")
