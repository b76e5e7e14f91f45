"""Processor time of a step as its caller sees it; the same for JAX and for PyTorch, so that it needs neither."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def costs(step: Callable[[], Any], steps: int, rounds: int, wait: Callable[[], None]) -> dict[str, float]:
    """Seconds of a step: of the calling thread, and of the process; `wait` until all steps are done."""
    host, whole = [], []
    for _ in range(rounds + 1):
        own, since = [], time.process_time()
        for _ in range(steps):
            start = time.thread_time()
            step()
            own.append(time.thread_time() - start)
        wait()
        host.append(statistics.median(own))
        whole.append((time.process_time() - since) / steps)
    return {"host_s": min(host[1:]), "all_s": min(whole[1:])}  # the first compiles
