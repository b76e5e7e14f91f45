"""GLIDE as in its paper, fine-tuned for classifier-free guidance: the base with one caption in five left empty.

    python train.py --config=configs/glide_finetune_cfg.py --workdir=runs/glide_finetune_cfg

Begins at glide_paper_base.py's averaged parameters (--config.train.init_from=DIR for others: a run's or converted ones). The
paper tells neither steps nor rate of it; 500 thousand steps are the published smaller model's, the rate is the base's.
Source: Nichol et al. 2021 (GLIDE), section 4.2.
"""

from ml_collections import ConfigDict

from configs.families import finish
from configs.glide_paper_base import get_config as base_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = base_config()
    config.diffusion.cond_dropout = 0.2
    config.train.update(num_steps=500_000, init_from="runs/glide_paper_base")
    config.sample.guidance = "classifier_free"
    return finish(config, variant, "glide_finetune_cfg")
