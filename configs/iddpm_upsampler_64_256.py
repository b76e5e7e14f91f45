"""Improved DDPM's upsampler of ImageNet, 64 to 256 pixels, by class: 279,792,390 parameters.

Trained for 500 thousand steps of 256. Source: Nichol and Dhariwal 2021; the README of openai/improved-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, finish, iddpm


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = iddpm()
    config.data.update(name="tfds:imagenet2012", image_size=256, num_classes=1000)
    config.diffusion.update(schedule="ddpm_linear", rescale_times=False, objective="mse")
    config.model.update(
        condition="label", null_class=False, channels=192, channel_mults=ADM_MULTS[256], num_res_blocks=2, low_res=64
    )
    config.optimizer.learning_rate = 3e-4
    config.train.update(batch_size=256, num_steps=500_000)
    return finish(config, variant, "iddpm_upsampler_64_256")
