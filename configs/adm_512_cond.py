"""ADM on ImageNet at 512 pixels, by class: 558,997,638 parameters.

    python sample.py --checkpoint=runs/adm_512_cond --classifier=runs/adm_classifier_512 --label=207

Trained for 1940 thousand steps of 256. Source: Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, adm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm()
    config.data.image_size = 512
    config.model.channel_mults = ADM_MULTS[512]
    config.optimizer.learning_rate = 1e-4
    config.train.update(batch_size=256, num_steps=1940_000)
    return finish(config, variant, "adm_512_cond")
