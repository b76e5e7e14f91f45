"""DDPM on CIFAR-10: 35.7 million parameters, one head, dropout 0.1.

    python -m diffusion_jax.data prepare cifar10_npm
    python train.py --config=configs/ddpm_cifar10.py --workdir=runs/ddpm_cifar10

Trained for 800 thousand steps of 128, flipped at random. Source: Ho et al. 2020, appendix B.
"""

from ml_collections import ConfigDict

from configs.families import ddpm, finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = ddpm()
    config.data.update(name="tfds:cifar10_npm", image_size=32, flip=True)
    config.model.update(
        channels=128, channel_mults=(1, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,), dropout=0.1
    )
    config.optimizer.update(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0)
    config.train.update(batch_size=128, num_steps=800_000)
    return finish(config, variant, "ddpm_cifar10")
