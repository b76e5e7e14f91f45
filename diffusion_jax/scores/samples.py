"""A checkpoint's samples as sets of pictures, and the split of its data set that they are of."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax import build, processes
from diffusion_jax.data import faults
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import comparison, sets
from diffusion_jax.models import Params
from diffusion_jax.training.placement import Placement

# Calls of the denoiser in N steps; N for every other sampler.
EVALUATIONS = {"heun": lambda n: 2 * n - 1, "midpoint": lambda n: 2 * n, "plms": lambda n: n + 1}
Sample = Callable[..., Iterator[UInt8[np.ndarray, "B H W C"]]]


def source(model: build.Model, split: str) -> Any:
    """A split of the model's data set; of several processes the first prepares it.

    Raises:
      UserError: it is not there.
    """
    return processes.first_then_others(lambda: build.source(model.config, split))


def real_pictures(model: build.Model, split: str, count: int | None = None) -> sets.PictureSet:
    """The first pictures of a split, as training reads them but in the middle and not mirrored; all where count is None.

    Raises:
      UserError: the split is not there; while they are read, one cannot be used.
    """
    examples, encode = source(model, split), build.encode_example(model)
    count = len(examples) if count is None else min(count, len(examples))

    def batches(batch_size: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        for start in range(first, count, batch_size):
            rows = range(start, min(start + batch_size, count))
            yield np.stack([faults.named(examples, i, encode.image) for i in rows])

    return sets.PictureSet(f"{model.config.data.name}, {split}", count, batches)


def captions_of_split(model: build.Model, split: str, count: int) -> list[str]:
    """Caption i is that of example i of the split, from the start again where there are fewer.

    Raises:
      UserError: the split is not there, or a caption cannot be used.
    """
    examples, encode = source(model, split), build.encode_example(model)
    return [faults.named(examples, i % len(examples), encode.caption) for i in range(count)]


def make_sample(model: build.Model, place: Placement, count: int, captions: list[str] | None) -> Sample:
    """A checkpoint's samples of captions, of classes at random, or of neither; one program serves all scales and seeds.

    Args:
      count: how many.
      captions: of a text-conditional model, one for each.

    Returns:
      (params, scale of guidance, seed, batch size, first=0) -> batches of pictures from the first on.

    Raises:
      UserError: the model makes no pictures of its own.
    """
    config = model.config
    if config.model.kind in ("classifier", "clip"):
        raise UserError(f"this checkpoint is a {config.model.kind}, which makes no pictures: give one that does.")
    if config.model.low_res or config.model.inpaint:
        raise UserError(
            "this checkpoint changes given pictures: sample it by sample.py, and give --samples=FOLDER/samples.npz."
        )
    given = build.prompt_cond(model, captions) if captions is not None else {}
    generate, grid = build.generate(model, place), build.grid(model)

    def sample(
        params: Params, scale: float, seed: int, batch_size: int, first: int = 0
    ) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        knobs, cond = build.knobs(model)._replace(guidance_scale=scale), given
        if config.model.condition == "label":
            labels = np.random.default_rng(seed).integers(config.data.num_classes, size=count)
            cond = {"label": labels.astype(np.int32)}
        for start in range(first, count, batch_size):
            rows = np.arange(start, min(start + batch_size, count))
            part = jax.tree.map(lambda x, rows=rows: x[rows], cond)
            yield generate(params, part, rows, seed, knobs, grid, batch_size)

    return sample


def sampled(
    model: build.Model,
    params: Params,
    place: Placement,
    count: int,
    captions: list[str] | None,
    scales: list[float],
    seeds: tuple[int, ...],
) -> list[sets.PictureSet]:
    """A set of samples for each scale of guidance and seed, as `make_sample`."""
    sample, placed = make_sample(model, place, count, captions), place.replicate(params)
    return [
        sets.PictureSet(set_name(scale, seed, seeds), count, functools.partial(sample, placed, scale, seed))
        for scale in scales
        for seed in seeds
    ]


def network_evaluations(model: build.Model) -> int:
    """Calls of the network for each sample."""
    config, steps = model.config.sample, len(build.grid(model)) - 1
    guided = config.guidance != "none" and (config.guidance == "autoguidance" or bool(model.null_cond))
    return EVALUATIONS.get(config.sampler, lambda n: n)(steps) * (2 if guided else 1)


def set_name(scale: float, seed: int, seeds: tuple[int, ...]) -> str:
    """What the samples of a scale of guidance and a seed are called; the seed is told where there are several."""
    return f"guidance {scale:g}" + (f", seed {seed}" if len(seeds) > 1 else "")


def over_seeds(
    rows: dict[str, dict[str, float]], scales: list[float], seeds: tuple[int, ...]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and spread over the seeds, for each scale of guidance; `rows` are by `set_name`."""
    return {
        f"guidance {scale:g}": comparison.over_seeds([rows[set_name(scale, seed, seeds)] for seed in seeds])
        for scale in scales
    }


def with_spread(record: dict[str, Any], figures: str) -> dict[str, dict[str, float]]:
    """The rows of a record's figures and, where it has them, those of means and spreads over seeds."""
    more = {
        f"{name}, {which}": row for name, both in record.get("over_seeds", {}).items() for which, row in both.items()
    }
    return record[figures] | more


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Rows of scores by attribute, as text; a dash where an attribute has no score."""
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    width = max(map(len, scores)) + 2
    lines = [" " * width + "".join(f"{name.replace('_and_', '+'):>14}" for name in names)]
    for label, row in scores.items():
        lines.append(
            f"{label:{width}}" + "".join(f"{row[name]:14.3f}" if name in row else f"{'-':>14}" for name in names)
        )
    return "\n".join(lines)
