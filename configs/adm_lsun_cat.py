"""ADM on LSUN cats at 256 pixels: as on bedrooms, for 200 thousand steps of 256.

Source: Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs import adm_lsun
from configs.families import finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm_lsun.get_config()
    config.data.name = "tfds:lsun/cat"
    config.train.num_steps = 200_000
    return finish(config, variant, "adm_lsun_cat")
