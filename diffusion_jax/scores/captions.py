"""What samples show of their captions: by the caption checker, which learns nothing."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm

from diffusion_jax import build
from diffusion_jax.data.pipeline import as_text
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Progress
from diffusion_jax.metrics import caption_checker
from diffusion_jax.models import Params
from diffusion_jax.sampling import Loaded
from diffusion_jax.scores import samples
from diffusion_jax.training.placement import Placement


def captions_can_be_read(model: build.Model) -> bool:
    """Whether the caption checker reads a model's samples: they are of captioned scenes, by their text, and large enough."""
    config = model.config
    scenes = config.data.name == "captioned_scenes" and config.model.condition == "text"
    return scenes and model.image_shape[0] >= caption_checker.MIN_IMAGE_SIZE


def caption_scorer(
    model: build.Model, place: Placement, examples: list[dict[str, Any]], batch_size: int
) -> Callable[..., dict[str, float]]:
    """What samples of the captions of `examples` show of them, as the caption checker reads it.

    Returns:
      (params, scale of guidance, seed, progress as of `generate`) -> scores by attribute.
    """
    captions, indices = _captions(examples), np.arange(len(examples))
    generate, grid, cond = build.generate(model, place), build.grid(model), build.prompt_cond(model, captions)

    def score(params: Params, scale: float, seed: int, progress: Progress | None = None) -> dict[str, float]:
        knobs = build.knobs(model)._replace(guidance_scale=scale)
        made = generate(params, cond, indices, seed, knobs, grid, batch_size, progress)
        return caption_checker.score(made, captions)

    return score


def score_captions(
    loaded: Loaded, split: str, num_samples: int, scales: list[float], seeds: tuple[int, ...], batch_size: int
) -> dict[str, Any]:
    """Scores by attribute of samples of a split's captions, beside those of its own pictures, with their protocol.

    Args:
      num_samples: the split's first ones; all of them where it has fewer.
      scales, seeds: each pair makes samples of its own.

    Raises:
      UserError: the checker cannot read them.
    """
    model = loaded.model
    config, place = model.config, build.placement(model.config)
    if not captions_can_be_read(model):
        raise UserError(
            "the caption checker reads text-conditional models of captioned_scenes, of at least "
            f"{caption_checker.MIN_IMAGE_SIZE} pixels; this checkpoint is another: give a --reference."
        )
    source = samples.source(model, split)
    examples = [source[i] for i in range(min(num_samples, len(source)))]
    batch_size = -(-min(batch_size, len(examples)) // place.num_devices) * place.num_devices
    scorer = caption_scorer(model, place, examples, batch_size)
    pictures = np.stack([example["image"] for example in examples])
    scores = {"real renders": caption_checker.score(pictures, _captions(examples))}
    steps = -(-len(examples) // batch_size) * (len(build.grid(model)) - 1)
    with tqdm.tqdm(total=len(scales) * len(seeds) * steps, desc="sample", unit="step", dynamic_ncols=True) as bar:
        for scale, seed in itertools.product(scales, seeds):
            scores[samples.set_name(scale, seed, seeds)] = scorer(loaded.params, scale, seed, bar.update)
    record = {
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "split": split,
        "num_samples": len(examples),
        "seeds": list(seeds),
        "sample": config.sample.to_dict(),
        "jax": jax.__version__,
        "scores": scores,
    }
    return record | ({"over_seeds": samples.over_seeds(scores, scales, seeds)} if len(seeds) > 1 else {})


def _captions(examples: list[dict[str, Any]]) -> list[str]:
    return [as_text(example["caption"]) for example in examples]
