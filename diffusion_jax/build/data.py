"""A config's data, and what the train step takes of them."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.build.models import Model, pick, prompt_cond
from diffusion_jax.data import toys
from diffusion_jax.data.pipeline import Example, Source, as_text
from diffusion_jax.errors import UserError


def source(config: ConfigDict, split: str = "train") -> Source:
    """The data set's split, prepared first if it can be and is not there yet.

    Raises:
      UserError: the data set's name is unknown.
    """
    return pick(DATA_SOURCES, config.data.name, "config.data.name")(config, split)


def _captioned_scenes(config: ConfigDict, split: str) -> Source:
    from diffusion_jax.data import (
        captioned_scenes,  # here, since TFDS takes most of a second that sampling need not pay
    )

    try:
        builder = captioned_scenes.prepare(
            config.data.dir,
            config.data.image_size,
            config.data.max_objects,
            train_images=config.data.num_train_images,
            spread=config.data.spread,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return builder.as_data_source(split)


def _toy(config: ConfigDict, split: str) -> Source:
    try:
        return toys.SOURCES[config.data.name](split)
    except ValueError as error:
        raise UserError(str(error)) from error


DATA_SOURCES: dict[str, Callable[[ConfigDict, str], Source]] = {
    "captioned_scenes": _captioned_scenes,
    **dict.fromkeys(toys.SOURCES, _toy),
}


def encode_example(model: Model) -> Callable[[Example], Example]:
    """What the train step takes of an example of the data set."""

    def encode(example: Example) -> Example:
        out = {"image": example["image"]}
        if "tokens" in model.blank_cond:
            cond = prompt_cond(model, [as_text(example["caption"])])
            out |= {name: value[0] for name, value in cond.items()}
        if "label" in model.blank_cond or model.config.model.kind == "classifier":
            out["label"] = np.int32(example["label"])
        return out

    return encode
