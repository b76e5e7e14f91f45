"""Improved DDPM on ImageNet at 64 pixels: 121,063,942 parameters, 4,000 steps, cosine schedule.

Trained for 1.5 million steps of 128. Source: Nichol and Dhariwal 2021; the README of openai/improved-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, finish, iddpm


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = iddpm()
    config.data.update(name="tfds:imagenet2012", image_size=64)
    config.model.channel_mults = ADM_MULTS[64]
    config.optimizer.learning_rate = 1e-4
    config.train.update(batch_size=128, num_steps=1_500_000)
    return finish(config, variant, "iddpm_imagenet64_uncond")
