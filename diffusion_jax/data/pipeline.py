"""From a random-access source to batches, by grain: the order is a pure function of (seed, step)."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from diffusion_jax.data.encode import field, texts
from diffusion_jax.data.faults import SKIPPED, BadExample, Reader

Example = dict[str, Any]


class Source(Protocol):
    """Random access to examples {"image", "caption": text, bytes or several of them, "label": int}, as a TFDS data source gives.

    "image" is uint8 [H, W, C], the bytes of a picture's file, or what has a `read_bytes` that gives them; of data that are
    vectors, a float or int [D]. A source may have `name(index) -> str`, for errors.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def train_batches(
    source: Source,
    encode: Callable[[Example, np.random.Generator | None], Example],
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rows: Int[np.ndarray, "R"] | None = None,
    *,
    on_error: str = "raise",
    workers: int = 0,
) -> "Batches":
    """Endless shuffled batches from step `first_step` on.

    Every epoch is shuffled anew. Batch number `step`, with all that `encode` draws for it, depends on the seed and the step
    alone: a run resumes by its step, without any state of the iterator's, on any number of processes and workers.

    Args:
      source: the examples.
      encode: (example, rng) -> what the train step takes of it, arrays of fixed shapes. The rng is seeded by (seed, position in
        the stream).
      batch_size: examples per batch, over all processes.
      seed: of the order and of the draws.
      first_step: batches to pass over, at no cost.
      rows: those of each batch that are wanted, all by default; the others are not read.
      on_error: "raise", or "skip" to put another in the place of an example that cannot be used (`faults.Reader`).
      workers: processes that read ahead; with 0 a thread of this one does.

    Raises:
      ValueError: the source is smaller than one batch.
    """
    if len(source) < batch_size:
        raise ValueError(f"The data set has {len(source)} examples, less than one batch of {batch_size}.")
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(Reader(source, encode, on_error))
    if rows is not None and len(rows) < batch_size:
        dataset, batch_size = grain.MapDataset.source(_Rows(dataset, rows, batch_size)), len(rows)
    dataset = dataset.batch(batch_size, drop_remainder=True)[first_step:]
    # One thread is enough by far for small pictures and leaves the cores to the step; two batches ahead hide its latency.
    batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if workers:
        flags.FLAGS.mark_as_parsed()  # grain reads flags of its own, which only absl's programs have parsed
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options)
    return Batches(iter(batches))


class Batches:
    """The batches, and how many examples were passed over for those that it gave: `skipped`."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]):
        self._batches, self.skipped = batches, 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = dict(next(self._batches))
        self.skipped += int(batch.pop(SKIPPED).sum())
        return batch


class _Rows:
    """The rows of every batch that one process reads, as a source."""

    def __init__(self, examples: Any, rows: Int[np.ndarray, "R"], batch_size: int):
        self._examples, self._rows, self._batch_size = examples, rows, batch_size

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size * len(self._rows)  # endless, as the examples are

    def __getitem__(self, index: int) -> Example:
        batch, row = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + int(self._rows[row])]


def captions_of(source: Source, num_examples: int | None = None, caption_field: str = "caption") -> Sequence[str]:
    """The captions of the first examples (all by default), as text; all of an example that has several.

    Examples whose captions cannot be used are left out here: the reader tells of them.
    """
    captions: list[str] = []
    for i in range(min(len(source), num_examples or len(source))):
        with contextlib.suppress(BadExample):
            captions += texts(field(source[i], caption_field))
    return captions


def as_text(caption: str | bytes) -> str:
    """TFDS stores text as bytes."""
    return caption.decode() if isinstance(caption, bytes) else caption
