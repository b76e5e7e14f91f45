"""Improved DDPM on LSUN bedrooms at 256 pixels: 113,676,678 parameters, one head, 1,000 steps, linear schedule.

Trained for 1.2 million steps of 128. Source: Nichol and Dhariwal 2021; the README of openai/improved-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, finish, iddpm


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = iddpm()
    config.data.update(name="tfds:lsun/bedroom", image_size=256)
    config.diffusion.update(schedule="ddpm_linear", num_table_steps=1000)
    config.model.update(
        channel_mults=ADM_MULTS[256], num_res_blocks=2, attention_resolutions=(16,), num_heads=1, adaptive_norm=False
    )
    config.optimizer.learning_rate = 1e-4
    config.train.update(batch_size=128, num_steps=1_200_000)
    return finish(config, variant, "iddpm_lsun")
