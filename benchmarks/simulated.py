"""Runs a benchmark's own file again where the host simulates a number of devices."""

import json
import os
import subprocess
import sys
from typing import Any

from diffusion_jax.errors import UserError


def run_apart(script: str, words: list[str], num_devices: int) -> Any:
    """What a script with these flags prints last, JSON, in a process with so many CPU devices.

    Raises:
      UserError: it failed.
    """
    count = f"--xla_force_host_platform_device_count={num_devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}"}
    done = subprocess.run([sys.executable, script, *words], env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(words)} on {num_devices} devices failed; what it said is above.")
    return json.loads(done.stdout.splitlines()[-1])
