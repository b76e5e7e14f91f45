"""How often a classifier of ours is right about clean pictures."""

from typing import Any

import jax
import numpy as np
import tqdm

from diffusion_jax import build
from diffusion_jax.data import faults
from diffusion_jax.metrics import features
from diffusion_jax.sampling import Loaded
from diffusion_jax.scores import extractors, samples


def accuracy(loaded: Loaded, split: str, num_samples: int | None, batch_size: int) -> dict[str, Any]:
    """The share of a split's pictures whose class has the largest logit at the classifier's least time, with its protocol.

    Args:
      num_samples: the split's first ones; None takes all.

    Raises:
      UserError: the split is not there, or an example of it cannot be used.
    """
    model = loaded.model
    place = build.placement(model.config)
    batch_size = -(-batch_size // place.num_devices) * place.num_devices
    pictures = samples.real_pictures(model, split, num_samples)
    source, encode = samples.source(model, split), build.encode_example(model)
    labels = np.array([faults.named(source, i, encode.label) for i in range(pictures.count)])
    extract, logits = features.make_extract(extractors.of_classifier(loaded), place), []
    with tqdm.tqdm(total=pictures.count, desc=pictures.name, unit="picture", dynamic_ncols=True) as bar:
        for batch in extract(pictures.batches(batch_size), batch_size):
            logits.append(batch["logits"])
            bar.update(len(batch["logits"]))
    right = np.concatenate(logits).argmax(-1) == labels
    return {
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "split": split,
        "num_samples": pictures.count,
        "jax": jax.__version__,
        "scores": {pictures.name: {"accuracy": float(right.mean())}},
    }
