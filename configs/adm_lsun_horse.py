"""ADM on LSUN horses at 256 pixels: as on bedrooms, for 250 thousand steps of 256.

Source: Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion, which also has one without dropout.
"""

from ml_collections import ConfigDict

from configs import adm_lsun
from configs.families import finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm_lsun.get_config()
    config.data.name = "tfds:lsun/horse"
    config.train.num_steps = 250_000
    return finish(config, variant, "adm_lsun_horse")
