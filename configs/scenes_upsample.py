"""GLIDE's second stage on captioned scenes: 32 to 64 pixels, told the caption and the small picture, and not guided.

    python train.py --config=configs/scenes_upsample.py --workdir=runs/scenes_upsample
    python sample.py --checkpoint=runs/scenes_finetune_cfg --upsampler=runs/scenes_upsample \\
        --prompt="a small cyan ring on a white background"

1.0 million parameters; 17 minutes on one core of an AMD EPYC (2026-11-27; figures: docs/glide.md). The small picture is the
large one's mean over 2 x 2 pixels, with a little noise, for the base's pictures are not so clean.
Source: Nichol et al. 2021 (GLIDE), section 4; noise: Ho et al. 2022 (cascaded diffusion).
"""

from ml_collections import ConfigDict

from configs.scenes import get_config as scenes_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = scenes_config(variant)
    config.data.image_size = 64
    config.model.low_res = 32
    config.diffusion.update(cond_dropout=0.0, low_res_noise=0.2)
    config.optimizer.update(learning_rate=2e-3, decay_steps=1600)
    config.sample.guidance = "none"
    if not variant:
        config.model.update(channels=32, attention_resolutions=(8,))
        config.train.update(batch_size=32, num_steps=1600, checkpoint_every_steps=400)
        config.sample.num_steps = 10
    return config
