"""ADM's classifier of noisy ImageNet at 128 pixels: 42,568,040 parameters.

Its paper guides 250 steps with scale 0.5. Trained for 300 thousand steps of 256, on crops of 0.8 to 1. Source:
Dhariwal and Nichol 2021 (ADM); the README of openai/guided-diffusion.
"""

from ml_collections import ConfigDict

from configs.families import adm_classifier, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = adm_classifier(128)
    config.optimizer.update(learning_rate=3e-4, weight_decay=0.05, decay_steps=300_000)
    config.train.update(batch_size=256, num_steps=300_000)
    return finish(config, variant, "adm_classifier_128")
