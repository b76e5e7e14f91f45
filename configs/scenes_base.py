"""The first stage of a small GLIDE on captioned scenes: text to 32 pixels, every caption shown, and so no guidance.

    python train.py --config=configs/scenes_base.py --workdir=runs/scenes_base

scenes.py without dropped captions; scenes_finetune_cfg.py goes on from it. On one core of an AMD EPYC (2026-11-27): 20 minutes;
of 256 captions never seen the checker finds colour, size and background in all, and the shape, crisp, in 73%.
The other stages: docs/glide.md.
Source: Nichol et al. 2021 (GLIDE), section 4.
"""

from ml_collections import ConfigDict

from configs.scenes import get_config as scenes_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = scenes_config(variant)
    config.diffusion.cond_dropout = 0.0
    config.sample.guidance = "none"
    return config
