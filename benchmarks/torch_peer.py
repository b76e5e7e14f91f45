"""Asks a script that needs PyTorch and runs as a process of its own, in an environment that has it."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable
from typing import Any

from absl import flags

from diffusion_jax.errors import UserError

# Read when JAX starts, which is later: on a GPU it would else take three quarters of the memory for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
PYTHON = flags.DEFINE_string("torch_python", None, "A Python that has PyTorch, to be timed beside.")


def ask_of(script: str, settings: dict[str, Any]) -> Callable[[str], Any]:
    """A function from a request, one line, to the answer of a script beside this file.

    Args:
      script: its name; it answers by torch_answers.serve.
      settings: what it is to build, and "processor" (torch_answers.py).
    """
    command = [str(PYTHON.value), str(pathlib.Path(__file__).with_name(script)), json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout

    def ask(request: str) -> Any:
        try:
            print(request, file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"{script} ended at {request!r}; what it said is above. Is PyTorch in {PYTHON.value}?")
        return json.loads(line)

    return ask
