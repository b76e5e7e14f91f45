"""GLIDE (filtered), 64 to 256 pixels where a part of the large picture is known: 398,368,198 parameters.

Source: Nichol et al. 2021 (GLIDE); the weights and notebooks of openai/glide-text2im.
"""

from ml_collections import ConfigDict

from configs.families import finish, glide_upsampler


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = glide_upsampler()
    config.model.inpaint = True
    config.optimizer.learning_rate = 1e-4
    config.sample.sampler = "ancestral"
    config.train.init_from = "runs/glide_upsample"
    return finish(config, variant, "glide_upsample_inpaint")
