"""A config's data, and what the train step takes of them."""

import contextlib
from collections.abc import Callable

from ml_collections import ConfigDict

from diffusion_jax.build.clip import ClipCaptions
from diffusion_jax.build.models import Model
from diffusion_jax.data import toys
from diffusion_jax.data.bpe import ClipTokenizer
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.data.encode import Encoder
from diffusion_jax.data.faults import ON_ERROR
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.images import CROPS, Framing
from diffusion_jax.data.pipeline import Source
from diffusion_jax.errors import UserError, unknown_name


def source(config: ConfigDict, split: str = "train") -> Source:
    """The data set's split; captioned scenes are drawn first if they are not there yet.

    Raises:
      UserError: the data set's name is unknown, or it is not there; nothing is fetched from a network that the name does not name.
    """
    if config.data.on_error not in ON_ERROR:
        raise unknown_name("config.data.on_error", config.data.on_error, ON_ERROR)
    kind, colon, rest = config.data.name.partition(":")
    if colon and kind in PLACES:
        return PLACES[kind](config, rest, split)
    if config.data.name not in DATA_SOURCES:
        raise unknown_name("config.data.name", config.data.name, [*DATA_SOURCES, *(f"{kind}:..." for kind in PLACES)])
    return DATA_SOURCES[config.data.name](config, split)


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


def _tfds(config: ConfigDict, name: str, split: str) -> Source:
    from diffusion_jax.data.prepared import Prepared

    return Prepared(name, config.data.dir, split)


def _folder(config: ConfigDict, path: str, split: str) -> Source:
    return Folder(_of_split(path, split, "folder"), config.data.on_error)


def _shards(config: ConfigDict, pattern: str, split: str) -> Source:
    from diffusion_jax.data.shards import open_shards

    return open_shards(_of_split(pattern, split, "shards"), config.data.on_error)


def _of_split(path: str, split: str, kind: str) -> str:
    if "{split}" not in path and split != "train":
        raise UserError(
            f"config.data.name={kind}:{path} has no split {split!r}. Write {{split}} where the paths differ."
        )
    return path.replace("{split}", split)


PLACES: dict[str, Callable[[ConfigDict, str, str], Source]] = {"tfds": _tfds, "folder": _folder, "shards": _shards}


def tokenizer(kind: str, text: str | None) -> CaptionTokenizer | ClipTokenizer | None:
    """The tokenizer in a checkpoint of such a model.kind, of its JSON; None where there is none."""
    if text is None:
        return None
    if kind == "clip":
        with contextlib.suppress(UserError):  # else it is one learned from captions
            return ClipTokenizer.from_json(text)
    return CaptionTokenizer.from_json(text)


def encode_example(model: Model) -> Encoder:
    """What the train step takes of an example of the data set.

    Raises:
      UserError: config.data's crop is unknown, or random_crop_min is not in (0, 1].
    """
    d = model.config.data
    if d.crop not in CROPS:
        raise unknown_name("config.data.crop", d.crop, CROPS)
    if not 0 < d.random_crop_min <= 1:
        raise UserError(f"config.data.random_crop_min={d.random_crop_min} must be above 0 and at most 1.")
    tokenizer, length = model.tokenizer if "tokens" in model.blank_cond else None, model.config.text.context_length
    if model.config.model.kind == "clip":
        tokenizer, length = ClipCaptions(model.tokenizer), model.config.clip.context_length
    labelled = "label" in model.blank_cond or model.config.model.kind == "classifier"
    return Encoder(
        model.image_shape,
        Framing(d.crop, d.random_crop_min, d.flip),
        tokenizer,
        length,
        d.num_classes if labelled else None,
        (d.image_field, d.caption_field, d.label_field),
    )
