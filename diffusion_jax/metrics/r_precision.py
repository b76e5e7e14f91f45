"""R-precision of pictures of captions: does a picture's own caption fit it better than others do?"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float


def r_precision(
    image_features: Float[np.ndarray, "N D"],
    text_features: Float[np.ndarray, "N D"],
    captions: Sequence[Hashable],
    num_distractors: int | None = 99,
    seed: int = 0,
) -> float:
    """The share of pictures whose own caption has the largest cosine among itself and its distractors.

    A distractor is another caption of the set, no two alike and none of the picture's own words. Of captions that fit
    equally well each counts as a share: features that say nothing score 1 / (distractors + 1).

    Args:
      image_features, text_features: of picture i and of its caption, from encoders that were trained together.
      captions: what tells captions apart, such as their text.
      num_distractors: drawn for each picture; None takes all other captions of the set. The paper's is 99.
      seed: of the draws.

    Raises:
      ValueError: the lengths differ, a feature is 0 or not finite, or there are too few different captions.

    Source: Xu et al. 2018 (AttnGAN).
    """
    images, texts = _unit(image_features), _unit(text_features)
    if images.shape != texts.shape or len(captions) != len(images):
        raise ValueError(f"one caption per picture; got {images.shape}, {texts.shape}, {len(captions)} captions.")
    numbers: dict[Hashable, int] = {}
    own = np.array([numbers.setdefault(caption, len(numbers)) for caption in captions])
    first = np.unique(own, return_index=True)[1]  # a caption's first picture stands for it
    count = len(first) - 1 if num_distractors is None else num_distractors
    if not 1 <= count < len(first):
        raise ValueError(f"{len(first)} different captions are too few for {count} distractors.")
    rng, score = np.random.default_rng(seed), 0.0
    for image, caption in zip(images, own, strict=True):
        others = np.delete(first, caption)
        chosen = others if count == len(others) else rng.choice(others, count, replace=False)
        fits = texts[np.append(chosen, first[caption])] @ image
        best = fits >= fits.max() - 1e-12
        score += best[-1] / best.sum()
    return float(score / len(images))


def _unit(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    features = np.asarray(features, np.float64)
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    if features.ndim != 2 or not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError(f"features are [N, D], finite and not 0; got {list(features.shape)}.")
    return features / lengths
