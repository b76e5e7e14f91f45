"""A small GLIDE on captioned emoji, its first stage: text to 32 pixels, "a red apple, in the style of Noto".

    python -m diffusion_jax.data prepare emoji --image_size=32 --licences=all --groups=smileys,animals,food
    python train.py --config=configs/emoji.py --workdir=runs/emoji

4.0 million parameters. 15,052 pictures in seven drawing styles; a tenth of the concepts (validation) and three further styles
(test) are held out. On both cores of an AMD EPYC (2026-11-30), with the trainings of its CLIP and upsampler beside it, the 10,000
steps took 107 minutes. Styles, faces and heads are drawn, and colours of some things; most single objects are not: there are
3,668 concepts, people in five skin tones each among them, and each picture was seen 21 times. R-precision among 100 captions of
held-out concepts is 0.22 of 256 samples at guidance 2, 0.42 of real pictures (`emoji_clip.py`), 0.01 by chance. An earlier run,
3,000 steps of 64 in 46 minutes of one core, had FID 164 and KID 0.105 of 1,024 samples beside the 1,287 held-out pictures. Give a
GPU or a night more steps (--config.train.num_steps=60000 --config.optimizer.decay_steps=60000).
"""

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from configs.families import finish

PROMPTS = (
    "a red apple, in the style of Noto",
    "a grinning face, as a line drawing",
    "a red heart, in the style of Twitter",
    "a dog face, as a blob",
    "a deciduous tree, in the style of EmojiOne",
    "a banana, in the old style of EmojiOne",
    "a fish, in the style of Firefox",
    "a tomato, in the style of Noto",
)


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = default_config()
    config.data.name = "tfds:emoji/32px_all_smileys_animals_food"
    config.text.update(vocab_size=2048, context_length=24, width=96, num_layers=2, num_heads=4)
    config.model.update(
        channels=64,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8, 4),
        head_channels=32,
        norm_groups=8,
        patch_size=4,
    )
    config.diffusion.update(parameterization="x0", loss_space="x0", time="uniform", cond_dropout=0.15)
    config.optimizer.update(learning_rate=1.5e-3, warmup_steps=100, decay="cosine", decay_steps=20000, beta2=0.99)
    config.ema.decay = 0.999
    config.train.update(
        batch_size=32, num_steps=20000, log_every_steps=50, sample_every_steps=2000, checkpoint_every_steps=500
    )
    config.sample.update(sampler="ddim", num_steps=25, guidance_scale=2.0, prompts=PROMPTS)
    return finish(config, variant, "emoji")
