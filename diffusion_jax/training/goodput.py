"""Where the wall time of a run goes."""

import contextlib
import time
from collections.abc import Generator

STARTUP, DATA, SAMPLES, CHECKPOINTS = "startup", "data", "samples", "checkpoints"
NAMES = ("steps", STARTUP, DATA, SAMPLES, CHECKPOINTS)


class Goodput:
    """Seconds by what they went for, since the program's start; what is not named otherwise went for steps.

    "startup" is all until `begin`: imports, parameters, compilation, the first step.
    """

    def __init__(self, started: float):
        """
        Args:
          started: `time.monotonic()` at the program's start.
        """
        self._started = started
        self._seconds = dict.fromkeys(NAMES[1:], 0.0)

    def begin(self) -> float:
        """Ends the start-up; returns its seconds."""
        self._seconds = dict.fromkeys(NAMES[1:], 0.0) | {STARTUP: time.monotonic() - self._started}
        return self._seconds[STARTUP]

    @contextlib.contextmanager
    def spent(self, name: str) -> Generator[None]:
        """Counts the time within it under a name."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - since

    def shares(self) -> dict[str, float]:
        """The share of the time until now, by name; they sum to 1."""
        total = max(time.monotonic() - self._started, 1e-9)
        other = {name: seconds / total for name, seconds in self._seconds.items()}
        return {"steps": 1 - sum(other.values())} | other

    def line(self) -> str:
        """All shares, in words."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares().items())
        return f"goodput of {time.monotonic() - self._started:.0f} s: {shares}"
