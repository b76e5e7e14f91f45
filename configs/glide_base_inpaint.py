"""GLIDE (filtered) that repaints a part of 64-pixel pictures by text: 385,037,638 parameters.

    python sample.py --checkpoint=runs/glide_base_inpaint --prompt="a corgi in a field" --init_image=a.png --mask=m.png

Fine-tuned from the base with random parts erased (`diffusion_jax/masks.py`); its new input channels begin at zero.
Source: Nichol et al. 2021 (GLIDE); the weights and notebooks of openai/glide-text2im.
"""

from ml_collections import ConfigDict

from configs.families import finish, glide


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = glide()
    config.model.inpaint = True
    config.optimizer.learning_rate = 1e-4
    config.train.update(num_steps=500_000, init_from="runs/glide_base")
    config.sample.guidance_scale = 5.0
    return finish(config, variant, "glide_base_inpaint")
