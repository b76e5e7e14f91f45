"""Examples that cannot be used: told in a line, and passed over where the user says so."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from diffusion_jax.errors import UserError

ON_ERROR = ("raise", "skip")
SKIPPED = "skipped_examples"  # the entry of an encoded example that counts those which it stands for
MOST_TRIES = 100
T = TypeVar("T")


class BadExample(UserError):
    """An example that cannot be used. Where it is raised, the text is the rest of a sentence that begins with its name."""


class Reader:
    """Position in a source -> encoded example; one that cannot be used is an error, or another takes its place.

    Which other is decided by the position alone (its hash), not by what was read before: batches stay a pure function of the
    step. The result has an entry more, SKIPPED, int32: how many were passed over for it. A line on stderr names each once per
    process.
    """

    def __init__(self, source: Any, encode: Callable[..., dict[str, Any]], on_error: str = "raise"):
        """
        Args:
          source: random access to examples; see `pipeline.Source`.
          encode: (example, rng) -> arrays of fixed shapes.
          on_error: "raise" or "skip".
        """
        self._source, self._encode, self._skip = source, encode, on_error == "skip"
        self._told: set[int] = set()

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The example at `index`, or the one that replaces it.

        Raises:
          BadExample: it cannot be used, and on_error is "raise"; or so many in a row cannot that something else is wrong.
        """
        at, tries = int(index), np.random.default_rng([int(index), 0x5EED])
        for skipped in range(MOST_TRIES):
            try:
                encoded = named(self._source, at, lambda example: self._encode(example, rng))
                return encoded | {SKIPPED: np.int32(skipped)}
            except BadExample as error:
                told = str(error)
                if not self._skip:
                    raise BadExample(
                        f"{told}. Mend or remove it, or pass over such examples by --config.data.on_error=skip."
                    ) from error
                self._tell(at, told)
            at = int(tries.integers(len(self._source)))
        raise BadExample(f"{told}; and {MOST_TRIES - 1} others in its place cannot be used either. Mend the data set.")

    def _tell(self, index: int, told: str) -> None:
        if index not in self._told:
            self._told.add(index)
            print(f"skipped: {told}.", file=sys.stderr)


def named(source: Any, index: int, take: Callable[[dict[str, Any]], T]) -> T:
    """take(source[index]).

    Raises:
      BadExample: it cannot be used; the text begins with the source's own name for it, or its number.
    """
    try:
        return take(source[index])
    except BadExample as error:
        name = source.name(index) if hasattr(source, "name") else f"example {index}"
        raise BadExample(f"{name} {error}") from error


def refuse(faults: Sequence[str], on_error: str, what: str) -> None:
    """Tells what was found wrong with a data set when it was opened: an error, or lines on stderr where on_error is "skip".

    Raises:
      BadExample: there are faults and on_error is "raise"; it names the first.
    """
    if faults and on_error != "skip":
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise BadExample(f"{faults[0]}{more}. Mend {what}, or pass over such examples by --config.data.on_error=skip.")
    for fault in faults:
        print(f"skipped: {fault}.", file=sys.stderr)
    if len(faults) > 1:
        print(f"skipped, as {what} were opened: {len(faults)} in all.", file=sys.stderr)
