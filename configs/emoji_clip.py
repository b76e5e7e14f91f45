"""GLIDE's CLIP of noisy images on captioned emoji, 32 pixels: it guides emoji.py, reranks its pictures and scores them.

    python train.py --config=configs/emoji_clip.py --workdir=runs/emoji_clip
    python sample.py --checkpoint=runs/emoji --rerank=runs/emoji_clip --num_samples=32 --best=4 --prompt="a red apple, as a blob"
    python -m diffusion_jax.evaluate --checkpoint=runs/emoji --r_precision=runs/emoji_clip

Run on all 15,052 emoji (--config.data.name=tfds:emoji/32px_all, prepared without --groups), on both cores of an AMD EPYC
(2026-11-30) beside the base's training: 1,500 steps took 55 minutes; of the 128 captions of a batch 61% are found for noised
training pictures.

Its process is emoji.py's, since a guide must know the noise of what it guides.
Source: Nichol et al. 2021 (GLIDE), section 4.4; Radford et al. 2021 (CLIP) for the loss and the learned scale.
"""

from ml_collections import ConfigDict

from configs.emoji import get_config as emoji_config
from configs.families import finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = emoji_config()
    config.model.update(kind="clip", condition="none")
    config.clip.update(
        patch_size=8,
        image_width=128,
        image_layers=4,
        image_heads=4,
        text_width=96,
        text_layers=2,
        text_heads=4,
        features=96,
        vocab_size=2048,
        context_length=24,
        learn_logit_scale=True,
    )
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, beta2=0.98, decay_steps=1500)
    config.ema.decay = 0.998
    config.train.update(batch_size=128, num_steps=1500, checkpoint_every_steps=500)
    if variant:
        config.clip.update(image_width=16, image_layers=1, image_heads=2, text_width=16, text_layers=1, text_heads=2)
    return finish(config, variant, "emoji_clip")
