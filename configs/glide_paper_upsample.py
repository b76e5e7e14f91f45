"""GLIDE as in its paper, 64 to 256 pixels: 1.54 billion parameters (never published).

The paper does not say how deep its text transformer is; 16 layers come nearest to its 1.5 billion. Trained for 1.6
million steps of 512. Source: Nichol et al. 2021 (GLIDE); the weights and notebooks of openai/glide-text2im.
"""

from ml_collections import ConfigDict

from configs.families import finish, glide_upsampler


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = glide_upsampler()
    config.text.update(width=1024, num_layers=16, num_heads=16)
    config.model.update(channels=384, dtype="bfloat16", remat="full")
    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 1_600_000
    return finish(config, variant, "glide_paper_upsample")
