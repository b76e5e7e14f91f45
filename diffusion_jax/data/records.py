"""array_record shards as a data source with random access: `shards:GLOB` in a config, without TensorFlow.

A record is a tf.train.Example. Its features are the example's fields: bytes (a picture's file, a caption), whole numbers (a
label) or floats; "captions/text", as TFDS flattens what is nested, is the field captions.text of a config.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from diffusion_jax.data.faults import BadExample, refuse
from diffusion_jax.errors import UserError


class Records:
    """The examples of shards, in the order of their names and of their records."""

    def __init__(self, paths: Sequence[str], on_error: str = "raise"):
        """
        Args:
          paths: the shards, on a disk or as gs://BUCKET/NAME.
          on_error: "raise" or "skip", for shards that are cut: where their records lie is told at their end, so that none of
            them can be read.

        Raises:
          UserError: nothing in them can be used.
        """
        counts, faults = {}, []
        for path in paths:
            try:
                reader = ArrayRecordReader(path)
                counts[path] = reader.num_records()
                reader.close()
            except (RuntimeError, ValueError, IndexError, OSError) as error:
                faults.append(f"{path} is cut or damaged, or no array_record: no record of it is used ({_line(error)})")
        refuse(faults, on_error, "the shards")
        self._paths = [path for path, count in counts.items() if count]
        if not self._paths:
            raise UserError(f"no records in {paths[0]} and {len(paths) - 1} other shards.")
        self._firsts = list(itertools.accumulate((counts[path] for path in self._paths), initial=0))
        # Told how many records there are, it opens a shard when one of its records is asked for.
        self._source = ArrayRecordDataSource([f"{path}[0:{counts[path]}]" for path in self._paths])

    def __len__(self) -> int:
        return self._firsts[-1]

    def name(self, index: int) -> str:
        """The shard and the number of the record in it."""
        shard = int(np.searchsorted(self._firsts, index, "right")) - 1
        return f"{self._paths[shard]}, record {index - self._firsts[shard]},"

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._source[index]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise BadExample(f"cannot be read ({_line(error)})") from error
        try:
            return nested(tf_example_pb2.Example.FromString(record).features.feature)
        except DecodeError as error:
            raise BadExample("is no tf.train.Example") from error


def nested(features: Mapping[str, Any]) -> dict[str, Any]:
    """A tf.train.Example's features as an example: "a/b" is {"a": {"b": ...}}; a list of one value is that value."""
    example: dict[str, Any] = {}
    for key, feature in features.items():
        *folders, name = key.split("/")
        place = example
        for folder in folders:
            place = place.setdefault(folder, {})
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        place[name] = values[0] if len(values) == 1 else values
    return example


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
