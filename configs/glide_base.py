"""GLIDE (filtered), text to 64 pixels: 385,030,726 parameters, of which 76,695,808 read the caption.

    python sample.py --checkpoint=runs/glide_base --upsampler=runs/glide_upsample --prompt="an oil painting of a corgi"

Pretrained for 1.1 million steps, then 500 thousand with captions dropped. Here one run drops them from the start; in two
stages, as glide_paper_base.py and glide_finetune_cfg.py are, the first takes config.diffusion.cond_dropout=0.
Source: Nichol et al. 2021 (GLIDE); the weights and notebooks of openai/glide-text2im.
"""

from ml_collections import ConfigDict

from configs.families import finish, glide


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = glide()
    config.optimizer.learning_rate = 1e-4
    config.train.num_steps = 1_600_000
    return finish(config, variant, "glide_base")
