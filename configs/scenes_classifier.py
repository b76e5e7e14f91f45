"""ADM's classifier of noisy images on captioned scenes, 32 pixels: the shape of the object, one of eight classes.

    python train.py --config=configs/scenes_classifier.py --workdir=runs/scenes_classifier
    python train.py --config=configs/scenes_base.py --workdir=runs/scenes_unconditional --config.model.condition=none
    python sample.py --checkpoint=runs/scenes_unconditional --classifier=runs/scenes_classifier --label=4 --classifier_scale=4

It guides the second run, which is told nothing; both have the process of scenes.py. On one core of an AMD EPYC (2026-11-30), the
other one busy: 6 minutes; cross-entropy 1.11 in the quarter of lowest noise, 2.01 in that of the highest (2.08 by chance).
Source: Dhariwal and Nichol 2021 (ADM), section 4.
"""

from ml_collections import ConfigDict

from configs.scenes import get_config as scenes_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = scenes_config(variant)
    config.model.update(
        kind="classifier", condition="none", patch_size=1, channel_mults=(1, 2, 2), attention_resolutions=(8,)
    )
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, decay_steps=800)
    if not variant:
        config.model.update(channels=24, head_channels=12)
        config.train.update(batch_size=32, num_steps=800, sample_every_steps=400, checkpoint_every_steps=400)
    return config
