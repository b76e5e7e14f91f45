"""The pictures that training shows: of captions or classes; or given ones enlarged or repainted, beside the real ones."""

import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax import build, conditions, images, masks, vectors
from diffusion_jax.data.faults import BadExample
from diffusion_jax.data.pipeline import Source
from diffusion_jax.generate import Inputs
from diffusion_jax.keys import keys_per_example
from diffusion_jax.training.hooks import SampleGrid
from diffusion_jax.training.placement import Placement

GUIDES = ("classifier", "clip")  # kinds of model that guide others and make no pictures
MAX_CLASSES = 16  # rows
GIVEN = 8  # pictures of the data set that are enlarged or repainted


def sample_grid(
    model: build.Model, place: Placement, workdir: pathlib.Path, source: Source
) -> SampleGrid | vectors.SamplePicture | None:
    """What shows how far a run is, by the EMA parameters; None for a classifier or a CLIP, which make no pictures.

    Args:
      model: samples config.sample.prompts, or its first classes, or of no condition. What must be given a picture is given
        the first ones of `source`, each with its own caption or class: small, or with a random part to repaint.
      place: devices.
      workdir: the run's directory.
      source: the data set.
    """
    if vectors.is_vector(model):
        return vectors.SamplePicture(model, place, workdir)
    if model.config.model.kind in GUIDES:
        return None
    if model.blank_cond.keys() & {"low_res", "inpaint_mask"}:
        return _of_given(model, place, workdir, source)
    return _of_conditions(model, place, workdir)


def _of_conditions(model: build.Model, place: Placement, workdir: pathlib.Path) -> SampleGrid:
    config = model.config
    per_prompt = config.sample.samples_per_prompt
    if config.model.condition == "text":
        labels = tuple(config.sample.prompts)
        cond = build.prompt_cond(model, labels)
    elif config.model.condition == "label":
        count = min(config.data.num_classes, MAX_CLASSES)
        labels = tuple(f"class {i}" for i in range(count))
        cond = {"label": np.arange(count, dtype=np.int32)}
    else:
        labels, cond = ("unconditional",), {}
    count = len(labels) * per_prompt
    generate, grid, knobs = build.generate(model, place), build.grid(model), build.knobs(model)
    cond = jax.tree.map(lambda leaf: np.repeat(leaf, per_prompt, axis=0), cond)

    def sample(ema_params: Any) -> UInt8[np.ndarray, "rows N H W C"]:
        made = generate(ema_params, cond, np.arange(count), config.seed, knobs, grid, _shared(count, place))
        return made.reshape(len(labels), per_prompt, *made.shape[1:])

    return SampleGrid(workdir, labels, sample)


def _of_given(model: build.Model, place: Placement, workdir: pathlib.Path, source: Source) -> SampleGrid | None:
    config, first = model.config, _first(model, source)
    if not first:
        return None
    batch = jax.tree.map(lambda *rows: np.stack(rows), *first)
    real, count = batch["image"], len(first)
    x0, cond = images.to_float(real), {name: batch[name] for name in model.blank_cond.keys() & batch.keys()}
    shown, inputs, edit = real, Inputs(), "none"
    if config.model.low_res:
        small = np.asarray(conditions.area_downsample(x0, config.model.low_res))
        cond["low_res"], factor = small, config.data.image_size // config.model.low_res
        shown = images.to_uint8(small).repeat(factor, axis=1).repeat(factor, axis=2)
    if config.model.inpaint:
        keys = keys_per_example(jax.random.key(config.seed), np.arange(count))
        mask = np.asarray(masks.random_masks(keys, *x0.shape[1:3]))
        cond |= {"inpaint_image": x0 * mask, "inpaint_mask": mask}
        kept, edit = mask > 0, "replace"
        inputs, shown = Inputs(picture=x0, mask=kept), np.where(kept, shown, np.uint8(127))
    generate, grid, knobs = build.generate(model, place, edit), build.grid(model), build.knobs(model)

    def sample(ema_params: Any) -> UInt8[np.ndarray, "rows N H W C"]:
        size = _shared(count, place)
        made = generate(ema_params, cond, np.arange(count), config.seed, knobs, grid, size, inputs=inputs)
        return np.stack([shown, made, real])

    return SampleGrid(workdir, ("given", "made", "real"), sample)


def _first(model: build.Model, source: Source) -> list[dict[str, Any]]:
    """The first examples that can be used, as the train step takes them."""
    encode, found = build.encode_example(model), []
    for i in range(len(source)):
        if len(found) == GIVEN:
            break
        try:
            found.append(encode(source[i]))
        except BadExample:  # training tells of it, or passes it over, as config.data.on_error says
            continue
    return found


def _shared(count: int, place: Placement) -> int:
    """A batch size for so many pictures that the devices share evenly."""
    return -(-count // place.num_devices) * place.num_devices
