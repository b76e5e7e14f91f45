"""ADM's classifier of noisy ImageNet at 64 pixels: 65,438,568 parameters.

Its paper guides 250 steps with scale 1.0. Trained for 300 thousand steps of 1024, on crops of 0.8 to 1. Source:
Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import adm_classifier, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm_classifier(64)
    config.diffusion.schedule = "ddpm_cosine"
    config.model.num_res_blocks = 4
    config.optimizer.update(learning_rate=6e-4, weight_decay=0.2, decay_steps=300_000)
    config.train.update(batch_size=1024, num_steps=300_000)
    return finish(config, variant, "adm_classifier_64")
