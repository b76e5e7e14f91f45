"""The captioned scenes as a TFDS data set, prepared and read without TensorFlow and without a network.

Rendering is fast, but reading stored bytes is faster and is how any other TFDS set reaches the trainer:

    builder = prepare("data", image_size=32, max_objects=1)
    source = builder.as_data_source("train")  # random access, slices such as "train[:100]" work too
    source[0]  # {"image": uint8 [32, 32, 3], "caption": bytes, "label": int, "index": int}
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from diffusion_jax.data import scenes

_COUNTS = {1: "one_object", 2: "two_objects"}


@dataclasses.dataclass(kw_only=True)
class CaptionedScenesConfig(tfds.core.BuilderConfig):
    """What names one data set of scenes; `make_config` fills in the name.

    Attributes:
        image_size: pixels per side.
        max_objects: 1 for one object, 2 for one or two.
        train_images, validation_images, test_images: examples per split.
        seed, spread: those of `scenes.draw_scene`.
    """

    image_size: int = 32
    max_objects: int = 1
    train_images: int = 20_000
    validation_images: int = 2_000
    test_images: int = 2_000
    seed: int = 0
    spread: float = 1.0


def make_config(image_size: int, max_objects: int, **fields: Any) -> CaptionedScenesConfig:
    """Returns the config of a resolution, named such as "two_objects_64px".

    Args:
        image_size: pixels per side, at least 1.
        max_objects: 1 or 2.
        **fields: further fields of CaptionedScenesConfig. Those that are not the default join the name, as in
            "one_object_32px_seed_1", because a prepared set is found by its name alone.

    Raises:
        ValueError: if image_size or max_objects is out of range.
    """
    if max_objects not in _COUNTS:
        raise ValueError(f"max_objects is 1 or 2: got {max_objects!r}")
    if image_size < 1:
        raise ValueError(f"image_size is at least 1 pixel: got {image_size!r}")
    numbers = [
        name for name in ("train_images", "validation_images", "test_images", "seed", "spread") if name in fields
    ]
    special = [f"_{name}_{fields[name]}" for name in numbers if fields[name] != getattr(CaptionedScenesConfig, name)]
    fields.setdefault("name", f"{_COUNTS[max_objects]}_{image_size}px" + "".join(special))
    fields.setdefault("description", f"{image_size} pixels per side, at most {max_objects} object(s) per scene")
    return CaptionedScenesConfig(image_size=image_size, max_objects=max_objects, **fields)


class CaptionedScenes(tfds.core.GeneratorBasedBuilder):
    """Images of one or two coloured shapes, each with a caption that says exactly what is seen."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[CaptionedScenesConfig]] = [
        make_config(size, count) for count in _COUNTS for size in (32, 64, 128)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.image_size
        return tfds.core.DatasetInfo(  # not dataset_info_from_configs, which wants a package folder with metadata
            builder=self,
            description=(
                "Procedurally drawn scenes of one or two coloured shapes with captions that are exact by construction. "
                "Eight of the 64 pairs of a colour and a shape occur in the test split alone, and the captions of the "
                "validation split are withheld from train."
            ),
            features=tfds.features.FeaturesDict(
                {
                    # Raw bytes read two to three times as fast as PNG and need no decoder.
                    "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
                    "caption": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(scenes.SHAPES)),  # the (first) object's shape
                    "index": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            license="Apache-2.0 (the images are drawn by this project's code)",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # there is nothing to download
        config = self.builder_config
        return {split: self._generate_examples(split, getattr(config, f"{split}_images")) for split in scenes.SPLITS}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (key, example); the key is the scene's index and only decides the order on disk (a shuffle)."""
        config = self.builder_config
        for index in range(count):
            scene = scenes.draw_scene(config.seed, index, split, config.max_objects, config.spread)
            text = scenes.caption(scenes.describe(scene))
            image = scenes.render(scene, config.image_size)
            yield index, {"image": image, "caption": text, "label": scene.objects[0].shape, "index": index}


def prepare(data_dir: str | os.PathLike[str], image_size: int, max_objects: int, **fields: Any) -> CaptionedScenes:
    """Returns the builder of a data set of scenes on disk, and renders it first if it is not there yet.

    TFDS writes to a directory of its own and renames it when it is complete, so that a run which was killed leaves
    nothing that looks finished. `builder.as_data_source(split)` then reads it.

    Args:
        data_dir: the directory of all TFDS sets.
        image_size: pixels per side.
        max_objects: 1 for one object, 2 for one or two.
        **fields: see `make_config`.

    Raises:
        ValueError: as make_config.
    """
    config = make_config(image_size, max_objects, **fields)
    known = CaptionedScenes.builder_configs.get(config.name)
    config = known if known == config else config  # TFDS refuses an equal copy of a config that it lists
    builder = CaptionedScenes(data_dir=os.fspath(data_dir), config=config, file_format="array_record")
    if not builder.is_prepared():
        tfds.disable_progress_bar()
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False), file_format="array_record"
        )
    return builder
