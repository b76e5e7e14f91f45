"""From a random-access source to batches, by grain: the order is a pure function of (seed, step)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

Example = dict[str, Any]


class Source(Protocol):
    """Random access to examples {"image": uint8 [H, W, C], "caption": text or bytes}, as a TFDS data source gives.

    Of data that are vectors, "image" is a float or int [D].
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def train_batches(
    source: Source, encode: Callable[[Example], Example], batch_size: int, seed: int, first_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches from step `first_step` on.

    Every epoch is shuffled anew. Batch number `step` depends on the seed and the step alone, so that a run resumes by its
    step, without any state of the iterator's.

    Args:
      source: the examples.
      encode: example -> what the train step takes of it, arrays of fixed shapes.
      batch_size: examples per batch.
      seed: of the order.
      first_step: batches to pass over, at no cost.

    Raises:
      ValueError: the source is smaller than one batch.
    """
    if len(source) < batch_size:
        raise ValueError(f"The data set has {len(source)} examples, less than one batch of {batch_size}.")
    dataset = (
        grain.MapDataset.source(source).seed(seed).shuffle().repeat().map(encode).batch(batch_size, drop_remainder=True)
    )
    # One thread is enough by far here and leaves the cores to the step; two batches ahead hide its latency.
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
    iterator.set_state({"next_index": first_step})
    return iterator


def captions_of(source: Source, num_examples: int | None = None) -> Sequence[str]:
    """The captions of the first examples (all by default), as text."""
    return [as_text(source[i]["caption"]) for i in range(min(len(source), num_examples or len(source)))]


def as_text(caption: str | bytes) -> str:
    """TFDS stores text as bytes."""
    return caption.decode() if isinstance(caption, bytes) else caption
