"""A classifier of noisy Fashion-MNIST at 28 pixels, 0.79 million parameters: configs/classifier_cifar10.py at half its width.

    python -m diffusion_jax.data prepare fashion_mnist_idx
    python train.py --config=configs/classifier_fashion_mnist.py --workdir=runs/classifier_fashion_mnist
    python -m diffusion_jax.evaluate --checkpoint=runs/classifier_fashion_mnist --split=test    # its accuracy
    python -m diffusion_jax.evaluate --checkpoint=runs/annotated --reference=data:test --num_samples=1000 \\
        --features=classifier --features_file=runs/classifier_fashion_mnist

It knows the noise of configs/annotated_fashion_mnist.py. Five minutes on two cores of an AMD EPYC (2026-11-27; 340 steps, with
--config.optimizer.decay_steps=450 --config.optimizer.warmup_steps=50 --config.ema.decay=0.98) give 77.0% of the clean test set;
the recipe's 30,000 steps are for a GPU.
"""

from ml_collections import ConfigDict

from configs.classifier_cifar10 import small_classifier
from configs.families import finish


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variant "debug" is a tiny size of it."""
    config = small_classifier("tfds:fashion_mnist_idx", 28)
    config.data.channels = 1
    config.model.channels = 32
    config.diffusion.update(schedule="ddpm_linear_unscaled", num_table_steps=300)
    config.optimizer.decay_steps = 6_000
    config.train.update(batch_size=128, num_steps=6_000)
    return finish(config, variant, "classifier_fashion_mnist")
