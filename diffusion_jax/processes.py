"""Several processes of one run: how they find each other, and which of them speaks.

A pod runs one process per host, each started with the same command. JAX joins them, and from then on their devices are one
set and what they compute together needs all of them. Files and words are the first one's affair.
"""

import itertools
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from diffusion_jax.errors import UserError

MODES = ("auto", "on", "off")
DAY_MS = 24 * 60 * 60 * 1000
T = TypeVar("T")
_BARRIERS = itertools.count()  # a barrier's name is used once; every process counts the same


def join(mode: str, coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of this run, before anything else is asked of JAX; a run of one process needs nothing.

    Args:
      mode: "auto" joins where SLURM, Open MPI, GKE or Cloud TPU say by environment variables that there are several processes, or
        where the next three are given; "on" always, and JAX finds the cluster; "off" never.
      coordinator: the first process's HOST:PORT; with it num_processes and process_id must be given.
      num_processes: how many there are.
      process_id: this one's number.

    Raises:
      UserError: the three are not given together, or the others were not found.
    """
    explicit = (coordinator, num_processes, process_id)
    if any(value is not None for value in explicit) and None in explicit:
        raise UserError("--coordinator=HOST:PORT, --num_processes and --process_id go together: give all three.")
    if mode == "off" or (mode == "auto" and coordinator is None and not several_by_environment()):
        return
    import jax

    # On CPUs, programs that are under way together run in any order, and two processes that meet in another order wait for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(*explicit)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot join the processes of this run ({reason}). Give --coordinator=HOST:PORT, --num_processes and --process_id "
            "to each, or --distributed=off to run alone."
        ) from error
    if jax.process_index() > 0:
        # What every process would say in the same words, the first says; errors still go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the program runs)
        os.environ["TQDM_DISABLE"] = "1"


def several_by_environment() -> bool:
    """Whether a cluster's variables tell of more than one process."""
    tasks = max(int(os.environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + os.environ.get("TPU_PROCESS_ADDRESSES", "").count(
        ","
    )
    slices = int(os.environ.get("MEGASCALE_NUM_SLICES", 1))
    indexed_job = {"JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"} <= os.environ.keys()
    return tasks > 1 or hosts > 0 or slices > 1 or indexed_job


def first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def first_then_others(make: Callable[[], T]) -> T:
    """What `make` gives, called by the first process and only then by the others: they find the files that it wrote."""
    import jax

    if jax.process_count() == 1:
        return make()
    if first():
        made = make()
    wait_for_all()
    return made if first() else make()


def wait_for_all() -> None:
    """Returns when every process has come here."""
    import jax

    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost

    # By the coordinator, not by a collective: those give up after seconds, and to prepare data takes as long as it takes.
    multihost.get_barrier_sync_fn()(key=f"diffusion_jax_{next(_BARRIERS)}", timeout_ms=DAY_MS)
