"""A line of jobs of which one batch after the other is taken: those with one key join, whoever sent them.

Knows of no model and no page. A job is so many rows of a batch; whole jobs are batched, the oldest first.
"""

import dataclasses
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any

from diffusion_jax.errors import UserError


@dataclasses.dataclass(eq=False)
class Job:
    """One request's rows.

    key: jobs with equal keys may be of one batch.
    size: rows.
    payload: what is run.
    future: the answer, or the error; cancelled while it waits, the job is passed over.
    progress: what `run` told last.
    """

    key: Hashable
    size: int
    payload: Any
    future: Future = dataclasses.field(default_factory=Future)
    progress: Any = None


# (key, payloads, report) -> one result per payload. `report` takes one value per payload, while it runs.
Run = Callable[[Hashable, list[Any], Callable[[list[Any]], None]], list[Any]]


def choose(waiting: Sequence[Job], max_rows: int) -> list[Job]:
    """The next batch: the oldest job, and each later one of its key that still fits. The others keep their places.

    Nobody waits for ever, since the oldest always goes.

    Args:
      waiting: in the order in which they came.
      max_rows: of a batch; a job that is larger goes alone.
    """
    batch, rows = [], 0
    for job in waiting:
        if not batch or (job.key == batch[0].key and rows + job.size <= max_rows):
            batch.append(job)
            rows += job.size
    return batch


class Batcher:
    """A thread that runs batches of what is submitted.

    Args:
      run: a Run. Its exception answers the jobs of that batch, and no other.
      max_rows: of a batch.
      max_waiting_rows: more are refused.
      gather_seconds: how long the first of an idle line waits for company.
    """

    def __init__(self, run: Run, max_rows: int, max_waiting_rows: int, gather_seconds: float = 0.02):
        self._run, self._max_rows, self._max_waiting, self._gather = run, max_rows, max_waiting_rows, gather_seconds
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, key: Hashable, size: int, payload: Any, admitted: bool = False) -> Job:
        """Puts a job at the line's end.

        Args:
          key, size, payload: see Job.
          admitted: of a request that is part done already: it is not refused.

        Raises:
          UserError: the line is full, or closed.
        """
        job = Job(key, size, payload)
        with self._changed:
            if self._closed:
                raise UserError("The server is stopping. Start it again, then ask again.")
            rows = sum(other.size for other in self._waiting if not other.future.cancelled())
            if not admitted and rows + size > self._max_waiting:
                raise UserError(
                    f"{rows} pictures wait to be made, and the line holds {self._max_waiting}. Ask again soon."
                )
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs wait before this one; 0 where it waits no more."""
        with self._changed:
            waiting = [other for other in self._waiting if not other.future.cancelled()]
        return next((place for place, other in enumerate(waiting) if other is job), 0)

    def close(self) -> None:
        """Lets the running batch end and answers all that wait with an error."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(UserError("The server is stopping. Start it again, then ask again."))
        self._thread.join()

    def _work(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            if running := [job for job in batch if job.future.set_running_or_notify_cancel()]:
                self._answer(running)

    def _next(self) -> list[Job] | None:
        """Waits for the next batch and takes it from the line; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(self._full_or_closed, self._gather)
            if self._closed:
                return None
            self._waiting = [job for job in self._waiting if not job.future.cancelled()]
            batch = choose(self._waiting, self._max_rows)
            self._waiting = [job for job in self._waiting if job not in batch]
        return batch

    def _full_or_closed(self) -> bool:
        return self._closed or sum(job.size for job in choose(self._waiting, self._max_rows)) >= self._max_rows

    def _answer(self, jobs: list[Job]) -> None:
        def report(progress: list[Any]) -> None:
            for job, told in zip(jobs, progress, strict=True):
                job.progress = told

        try:
            results = self._run(jobs[0].key, [job.payload for job in jobs], report)
            if len(results) != len(jobs):
                raise ValueError(f"{len(results)} results for {len(jobs)} jobs.")
        except Exception as error:  # whatever it is, it is these jobs' and the line goes on
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
