"""Fashion-MNIST from Debian's package dataset-fashion-mnist, or from the original's four idx files."""

import gzip
import pathlib
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from diffusion_jax.data.builders.packages import Package
from diffusion_jax.errors import UserError

LABELS = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_DEB = "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb"
PACKAGES = (
    Package(
        _DEB,
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        ("apt-get", "download", "dataset-fashion-mnist"),
        "Expat (MIT), Zalando SE",
    ),
)
_PREFIXES = {"train": "train", "test": "t10k"}


class FashionMnistIdx(tfds.core.GeneratorBasedBuilder):
    """70,000 grey pictures of clothes, 28 x 28 pixels, in ten classes."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    archives: ClassVar[list[pathlib.Path]] = []  # set before it is prepared

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Fashion-MNIST (Xiao et al. 2017).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="bytes"),
                    "caption": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                }
            ),
            license="Expat",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(prefix) for split, prefix in _PREFIXES.items()}

    def _generate_examples(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with tempfile.TemporaryDirectory() as folder:
            files = self.archives
            if files[0].suffix == ".deb":
                subprocess.run(["dpkg-deb", "-x", str(files[0]), folder], check=True, capture_output=True)
                files = list(pathlib.Path(folder).rglob("*-ubyte.gz"))
            named = {file.name.removesuffix(".gz"): file for file in files}
            images, labels = (read_idx(named[f"{prefix}-{part}-ubyte"]) for part in ("images-idx3", "labels-idx1"))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                f"{i:05d}",
                {"image": image[..., None], "caption": f"a photo of a {LABELS[label]}", "label": int(label)},
            )


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The array of an idx file of bytes, gzipped or not: two zeros, the type 8, the number of axes, big-endian sizes, the data.

    Raises:
      UserError: it is no such file, or not whole.
    """
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    axes = data[3] if len(data) > 4 and data[:3] == b"\0\0\x08" else 0
    shape = struct.unpack_from(f">{axes}I", data, 4) if axes and len(data) >= 4 + 4 * axes else ()
    if not axes or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise UserError(f"{path} is no whole idx file of bytes. Fetch it again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
