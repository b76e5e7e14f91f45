"""GLIDE's CLIP of noisy images at 64 pixels, the published size: 86,443,776 parameters for pictures, 71,679,488 for captions.

    python sample.py --checkpoint=runs/glide_base --classifier=runs/glide_clip --classifier_scale=3 --guidance=none \\
        --sampler=ancestral --prompt="an oil painting of a corgi"

Both lie in one space, of similarities times a learned scale, which has come to its bound of 100 in the published weights.
The paper's, a ViT-L (glide_paper_clip.py), saw 390 thousand steps of 32,768 pairs, with weight decay 0.0125.
Source: Nichol et al. 2021 (GLIDE); the weights of openai/glide-text2im.
"""

from ml_collections import ConfigDict

from configs.families import finish, glide


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = glide()
    config.model.update(kind="clip", condition="none")
    config.text.update(tokenizer="clip", vocabulary="bpe_simple_vocab_16e6.txt.gz")
    config.clip.learn_logit_scale = True
    config.diffusion.variance = "small"
    config.optimizer.weight_decay = 0.0125
    config.train.update(batch_size=32_768, num_steps=390_000)
    config = finish(config, variant, "glide_clip")
    if variant == "debug":
        config.clip.update(
            image_width=16,
            image_layers=1,
            image_heads=2,
            text_width=16,
            text_layers=1,
            text_heads=2,
            features=8,
            vocab_size=512,
        )
    return config
