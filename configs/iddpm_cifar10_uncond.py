"""Improved DDPM on CIFAR-10: 52,546,438 parameters, 4,000 steps, cosine schedule, dropout 0.3.

Trained for 500 thousand steps of 128. Source: Nichol and Dhariwal 2021; the README of openai/improved-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import finish, iddpm


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = iddpm()
    config.data.update(name="tfds:cifar10_npm", image_size=32)
    config.model.update(channel_mults=(1, 2, 2, 2), dropout=0.3)
    config.optimizer.learning_rate = 1e-4
    config.train.update(batch_size=128, num_steps=500_000)
    return finish(config, variant, "iddpm_cifar10_uncond")
