"""GLIDE as in its paper, text to 64 pixels: 3.55 billion parameters (never published).

Trained for 2.5 million steps of 2048. Source: Nichol et al. 2021 (GLIDE); the weights and notebooks of openai/glide-
text2im.
"""

from ml_collections import ConfigDict

from configs.families import finish, glide


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = glide()
    config.text.update(width=2048, num_layers=24, num_heads=32, scan_layers=True)
    config.model.update(channels=512, dtype="bfloat16", remat="full")
    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 2_500_000
    config.sample.spacing = "150"
    return finish(config, variant, "glide_paper_base")
