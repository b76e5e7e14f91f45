"""The line of jobs: who joins whom, that nobody is lost, and whose errors are whose."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from diffusion_jax.app.batching import Batcher, Job, choose
from diffusion_jax.errors import UserError

TIMEOUT = 300  # seconds, of what takes none


def job(key, size=1):
    return Job(key, size, None)


def sizes(batch):
    return [(job.key, job.size) for job in batch]


def test_the_oldest_goes_with_all_of_its_key_that_fit():
    waiting = [job("a", 2), job("b", 1), job("a", 3), job("a", 1), job("b", 1)]
    assert sizes(choose(waiting, 4)) == [("a", 2), ("a", 1)]
    assert sizes(choose(waiting, 8)) == [("a", 2), ("a", 3), ("a", 1)]
    assert sizes(choose(waiting[1:], 1)) == [("b", 1)]
    assert choose([], 4) == []


def test_every_job_is_in_one_batch_and_the_oldest_never_waits_for_the_younger():
    waiting = [job(key, size) for key, size in zip("abcabcbbacab", [3, 1, 2, 4, 4, 1, 2, 3, 1, 1, 2, 4], strict=True)]
    taken, left = [], list(waiting)
    while left:
        batch = choose(left, 4)
        assert batch[0] is left[0]
        assert len({job.key for job in batch}) == 1 and sum(job.size for job in batch) <= 4
        taken += batch
        left = [job for job in left if job not in batch]
    assert sorted(map(id, taken)) == sorted(map(id, waiting))


class Recorder:
    """A `run` that answers each payload with itself and its key, and remembers the batches; it waits while it is held."""

    def __init__(self):
        self.batches, self.free = [], threading.Event()
        self.free.set()

    def __call__(self, key, payloads, report):
        self.free.wait(TIMEOUT)
        self.batches.append((key, list(payloads)))
        report([f"running {payload}" for payload in payloads])
        if any(payload == "bad" for payload in payloads):
            raise ValueError("a bad batch")
        return [(key, payload) for payload in payloads]


@pytest.fixture
def line():
    recorder = Recorder()
    batcher = Batcher(recorder, max_rows=8, max_waiting_rows=1000)
    yield batcher, recorder
    recorder.free.set()
    batcher.close()


def test_twenty_clients_lose_no_answer_and_get_each_their_own(line):
    batcher, recorder = line

    def client(number):
        answers = []
        for i in range(25):
            payload = (number, i)
            answers.append(
                batcher.submit(number % 3, 1 + i % 3, payload).future.result(TIMEOUT) == (number % 3, payload)
            )
        return answers

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(client, range(20)))
    assert [len(answer) for answer in answers] == [25] * 20
    assert all(map(all, answers))
    ran = [payload for _, payloads in recorder.batches for payload in payloads]
    assert sorted(ran) == [(number, i) for number in range(20) for i in range(25)]
    assert len(recorder.batches) < len(ran) / 2  # they were together


def held(batcher, recorder):
    """Holds the thread inside a batch of its own, so that what follows waits in the line."""
    recorder.free.clear()
    first = batcher.submit("first", 1, "first")
    while not first.future.running():
        time.sleep(0.001)
    return first


def test_an_exception_answers_its_batch_alone(line):
    batcher, recorder = line
    first = held(batcher, recorder)
    spoilt = [batcher.submit("a", 1, payload) for payload in ("good", "bad")]
    other = batcher.submit("b", 1, "good")
    recorder.free.set()
    for job in spoilt:
        with pytest.raises(ValueError, match="a bad batch"):
            job.future.result(TIMEOUT)
    assert first.future.result(TIMEOUT) == ("first", "first") and other.future.result(TIMEOUT) == ("b", "good")
    assert batcher.submit("a", 1, "later").future.result(TIMEOUT) == ("a", "later")


def test_a_wrong_number_of_results_is_an_error_and_no_silence():
    batcher = Batcher(lambda key, payloads, report: [], max_rows=4, max_waiting_rows=4)
    with pytest.raises(ValueError, match="0 results for 1 jobs"):
        batcher.submit("a", 1, None).future.result(TIMEOUT)
    batcher.close()


def test_the_line_is_bounded_and_says_so():
    recorder = Recorder()
    batcher = Batcher(recorder, max_rows=2, max_waiting_rows=3)
    held(batcher, recorder)
    waiting = [batcher.submit("a", 1, i) for i in range(3)]
    with pytest.raises(UserError, match="3 pictures wait to be made, and the line holds 3"):
        batcher.submit("a", 1, "more")
    admitted = batcher.submit("a", 1, "second stage", admitted=True)
    assert [batcher.ahead(job) for job in (*waiting, admitted)] == [0, 1, 2, 3]
    recorder.free.set()
    assert admitted.future.result(TIMEOUT) == ("a", "second stage")
    batcher.close()


def test_what_is_cancelled_while_it_waits_is_not_run(line):
    batcher, recorder = line
    held(batcher, recorder)
    gone, stays = batcher.submit("a", 1, "gone"), batcher.submit("a", 1, "stays")
    assert gone.future.cancel()
    assert batcher.ahead(stays) == 0
    recorder.free.set()
    assert stays.future.result(TIMEOUT) == ("a", "stays")
    with pytest.raises(CancelledError):
        gone.future.result(0)
    assert all("gone" not in payloads for _, payloads in recorder.batches)
    alone = batcher.submit("a", 1, "alone")
    alone.future.cancel()  # a line of cancelled jobs alone does not end the thread
    assert batcher.submit("a", 1, "after").future.result(TIMEOUT) == ("a", "after")


def test_progress_reaches_each_job(line):
    batcher, recorder = line
    held(batcher, recorder)
    jobs = [batcher.submit("a", 1, payload) for payload in "xy"]
    recorder.free.set()
    for job in jobs:
        job.future.result(TIMEOUT)
    assert [job.progress for job in jobs] == ["running x", "running y"]


def test_closing_answers_all_that_wait():
    recorder = Recorder()
    batcher = Batcher(recorder, max_rows=1, max_waiting_rows=10)
    first = held(batcher, recorder)
    waiting = batcher.submit("a", 1, "waiting")
    threading.Timer(0.1, recorder.free.set).start()
    batcher.close()
    assert first.future.result(0) == ("first", "first")
    with pytest.raises(UserError, match="stopping"):
        waiting.future.result(0)
    with pytest.raises(UserError, match="stopping"):
        batcher.submit("a", 1, "late")
