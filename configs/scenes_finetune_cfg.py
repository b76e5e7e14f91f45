"""GLIDE's fine-tune for classifier-free guidance on captioned scenes: scenes_base.py with one caption in five left empty.

    python train.py --config=configs/scenes_finetune_cfg.py --workdir=runs/scenes_finetune_cfg

Begins at runs/scenes_base (--config.train.init_from=DIR for another run). A quarter of the base's steps at a third of its
rate: 6 minutes on one core of an AMD EPYC (2026-11-27; figures: docs/glide.md).
Source: Nichol et al. 2021 (GLIDE), section 4.2.
"""

from ml_collections import ConfigDict

from configs.scenes import get_config as scenes_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it, begun untrained."""
    config = scenes_config(variant)
    config.diffusion.cond_dropout = 0.2
    config.optimizer.update(learning_rate=1e-3, warmup_steps=20, decay_steps=600)
    if not variant:
        config.train.update(num_steps=600, sample_every_steps=300, checkpoint_every_steps=300)
        config.train.init_from = "runs/scenes_base"
    return config
