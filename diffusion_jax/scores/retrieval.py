"""R-precision of a checkpoint's samples, by a CLIP that was trained on such pictures and captions."""

from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Float

from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import features, sets
from diffusion_jax.metrics import r_precision as metric
from diffusion_jax.sampling import Loaded
from diffusion_jax.scores import extractors, samples

DISTRACTORS = 99  # the paper's; fewer where the captions are fewer


def r_precision(
    loaded: Loaded,
    clip: str,
    split: str,
    num_samples: int,
    scales: list[float],
    seeds: tuple[int, ...],
    batch_size: int,
) -> dict[str, Any]:
    """R-precision of samples of a split's captions beside that of its own pictures, the most to be had, with its protocol.

    Args:
      loaded: the text-conditional checkpoint that is judged.
      clip: a CLIP's checkpoint, whose features judge.
      num_samples: the split's first ones; all of them where it has fewer.
      scales, seeds: each pair makes samples of its own.

    Raises:
      UserError: the checkpoints do not go together, or the captions are all the same.
    """
    model = loaded.model
    if model.config.model.condition != "text":
        raise UserError(
            "R-precision asks whether pictures fit their captions; this checkpoint's condition is "
            f"{model.config.model.condition!r}: give a text-conditional one."
        )
    extractor, text_features = extractors.clip_extractor(clip)
    place = build.placement(model.config)
    batch_size = -(-batch_size // place.num_devices) * place.num_devices
    extract = features.make_extract(extractor, place)
    real = samples.real_pictures(model, split, num_samples)
    captions = samples.captions_of_split(model, split, real.count)
    distinct = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    if len(distinct) < 2:
        raise UserError(f"the first {real.count} captions of {split} are all the same: give a larger --num_samples.")
    texts = text_features(list(distinct))[[distinct[caption] for caption in captions]]
    count = min(DISTRACTORS, len(distinct) - 1)

    def precision(pictures: sets.PictureSet) -> dict[str, float]:
        found = _features(pictures, extract, batch_size)
        return {"r_precision": metric.r_precision(found, texts, captions, count)}

    made = samples.sampled(model, loaded.params, place, real.count, captions, scales, seeds)
    scores = {"real pictures": precision(real)} | {pictures.name: precision(pictures) for pictures in made}
    record = {
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "clip": {"name": extractor.name, "sha256": extractor.sha256, **extractor.protocol},
        "split": split,
        "num_samples": real.count,
        "num_distractors": count,
        "seeds": list(seeds),
        "sample": model.config.sample.to_dict(),
        "jax": jax.__version__,
        "scores": scores,
    }
    return record | ({"over_seeds": samples.over_seeds(scores, scales, seeds)} if len(seeds) > 1 else {})


def _features(pictures: sets.PictureSet, extract: features.Extract, batch_size: int) -> Float[np.ndarray, "N D"]:
    with tqdm.tqdm(total=pictures.count, desc=pictures.name, unit="picture", dynamic_ncols=True) as bar:
        found = []
        try:
            for batch in extract(pictures.batches(batch_size), batch_size):
                found.append(batch["pool"])
                bar.update(len(batch["pool"]))
        except ValueError as error:
            raise UserError(f"{pictures.name}: {error}") from error
    return np.concatenate(found)
