"""From a random-access source to batches, by grain: the order is a pure function of (seed, step)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from jaxtyping import Int

Example = dict[str, Any]


class Source(Protocol):
    """Random access to examples {"image": uint8 [H, W, C], "caption": text or bytes}, as a TFDS data source gives.

    Of data that are vectors, "image" is a float or int [D].
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def train_batches(
    source: Source,
    encode: Callable[[Example], Example],
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: Int[np.ndarray, "R"] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches from step `first_step` on.

    Every epoch is shuffled anew. Batch number `step` depends on the seed and the step alone, so that a run resumes by its
    step, without any state of the iterator's.

    Args:
      source: the examples.
      encode: example -> what the train step takes of it, arrays of fixed shapes.
      batch_size: examples per batch, over all processes.
      seed: of the order.
      first_step: batches to pass over, at no cost.
      rows: those of each batch that are wanted, all by default; the others are not read.

    Raises:
      ValueError: the source is smaller than one batch.
    """
    if len(source) < batch_size:
        raise ValueError(f"The data set has {len(source)} examples, less than one batch of {batch_size}.")
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().map(encode)
    if rows is not None and len(rows) < batch_size:
        dataset, batch_size = grain.MapDataset.source(_Rows(dataset, rows, batch_size)), len(rows)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    # One thread is enough by far here and leaves the cores to the step; two batches ahead hide its latency.
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
    iterator.set_state({"next_index": first_step})
    return iterator


class _Rows:
    """The rows of every batch that one process reads, as a source."""

    def __init__(self, examples: Sequence[Example], rows: Int[np.ndarray, "R"], batch_size: int):
        self._examples, self._rows, self._batch_size = examples, rows, batch_size

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size * len(self._rows)  # endless, as the examples are

    def __getitem__(self, index: int) -> Example:
        batch, row = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + int(self._rows[row])]


def captions_of(source: Source, num_examples: int | None = None) -> Sequence[str]:
    """The captions of the first examples (all by default), as text."""
    return [as_text(source[i]["caption"]) for i in range(min(len(source), num_examples or len(source)))]


def as_text(caption: str | bytes) -> str:
    """TFDS stores text as bytes."""
    return caption.decode() if isinstance(caption, bytes) else caption
