"""Of many samples the few that a CLIP likes best for their captions, as DALL-E chose what it showed."""

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from diffusion_jax import build, images
from diffusion_jax.errors import UserError
from diffusion_jax.models import Params
from diffusion_jax.sampling import stages

BATCH_SIZE = 32


def check(clip: build.Model, model: build.Model, path: str) -> None:
    """Raises UserError where a checkpoint is no CLIP of the model's captions and pictures."""
    if clip.config.model.kind != "clip":
        raise UserError(f"--rerank={path} is no CLIP: its model.kind is {clip.config.model.kind}.")
    if model.config.model.condition != "text":
        raise UserError("--rerank judges pictures by their captions: give it a checkpoint of captions.")
    if clip.image_shape != model.image_shape:
        raise UserError(
            f"--rerank={path} reads images of {clip.image_shape[0]} pixels, and --checkpoint makes {model.image_shape[0]}."
        )


def scores(
    clip: build.Model, params: Params, pictures: UInt8[np.ndarray, "N H W C"], asked: stages.Conditions
) -> Float[np.ndarray, "N"]:
    """How well each picture fits its caption: 100 <image features, text features>, of clean pictures (t = 0).

    Source: Ramesh et al. 2021 (DALL-E), section 2.6; the noised CLIP of Nichol et al. 2021 (GLIDE).
    """
    assert asked.prompts is not None, "check has seen to it"
    texts = build.text_features(clip, params, asked.prompts)[asked.every]
    log_prob = build.log_prob(clip, params)
    score = jax.jit(lambda x, texts: log_prob(x, np.float32(0), {"clip_text": texts}))
    parts = []
    for first in range(0, len(pictures), BATCH_SIZE):  # the last batch is filled up: one program
        rows = np.minimum(np.arange(first, first + BATCH_SIZE), len(pictures) - 1)
        parts.append(np.asarray(score(images.to_float(pictures[rows]), texts[rows])))
    return np.concatenate(parts)[: len(pictures)]


def best(found: Float[np.ndarray, "N"], every: Int[np.ndarray, "N"], count: int) -> Int[np.ndarray, "M"]:
    """Indices of the `count` best of each condition, the best first: all conditions' best, then all their second best.

    Args:
      found: scores.
      every: the condition of each picture, each of 0, 1, ..., equally often.
      count: at most how many there are.
    """
    order = [np.flatnonzero(every == c) for c in range(every.max() + 1)]
    ranked = [of[np.argsort(-found[of], kind="stable")][:count] for of in order]
    return np.stack(ranked, axis=1).reshape(-1)
