"""GLIDE (filtered), 64 to 256 pixels: 398,361,286 parameters.

Source: Nichol et al. 2021 (GLIDE); the weights and notebooks of openai/glide-text2im.
"""

from ml_collections import ConfigDict

from configs.families import finish, glide_upsampler


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = glide_upsampler()
    config.optimizer.learning_rate = 1e-4
    return finish(config, variant, "glide_upsample")
