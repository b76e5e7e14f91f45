"""ADM's upsampler of ImageNet, 128 to 512 pixels, by class: 308,835,270 parameters.

    python sample.py --checkpoint=runs/adm_upsampler_128_512 --base_samples=samples/samples.npz

Trained for 1050 thousand steps of 256 on pictures made small by area. Source: Dhariwal and Nichol 2021 (ADM); the
README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, adm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm()
    config.data.image_size = 512
    config.model.update(channels=192, channel_mults=ADM_MULTS[256], low_res=128, attention_resolutions=(32, 16))
    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 1050_000
    return finish(config, variant, "adm_upsampler_128_512")
