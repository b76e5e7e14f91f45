"""train.py in a process that is forked from one which has imported all of it already: importing takes longer than a short run.

The child of `multiprocessing`'s fork server, which imports this module alone.
"""

import pathlib
import runpy
import sys

ROOT = pathlib.Path(__file__).parents[1]


def train(words: list[str], said: str) -> None:
    """Runs train.py with flags; stdout goes to the file SAID.out and stderr to SAID.err, line by line."""
    sys.stdout, sys.stderr = (open(f"{said}.{name}", "w", buffering=1) for name in ("out", "err"))  # noqa: SIM115 (to its end)
    sys.argv = ["train.py", *words]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
