"""ADM on ImageNet at 256 pixels without classes: 552,814,086 parameters; its classifier pulls with scale 10.

Trained for 2 million steps of 256. Source: Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, adm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm()
    config.data.image_size = 256
    config.model.update(condition="none", channel_mults=ADM_MULTS[256])
    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 2_000_000
    config.sample.classifier_scale = 10.0
    return finish(config, variant, "adm_256_uncond")
