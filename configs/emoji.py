"""A small GLIDE on captioned emoji, its first stage: text to 32 pixels, "a red apple, in the style of Noto".

    python -m diffusion_jax.data prepare emoji --image_size=32 --licences=all --groups=smileys,animals,food
    python train.py --config=configs/emoji.py --workdir=runs/emoji

4.0 million parameters; 2,154 pictures of faces, animals and food in seven drawing styles. A tenth of the concepts (validation) and
three further styles (test) are held out. Run so far in three parts, each begun at the one before (--config.train.init_from), on an
AMD EPYC (2026-11-30): 10,000 steps on all 15,052 emoji (107 minutes of both cores, other trainings beside), 3,630 on the 8,167
without skin tones (42 minutes of one core), 4,800 on these alone (54 minutes of one core). Hearts, faces, cats and fruit are
drawn, in the style asked for; most animals are shapes of the right colour. Of 195 samples at guidance 2 beside the 195 held-out
pictures FID is 199 and KID 0.069; R-precision among 100 captions is 0.072 where real pictures have 0.092 (`emoji_clip.py`).
The 20,000 steps in one piece, two hours of both cores by the rate measured (2.9 a second, quiet), were not run.
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
