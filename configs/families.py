"""What the recipes of one family share: improved DDPM's, ADM's and its classifiers', GLIDE's. Recipes set the rest."""

from ml_collections import ConfigDict

from configs.default import get_config as default_config


def ddpm() -> ConfigDict:
    """eps at the 1,000 steps of a table, sampled at every step by the ancestral chain. Ho et al. 2020."""
    config = default_config()
    config.diffusion.update(
        schedule="ddpm_linear",
        parameterization="eps",
        loss_space="eps",
        time="discrete_uniform",
        variance="large",
        cond_dropout=0.0,
    )
    config.model.update(condition="none", adaptive_norm=False, resblock_updown=False, num_heads=1)
    config.optimizer.update(warmup_steps=0, clip_norm=0.0)
    config.sample.update(sampler="ancestral", grid="respaced", spacing="1000", guidance="none")
    return config


def iddpm() -> ConfigDict:
    """Improved DDPM: a learned variance, the hybrid loss, 4,000 steps whose times the network is told as if of 1,000."""
    config = ddpm()
    config.diffusion.update(
        schedule="ddpm_cosine",
        num_table_steps=4000,
        rescale_times=True,
        variance="learned_range",
        objective="rescaled_mse",
    )
    config.model.update(channels=128, num_res_blocks=3, attention_resolutions=(16, 8), num_heads=4, adaptive_norm=True)
    config.sample.spacing = "250"
    return config


def adm() -> ConfigDict:
    """ADM: class-conditional ImageNet, a learned variance, heads of 64 channels, resampling inside residual blocks."""
    config = ddpm()
    config.data.update(name="tfds:imagenet2012", num_classes=1000, flip=True)
    config.diffusion.update(variance="learned_range", objective="mse")
    config.model.update(
        condition="label",
        null_class=False,
        channels=256,
        num_res_blocks=2,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        adaptive_norm=True,
        resblock_updown=True,
    )
    config.train.batch_size = 256
    config.sample.spacing = "250"
    return config


def adm_classifier(image_size: int) -> ConfigDict:
    """ADM's classifier of noisy images: half of its U-Net at 128 channels, attention pool, weight decay, rate to 0."""
    config = adm()
    config.data.update(image_size=image_size, crop="random")
    config.diffusion.update(variance="small")
    config.model.update(kind="classifier", condition="none", channels=128, channel_mults=ADM_MULTS[image_size])
    config.optimizer.update(learning_rate=3e-4, weight_decay=0.05, decay="linear", decay_steps=500_000)
    config.train.update(num_steps=500_000)
    return config


def glide() -> ConfigDict:
    """GLIDE: captions of 128 tokens by a transformer of 16 layers; classifier-free guidance; ADM's U-Net of 192 channels.

    The learning rate, EMA and masks of its training were not published; those here are ADM's for a network of this size.
    """
    config = adm()
    config.data.update(name="folder:data/captioned", image_size=64, flip=False)
    config.text.update(tokenizer="gpt2", vocab_size=50257, context_length=128, width=512, num_layers=16, num_heads=8)
    config.diffusion.update(schedule="ddpm_cosine", cond_dropout=0.2)
    config.model.update(
        condition="text", channels=192, channel_mults=(1, 2, 3, 4), num_res_blocks=3, dropout=0.1, head_channels=64
    )
    config.train.update(batch_size=2048)
    config.sample.update(guidance="classifier_free", guidance_scale=3.0, spacing="100")
    config.sample.prompts = ("an oil painting of a corgi", "a hedgehog using a calculator")
    return config


def glide_upsampler() -> ConfigDict:
    """GLIDE's second stage, 64 to 256 pixels, told the caption and the small picture, and not guided: DDIM over "fast27"."""
    config = glide()
    config.data.image_size = 256
    config.diffusion.update(schedule="ddpm_linear", cond_dropout=0.0)
    config.model.update(channel_mults=ADM_MULTS[256], num_res_blocks=2, low_res=64)
    config.train.update(batch_size=512, num_steps=400_000)
    config.sample.update(sampler="ddim", spacing="fast27", temperature=0.997, guidance="none")
    return config


# Widths per level, by image size. At 64 pixels: guided-diffusion's script_util; so for the others.
ADM_MULTS = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


def finish(config: ConfigDict, variant: str, name: str) -> ConfigDict:
    """The recipe, or its variant "debug": a tiny size of it on the built-in scenes, to see that everything runs."""
    if variant not in ("", "debug"):
        raise ValueError(f"configs/{name}.py has the variants '' and 'debug'; got {variant!r}.")
    if variant == "debug":
        config.data.update(name="captioned_scenes", image_size=32, channels=3, num_train_images=64, num_classes=8)
        config.text.update(tokenizer="trained", vocab_size=512, context_length=16, width=16, num_layers=1, num_heads=2)
        config.model.update(
            channels=16,
            channel_mults=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(16,),
            num_heads=2,
            head_channels=8,
            norm_groups=8,
            low_res=16 if config.model.low_res else 0,
        )
        config.optimizer.warmup_steps = 0
        config.train.update(
            init_from="", batch_size=8, num_steps=4, log_every_steps=2, sample_every_steps=4, checkpoint_every_steps=2
        )
        config.sample.update(spacing="fast27" if config.sample.spacing == "fast27" else "4", samples_per_prompt=1)
        config.sample.prompts = default_config().sample.prompts
    return config
