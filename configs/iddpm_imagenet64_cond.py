"""Improved DDPM on ImageNet at 64 pixels by class: 273,049,350 parameters, 4,000 steps, times as they are.

Trained for 250 thousand steps of 2048. Source: Nichol and Dhariwal 2021; the README of openai/improved-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, finish, iddpm


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = iddpm()
    config.data.update(name="tfds:imagenet2012", image_size=64, num_classes=1000)
    config.diffusion.update(rescale_times=False, objective="mse")
    config.model.update(condition="label", null_class=False, channels=192, channel_mults=ADM_MULTS[64])
    config.optimizer.learning_rate = 3e-4
    config.train.update(batch_size=2048, num_steps=250_000)
    return finish(config, variant, "iddpm_imagenet64_cond")
