"""The web page under load: many clients at once, each one request after the other. Who is answered, how fast, in what company?

    python benchmarks/app_load.py --checkpoint=runs/scenes
    python benchmarks/app_load.py --url=http://127.0.0.1:7860 --clients=20 --requests=5

Starts a server of its own on this machine, unless --url names one there. Each client asks by Gradio's own client, as a script
would; its requests differ in prompt, seed, guidance and number, and the clients ask for --steps in turn, so that some cannot
share a batch. Beside them somebody opens the page twice a second. Prints answered and lost requests, percentiles of seconds from
request to answer, pictures per second, and how many rows the batches had.
"""

import collections
import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from typing import Any

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli
from diffusion_jax.errors import UserError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Served by a server that is started for it.")
URL = flags.DEFINE_string("url", None, "Of a server that runs, in place of --checkpoint; on this machine.")
CLIENTS = flags.DEFINE_integer("clients", 20, "At once.", lower_bound=1)
REQUESTS = flags.DEFINE_integer("requests", 5, "Of each client, one after the other.", lower_bound=1)
STEPS = flags.DEFINE_list("steps", ["10", "20"], "Sampler steps; client i asks for the i-th of them, round and round.")
SAMPLER = flags.DEFINE_string("sampler", "ddim", "Of all requests.")
TIMEOUT = flags.DEFINE_float("timeout_seconds", 600, "After which a request counts as lost.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
PROMPTS = ("a large red circle", "a small blue star on a black background", "", "two rings")


def client(url: str, number: int, steps: int) -> list[dict[str, Any]]:
    """One client's requests: seconds, and the answer or the error of each."""
    from gradio_client import Client

    asked = Client(url, verbose=False)
    rng, found = np.random.default_rng(number), []
    for i in range(REQUESTS.value):
        seed, count = int(rng.integers(2**32)), int(rng.integers(1, 5))
        arguments = (PROMPTS[(number + i) % 4], count, float(rng.integers(1, 5)), steps, SAMPLER.value, seed, False)
        start = time.monotonic()
        job = asked.submit(*arguments, api_name="/draw")
        try:
            answer, error = job.result(TIMEOUT.value), None
        except Exception as failure:  # a lost request is a figure here
            answer, error = None, f"{type(failure).__name__}: {failure}"
        seconds = time.monotonic() - start
        right = answer is not None and answer["request"]["seed"] == seed and len(answer["pictures"]) == count
        found.append({"seconds": seconds, "error": error, "right": right, "answer": answer, "number": count})
    return found


def visits(url: str, done: threading.Event) -> list[float]:
    """Seconds that opening the page took, twice a second until done; infinity where it did not open."""
    seconds = []
    while not done.wait(0.5):
        start = time.monotonic()
        try:
            urllib.request.urlopen(url, timeout=30).read()
            seconds.append(time.monotonic() - start)
        except OSError:
            seconds.append(float("inf"))
    return seconds


def figures(found: list[dict[str, Any]], wall: float, opened: list[float]) -> dict[str, Any]:
    """What is printed."""
    answered = [one for one in found if one["right"]]
    seconds = [one["seconds"] for one in answered]
    batches = [(one["answer"]["batch_rows"][0], one["answer"]["batch_sizes"][0]) for one in answered]
    return {
        "requests": len(found),
        "answered": len(answered),
        "lost": len(found) - len(answered),
        "errors": dict(collections.Counter(one["error"] for one in found if one["error"])),
        "seconds": {f"p{p}": round(float(np.percentile(seconds, p)), 2) for p in (50, 90, 99, 100)} if seconds else {},
        "pictures_per_second": round(sum(one["number"] for one in answered) / wall, 2),
        "wall_seconds": round(wall, 1),
        "requests_by_batch_rows": dict(sorted(collections.Counter(rows for rows, _ in batches).items())),
        "requests_by_batch_size": dict(sorted(collections.Counter(size for _, size in batches).items())),
        "page_opened": {"times": len(opened), "worst_seconds": round(max(opened, default=0.0), 2)},
    }


def load(url: str) -> dict[str, Any]:
    """All clients at once against one server."""
    steps, done = [int(text) for text in cli.floats("steps", STEPS.value)], threading.Event()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS.value + 1) as pool:
        visitor = pool.submit(visits, url, done)
        start = time.monotonic()
        asked = [pool.submit(client, url, i, steps[i % len(steps)]) for i in range(CLIENTS.value)]
        try:
            found = [one for future in asked for one in future.result()]
        finally:
            done.set()
        return figures(found, time.monotonic() - start, visitor.result())


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if bool(CHECKPOINT.value) == bool(URL.value):
        raise UserError("give --checkpoint, to start a server for it, or --url of one that runs.")
    if URL.value:
        return report(load(URL.value))
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "diffusion_jax.app",
            f"--checkpoint={CHECKPOINT.value}",
            f"--out={out}",
            "--port=0",
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            lines: list[str] = []
            for line in server.stdout or ():
                lines.append(line)
                if match := re.search(r"open at (\S+)", line):
                    return report(load(match[1]))
            raise UserError("the server did not start; what it said is above.")
        finally:
            server.terminate()
            server.wait()


def report(found: dict[str, Any]) -> None:
    for name, value in found.items():
        print(f"{name:24}{value}")
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
