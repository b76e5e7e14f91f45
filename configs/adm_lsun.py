"""ADM on LSUN bedrooms at 256 pixels: 552,814,086 parameters, dropout 0.1.

Trained for 500 thousand steps of 256. Source: Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, adm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm()
    config.data.update(name="tfds:lsun/bedroom", image_size=256)
    config.model.update(condition="none", channel_mults=ADM_MULTS[256], dropout=0.1)
    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 500_000
    config.sample.spacing = "1000"
    return finish(config, variant, "adm_lsun")
