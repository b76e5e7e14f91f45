"""GLIDE's CLIP of noisy images as in its paper, a ViT-L at 64 pixels (never published): it guides glide_paper_base.py.

    python train.py --config=configs/glide_paper_clip.py --workdir=runs/glide_paper_clip

Both encoders have the sizes of CLIP's own ViT-L; patches of 4 pixels are the published smaller model's. Trained for 390 thousand
steps of 32,768 pairs, with weight decay 0.0125; the rate, its warm-up and decay are CLIP's, for GLIDE's were not told.
Source: Nichol et al. 2021 (GLIDE), section 4.4; Radford et al. 2021 (CLIP), tables 18 to 20.
"""

from ml_collections import ConfigDict

from configs.glide_clip import get_config as clip_config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = clip_config(variant)
    config.optimizer.update(learning_rate=4e-4, decay="cosine", decay_steps=390_000, beta2=0.98)
    if not variant:
        config.clip.update(image_width=1024, image_layers=24, image_heads=16, features=768)
        config.clip.update(text_width=768, text_layers=12, text_heads=12)
        config.optimizer.warmup_steps = 2000
        config.model.dtype = "bfloat16"
    return config
