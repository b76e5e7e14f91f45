"""ADM on ImageNet at 128 pixels, by class: 421,529,606 parameters; four heads whatever the width.

    python sample.py --checkpoint=runs/adm_128_cond --classifier=runs/adm_classifier_128 --label=207

Trained for 4360 thousand steps of 256. Source: Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, adm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm()
    config.data.image_size = 128
    config.model.update(channel_mults=ADM_MULTS[128], num_heads=4, head_channels=0)
    config.optimizer.learning_rate = 1e-4
    config.train.update(batch_size=256, num_steps=4360_000)
    return finish(config, variant, "adm_128_cond")
