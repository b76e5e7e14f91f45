"""ADM's upsampler of ImageNet, 64 to 256 pixels, by class: 311,795,910 parameters.

    python sample.py --checkpoint=runs/adm_upsampler_64_256 --base_samples=samples/samples.npz

Trained for 500 thousand steps of 256 on pictures made small by area. Source: Dhariwal and Nichol 2021 (ADM); the
README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, adm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm()
    config.data.image_size = 256
    config.model.update(channels=192, channel_mults=ADM_MULTS[256], low_res=64, num_heads=4, head_channels=0)
    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 500_000
    return finish(config, variant, "adm_upsampler_64_256")
