"""GLIDE's CLIP of noisy images on captioned scenes, 32 pixels: it guides scenes.py and the stages that begin at scenes_base.py.

    python train.py --config=configs/scenes_clip.py --workdir=runs/scenes_clip
    python sample.py --checkpoint=runs/scenes_base --classifier=runs/scenes_clip --classifier_scale=0.3 --guidance=none \\
        --guidance_interval=0,0.9 --prompt="a large red star on a black background"

0.7 million parameters; its process is scenes.py's, since a guide must know the noise of what it guides. A batch has equal
captions, which no CLIP can tell apart: image_to_text counts them as found, text_to_image cannot. On one core of an AMD EPYC
(2026-11-27) 8 minutes, to 67% and 63% found among 64, at all noise levels together.
Source: Nichol et al. 2021 (GLIDE), section 4.4; Radford et al. 2021 (CLIP) for the loss and the learned scale.
"""

from ml_collections import ConfigDict

from configs.scenes import get_config as scenes_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = scenes_config(variant)
    config.model.update(kind="clip", condition="none")
    config.clip.update(
        patch_size=4,
        image_width=96,
        image_layers=4,
        image_heads=4,
        text_width=64,
        text_layers=2,
        text_heads=4,
        features=64,
        vocab_size=512,
        context_length=16,
        learn_logit_scale=True,
    )
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.0125, beta2=0.98, decay_steps=1000)
    if variant:
        config.clip.update(image_width=16, image_layers=1, image_heads=2, text_width=16, text_layers=1, text_heads=2)
    else:
        config.train.update(num_steps=1000, checkpoint_every_steps=500)
    return config
