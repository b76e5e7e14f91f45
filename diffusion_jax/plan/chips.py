"""What a chip has, and the topologies for which a program is compiled without one."""

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax.errors import UserError, unknown_name

GIB = 2**30


class Chip(NamedTuple):
    """A kind of chip.

    hbm: bytes that a program may use, as libtpu 0.0.52 states them when it refuses a larger one ("available HBM").
    flops: peak of bfloat16 products per second; float32 products run in bfloat16 passes, one by JAX's default.
    hbm_bandwidth: bytes per second.
    ici_bandwidth: bytes per second that a chip can receive over its links to other chips, all of them at work.
    clock: cycles per second. It follows from the peak: 2 x 128 x 128 operations a cycle in each matrix unit (v4, v5p: 8,
      v5e: 4), 2 x 256 x 256 in each of v6e's, of which its page has 2 and its peak needs 4 at 1.75 GHz.

    Source: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (read 2026-11-26; the links there are bidirectional bytes, of
    which half arrive); v4's links from Jouppi et al. 2023, six of 50 GB/s.
    """

    hbm: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    clock: float


CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1200e9, 300e9, 1.05e9),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 1.5e9),
    "v5p": Chip(95.73 * GIB, 459e12, 2765e9, 600e9, 1.75e9),
    "v6e": Chip(31.24 * GIB, 918e12, 1638e9, 400e9, 1.75e9),
}
LOCAL = "local"
EXAMPLES = "v4:4x4x8 (128 chips), v5e:16x16 (256), v5p:4x4x4 (64), v6e:8x8 (64) or local"


def prepare_environment(topology: str) -> None:
    """What must be set before JAX is imported, so that libtpu compiles on a machine without a TPU, and in silence."""
    if topology == LOCAL:
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Two plans at once on one machine: without it the second finds libtpu's lock file taken.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def parse(topology: str) -> tuple[Chip | None, int]:
    """The chip and the number of chips of a name such as v5e:16x16; (None, 0) for the local devices.

    Raises:
      UserError: the name is none.
    """
    if topology == LOCAL:
        return None, 0
    kind, _, sides = topology.partition(":")
    if kind not in CHIPS:
        raise unknown_name("--topology's chip", kind, [*CHIPS, LOCAL])
    try:
        lengths = [int(side) for side in sides.split("x")]
    except ValueError:
        lengths = []
    if len(lengths) != (3 if kind in ("v4", "v5p") else 2) or min(lengths) < 1:
        raise UserError(f"--topology={topology} is no topology: a chip and its sides, such as {EXAMPLES}.")
    return CHIPS[kind], math.prod(lengths)


def devices(topology: str) -> Sequence:
    """The devices of a topology, one per chip, for which programs compile but do not run; all local ones for "local".

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    import jax
    from jax.experimental import topologies

    if topology == LOCAL:
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs libtpu: pip install -e '.[plan]'. Without it, --nocompile tells the state's size alone."
        )
    # A v4 chip's two cores as one device, which is how JAX uses them on the chip itself.
    more = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu", **more).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology}: libtpu says {reason}. Others: {EXAMPLES}.") from error
