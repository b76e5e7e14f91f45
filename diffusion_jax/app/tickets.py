"""A visitor's request under way: how far it is, and what it gets in the end."""

import time
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.app.batching import Job
from diffusion_jax.app.requests import Request

BASE, UPSAMPLER = "base", "upsampler"  # stages


class Progress(NamedTuple):
    """How far a job is.

    stage: BASE or UPSAMPLER.
    step, num_steps: reached, of how many.
    shown: the x0 foreseen, uint8 [n, H, W, C].
    others: pictures of other requests in the same batch.
    compiling: the first batch of its kind, compiled before it runs.
    """

    stage: str
    step: int
    num_steps: int
    shown: UInt8[np.ndarray, "n H W C"] | None
    others: int
    compiling: bool


class Made(NamedTuple):
    """A stage's pictures, and how many rows of how many its batch had."""

    pictures: UInt8[np.ndarray, "n H W C"]
    rows: int
    batch_size: int


class Answer(NamedTuple):
    """What a request gets: `made` by each stage, the last one's pictures being the answer, and sentences to note."""

    request: Request
    made: tuple[Made, ...]
    seconds: float
    notes: tuple[str, ...]

    @property
    def pictures(self) -> UInt8[np.ndarray, "n H W C"]:
        return self.made[-1].pictures


class Ticket:
    """A request under way: `answer` is its future, `job` the stage that waits or runs now."""

    def __init__(self, request: Request, notes: tuple[str, ...]):
        self.request, self.notes = request, notes
        self.answer: Future[Answer] = Future()
        self.job: Job | None = None
        self._asked = time.monotonic()

    def cancel(self) -> None:
        """Gives the place in the line up; a batch that runs already is not stopped."""
        self.answer.cancel()
        if self.job:
            self.job.future.cancel()

    def finish(self, made: tuple[Made, ...]) -> None:
        """Answers, if somebody still waits."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_result(Answer(self.request, made, time.monotonic() - self._asked, self.notes))

    def fail(self, error: BaseException) -> None:
        """Answers with an error, if somebody still waits."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)
