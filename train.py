"""Trains a diffusion model.

    python train.py --config=configs/scenes.py --workdir=runs/scenes
    python train.py --config=configs/scenes.py:debug --workdir=/tmp/try --config.train.num_steps=20

Any field of the config can be overridden as --config.GROUP.FIELD=VALUE. The same command run again continues where the
run stopped; Ctrl-C and SIGTERM save first. The exit status is 0 at the run's end alone, and 130 and 143 after these two, so that
a cluster knows what to start again.
"""

import pathlib
import sys
import time

from absl import flags
from ml_collections import config_flags

from diffusion_jax import cli

STARTED = time.monotonic()
CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, as configs/NAME.py or configs/NAME.py:VARIANT.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and samples are written.")
flags.adopt_module_key_flags(cli)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.start()
    from diffusion_jax.training import run  # after the flags are right: JAX takes seconds to import

    stopped = run.train(CONFIG.value, pathlib.Path(str(WORKDIR.value)), STARTED)
    if stopped:
        sys.exit(130 if stopped == "SIGINT" else 143)  # 128 + the signal's number, as where nothing handles it


if __name__ == "__main__":
    cli.run(main)
