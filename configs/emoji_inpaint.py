"""GLIDE's inpainting fine-tune on captioned emoji: 32 pixels of which a random part is shown, the rest repainted by text.

    python train.py --config=configs/emoji_inpaint.py --workdir=runs/emoji_inpaint
    python sample.py --checkpoint=runs/emoji_inpaint --init_image=a.png --mask=m.png --prompt="a grinning face, as a blob"

Begins at runs/emoji (--config.train.init_from=DIR for another run). On one core of an AMD EPYC
(2026-11-30), the other one busy, it took 21 minutes.
Source: Nichol et al. 2021 (GLIDE), section 4.3; masks: `masks.py`.
"""

from ml_collections import ConfigDict

from configs.emoji import get_config as emoji_config
from configs.families import finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it, begun untrained."""
    config = emoji_config()
    config.model.inpaint = True
    config.optimizer.update(learning_rate=7e-4, warmup_steps=20, decay_steps=900)
    config.ema.decay = 0.998
    config.train.update(num_steps=900, sample_every_steps=300, checkpoint_every_steps=300, init_from="runs/emoji")
    return finish(config, variant, "emoji_inpaint")
