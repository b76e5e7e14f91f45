"""Improved DDPM on ImageNet 64 by the variational bound alone, its steps drawn by past losses: 3.53 bits per dimension.

The network is that of iddpm_imagenet64_uncond. Source: Nichol and Dhariwal 2021, Table 1; the README of openai/improved-diffusion.
"""

from ml_collections import ConfigDict

from configs import iddpm_imagenet64_uncond
from configs.families import finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = iddpm_imagenet64_uncond.get_config()
    config.diffusion.update(objective="rescaled_kl", time="loss_second_moment")
    return finish(config, variant, "iddpm_imagenet64_uncond_vlb")
