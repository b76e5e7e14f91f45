"""GLIDE as in its paper, text to 64 pixels: 3.55 billion parameters (never published).

    python train.py --config=configs/glide_paper_base.py --workdir=runs/glide_paper_base

Trained for 2.5 million steps of 2048, every caption shown; glide_finetune_cfg.py goes on from it for classifier-free
guidance. Source: Nichol et al. 2021 (GLIDE), section 4; the weights and notebooks of openai/glide-text2im.
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
    config.diffusion.cond_dropout = 0.0
    config.sample.update(spacing="150", guidance="none")
    return finish(config, variant, "glide_paper_base")
