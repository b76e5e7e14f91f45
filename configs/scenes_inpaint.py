"""GLIDE's inpainting fine-tune on captioned scenes: 32 pixels of which a random part is shown, the rest repainted by text.

    python train.py --config=configs/scenes_inpaint.py --workdir=runs/scenes_inpaint
    python sample.py --checkpoint=runs/scenes_inpaint --init_image=a.png --mask=m.png \\
        --prompt="a large red star on a black background"

Begins at runs/scenes_finetune_cfg (--config.train.init_from=DIR for another run, runs/scenes too); the four new input
channels, the shown part and its mask, begin at zero. 14 minutes on one core of an AMD EPYC (2026-11-27; figures: docs/glide.md).
Source: Nichol et al. 2021 (GLIDE), section 4.3; masks: `masks.py`.
"""

from ml_collections import ConfigDict

from configs.scenes import get_config as scenes_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it, begun untrained."""
    config = scenes_config(variant)
    config.model.inpaint = True
    config.diffusion.cond_dropout = 0.2
    config.optimizer.update(learning_rate=1e-3, warmup_steps=20, decay_steps=1200)
    if not variant:
        config.train.update(num_steps=1200, checkpoint_every_steps=400, init_from="runs/scenes_finetune_cfg")
    return config
