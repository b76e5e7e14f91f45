"""train.py up to its first finished step, for startup.py: prints as JSON where the time since the start of the process went.

    python benchmarks/startup_train.py STARTED stop|save FLAGS

STARTED is `time.time()` when the process was started; stop ends it after the step, save as SIGTERM does, with a checkpoint.
"""

import json
import os
import pathlib
import runpy
import signal
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
TRACE = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
COMPILE = ("/jax/core/compile/backend_compile_duration",)  # or reading it from the cache
HITS, MISSES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds that lie within any of the spans (begin, end); those inside others count once."""
    total, reached = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def parts(started: float, imported: float, ended: float, traces: list, compilations: list) -> dict[str, float]:
    """Seconds from `started` to `ended` by what they went for; all others' is "build"."""
    compiled = covered(compilations)
    found = {
        "import": imported - started,
        "trace": covered(traces + compilations) - compiled,
        "compile": compiled,
        "first step": ended - max(end for _, end in compilations),
    }
    total = ended - started
    return found | {"build": total - sum(found.values()), "total": total}


def main() -> None:
    started, end = float(sys.argv[1]), sys.argv[2]
    sys.argv, sys.path[0] = ["train.py", *sys.argv[3:]], str(ROOT)
    import jax

    from diffusion_jax.training import goodput, run

    assert run.train
    imported, traces, compilations = time.time(), [], []
    counts = {HITS: 0, MISSES: 0}

    def took(event: str, seconds: float, **kwargs: str) -> None:
        now = time.time()
        if event in TRACE:
            traces.append((now - seconds, now))
        elif event in COMPILE:
            compilations.append((now - seconds, now))

    def happened(event: str, **kwargs: str) -> None:
        if event in counts:
            counts[event] += 1

    def finished(self: goodput.Goodput) -> float:
        found = parts(started, imported, time.time(), traces, compilations)
        print(json.dumps(found | {"cache hits": counts[HITS], "cache misses": counts[MISSES]}), flush=True)
        if end == "stop":
            os._exit(0)
        os.kill(os.getpid(), signal.SIGTERM)
        return begin(self)

    jax.monitoring.register_event_duration_secs_listener(took)
    jax.monitoring.register_event_listener(happened)
    begin, goodput.Goodput.begin = goodput.Goodput.begin, finished
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


if __name__ == "__main__":
    main()
