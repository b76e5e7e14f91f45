"""From the start of train.py to its first finished step, cold, with the compilation cache and from a checkpoint.

    python benchmarks/startup.py --torch_python=/path/to/venv/bin/python --json=startup.json
    python benchmarks/startup.py --config=configs/scenes.py:debug --repeats=3

Trains the ADM-shaped U-Net of --size (shapes.py) on scenes, or a recipe; the data are prepared before. "cold" has an empty cache,
"cache" the one that a run of the same command left, "resume" continues from a checkpoint after one step with that cache. Seconds:

  import      until the package and JAX are there
  build       data, tokenizer, network, parameters or checkpoint: all that is in no other column
  trace       Python to jaxpr to StableHLO, of every program
  compile     XLA's, of every program, or the reading from the cache
  first step  from the last compilation to the step's metrics

Beside them, with --torch_python, PyTorch's train step of the same shape, which reads no data: eager, and by torch.compile with an
empty cache and with the one of the run before; all compilation is in its first step. Every start is a process of its own, one
after the other, round after round; the one with the median total counts.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import torch_peer
from shapes import SIZES, SIZES_HELP, recipe_flags

from diffusion_jax import cli
from diffusion_jax.errors import UserError

SIZE = flags.DEFINE_enum("size", "small", list(SIZES), SIZES_HELP)
CONFIG = flags.DEFINE_string("config", None, "Instead: a recipe, PATH or PATH:VARIANT, without PyTorch.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Starts of each kind.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
flags.adopt_module_key_flags(torch_peer)
COLUMNS = ("total", "import", "build", "trace", "compile", "first step")
STATUSES = (0, 128 + signal.SIGTERM)  # of a run that was stopped after its first step, and saved
Start = Callable[[], dict[str, float]]


def last_line(command: list[str], **env: str) -> dict[str, float]:
    """What a process prints last, JSON; told when it was started by the first {started} of its arguments."""
    command = [word.replace("{started}", repr(time.time())) for word in command]
    done = subprocess.run(command, env=os.environ | env, stdout=subprocess.PIPE, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode not in STATUSES or not found:
        raise UserError(f"{' '.join(command[:2])} failed; what it said is above.")
    return json.loads(found[-1])


def our_starts(folder: pathlib.Path) -> dict[str, Start]:
    """Starts of train.py by kind, after runs that leave data, a checkpoint and a cache."""
    words = [f"--config={CONFIG.value}"] if CONFIG.value else recipe_flags(SIZES[SIZE.value])
    words += [f"--config.data.dir={folder / 'data'}", "--config.train.num_steps=1000"]
    script, kept = str(pathlib.Path(__file__).with_name("startup_train.py")), str(folder / "kept")

    def start(end: str, workdir: str, cache: str) -> dict[str, float]:
        command = [sys.executable, script, "{started}", end, *words, f"--workdir={workdir}"]
        return last_line(command, JAX_COMPILATION_CACHE_DIR=cache)

    def new() -> str:
        return tempfile.mkdtemp(dir=folder)

    start("save", kept, cache := new())
    start("stop", kept, cache)  # what only a restart compiles
    return {
        "train.py, cold": lambda: start("stop", new(), new()),
        "train.py, cache": lambda: start("stop", new(), cache),
        "train.py, resume": lambda: start("stop", kept, cache),
    }


def torch_starts(folder: pathlib.Path) -> dict[str, Start]:
    """PyTorch's by kind."""
    script = str(pathlib.Path(__file__).with_name("startup_torch.py"))

    def start(mode: str, cache: str) -> dict[str, float]:
        settings = SIZES[SIZE.value] | {"processor": False, "dtype": "float32", "mode": mode, "started": 0}
        text = json.dumps(settings).replace('"started": 0', '"started": {started}')
        return last_line([torch_peer.PYTHON.value, script, text], TORCHINDUCTOR_CACHE_DIR=cache)

    caches: list[str] = []

    def cold() -> dict[str, float]:
        caches.append(tempfile.mkdtemp(dir=folder))
        return start("compile", caches[-1])

    return {
        "PyTorch, eager": lambda: start("eager", ""),
        "torch.compile, cold": cold,
        "torch.compile, cache": lambda: start("compile", caches[-1]),
    }


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if CONFIG.value and torch_peer.PYTHON.value:
        raise UserError("--torch_python is the peer of --size; a recipe of --config has none here. Give one of both.")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        starts = our_starts(folder) | (torch_starts(folder) if torch_peer.PYTHON.value else {})
        rounds = [{kind: start() for kind, start in starts.items()} for _ in range(REPEATS.value)]
    rows = []
    print(f"{CONFIG.value or SIZE.value}, {os.cpu_count()} cores; seconds, the median of {REPEATS.value} starts")
    print("| start | " + " | ".join(COLUMNS) + " | cache hits |")
    print("|---|" + "---:|" * (len(COLUMNS) + 1))
    for kind in starts:
        row = sorted((each[kind] for each in rounds), key=lambda found: found["total"])[REPEATS.value // 2]
        rows.append({"start": kind} | row)
        cells = [f"{row[column]:.1f}" if column in row else "-" for column in COLUMNS]
        print(f"| {kind} | {' | '.join(cells)} | {row.get('cache hits', '-')} |")
    if JSON.value:
        record = {"what": CONFIG.value or SIZES[SIZE.value], "cores": os.cpu_count(), "rows": rows, "rounds": rounds}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
