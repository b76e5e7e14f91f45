"""Images per second from array_record files to batches, beside Pillow's decoding alone.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --sizes=256 --workers=0,2,8 --stored=320 --seconds=20 --json=input.json

Writes a TFDS set of photograph-like JPEGs (smooth noise) into a temporary folder and reads it as training does:
data/pipeline.py, shuffled, decoded, brought to the size by ADM's halvings, a random crop and mirroring, in batches. The peer is one
thread that only decodes the same JPEGs. What a train step eats is the "images/s" of train_step.py: the pipeline must give more.
"""

import io
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from absl import flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli

SIZES = flags.DEFINE_list("sizes", ["28", "64", "256"], "Pixels per side of the batches' pictures.")
STORED = flags.DEFINE_integer("stored", 0, "Pixels per side of the stored pictures; 0 is the batches' own.")
WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "Reading processes; 0 is a thread of this one.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pictures in a batch.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 1024, "Pictures in the set.", lower_bound=64)
SECONDS = flags.DEFINE_float("seconds", 5, "How long each is read, after its first batches.", lower_bound=0.1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
WARM_UP_BATCHES = 4  # what readers hold ahead when the clock starts


def jpegs(count: int, size: int) -> Iterator[bytes]:
    """Smooth noise, about as hard to decode as a photograph."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8 + 2, size // 8 + 2, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        yield file.getvalue()


def write_set(folder: str, count: int, size: int) -> None:
    """The set tfds:pictures, as array_record."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # one of each size

        class Pictures(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

            def _info(self) -> Any:
                features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(size, size, 3))})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Any:
                for i, data in enumerate(jpegs(count, size)):
                    yield i, {"image": data}

    tfds.disable_progress_bar()
    Pictures(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")


def rate_of_decoding(count: int, size: int) -> float:
    """Images per second of one thread that decodes and does nothing else."""
    files = list(jpegs(min(count, 256), size))
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS.value:
        np.asarray(Image.open(io.BytesIO(files[done % len(files)])))
        done += 1
    return done / (time.perf_counter() - started)


def rate_of_batches(folder: str, size: int, workers: int) -> float:
    """Images per second of the pipeline."""
    from diffusion_jax.data.encode import Encoder
    from diffusion_jax.data.images import Framing
    from diffusion_jax.data.pipeline import train_batches
    from diffusion_jax.data.prepared import Prepared

    encode = Encoder((size, size, 3), Framing("random", 0.8, True))
    batches = train_batches(Prepared("pictures", folder, "train"), encode, BATCH_SIZE.value, seed=0, workers=workers)
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS.value:
        done += len(next(batches)["image"])
    return done / (time.perf_counter() - started)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    rows = []
    print(f"{os.cpu_count()} cores, batches of {BATCH_SIZE.value}, {IMAGES.value} JPEGs in array_record")
    print(f"{'pixels':>7}{'workers':>9}{'images/s':>11}{'of decoding by one thread':>28}")
    for size in map(int, SIZES.value):
        stored = STORED.value or size
        with tempfile.TemporaryDirectory() as folder:
            write_set(folder, IMAGES.value, stored)
            decoding = rate_of_decoding(IMAGES.value, stored)
            rows.append({"pixels": size, "stored": stored, "workers": None, "images_per_s": decoding})
            print(f"{size:7}{'Pillow':>9}{decoding:11,.0f}{1:28.2f}", flush=True)
            for workers in map(int, WORKERS.value):
                rate = rate_of_batches(folder, size, workers)
                rows.append({"pixels": size, "stored": stored, "workers": workers, "images_per_s": rate})
                print(f"{size:7}{workers:9}{rate:11,.0f}{rate / decoding:28.2f}", flush=True)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
