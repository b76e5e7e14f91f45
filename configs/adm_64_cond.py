"""ADM on ImageNet at 64 pixels, by class: 295,904,454 parameters; cosine schedule, dropout 0.1, qkv in the new order.

    python sample.py --checkpoint=runs/adm_64_cond --classifier=runs/adm_classifier_64 --label=207

Trained for 540 thousand steps of 2048. Source: Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import ADM_MULTS, adm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm()
    config.data.image_size = 64
    config.diffusion.schedule = "ddpm_cosine"
    config.model.update(channels=192, channel_mults=ADM_MULTS[64], num_res_blocks=3, dropout=0.1, qkv_order="new")
    config.optimizer.learning_rate = 3e-4
    config.train.update(batch_size=2048, num_steps=540_000)
    return finish(config, variant, "adm_64_cond")
