"""How a TPU's compiler lays out a step's memory, without waiting for the program.

Of a network of billions of parameters it has a place for every array after some minutes, and then writes machine code for an
hour or more. What it decided is in its dump; there it is stopped.
"""

import multiprocessing
import os
import pathlib
import re
import tempfile
import time
from multiprocessing.connection import Connection

from ml_collections import ConfigDict

from diffusion_jax.plan import chips, hlo
from diffusion_jax.plan.estimate import Mesh, Program, compile_step
from diffusion_jax.plan.recipe import recipe

_PREFIX = "*.after_optimizations"  # the TPU's programs; those of the CPU have a word before it


def lay_out(config: ConfigDict, topology: str, placement: str, mesh: Mesh) -> Program:
    """The step's memory and exchanges; the whole program's figures where it is compiled before its layout can be read.

    Args:
      config: the recipe.
      topology: of TPUs.
      placement, mesh: see `estimate.compile_step`.
    """
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as name:
        folder, seen = pathlib.Path(name), {}
        process = context.Process(
            target=_compile,
            args=(sender, name, config.copy_and_resolve_references(), topology, placement, mesh),
        )
        process.start()
        sender.close()  # so that the end of the process is the end of the pipe
        try:
            while not receiver.poll(2.0):
                before, seen = seen, _sizes(folder)
                if len(seen) == 3 and seen == before:
                    return read(folder, time.monotonic() - started)
            found = receiver.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"The compiler's process ended with status {process.exitcode}.") from None
        finally:
            process.kill()
            process.join()
    if isinstance(found, Exception):
        raise found
    return found


def read(folder: pathlib.Path, seconds: float) -> Program:
    """The layout that a dump of XLA's tells."""
    report, buffers, text = (path.read_text() for path in _files(folder))
    total = re.search(r"^Memory Space: default.*\nTotal bytes: (\d+)", report, re.MULTILINE)
    if total is None:
        raise RuntimeError("The compiler's report of its memory has no total; this release of libtpu writes another.")
    sizes = {
        kind: sum(map(int, re.findall(rf"^allocation \d+: size (\d+), page \d+, {kind}", buffers, re.MULTILINE)))
        for kind in ("parameter", "preallocated-temp")
    }
    return Program(
        refusal="",
        arguments=sizes["parameter"],
        temporaries=sizes["preallocated-temp"],
        code=None,
        peak=int(total[1]),
        traffic=None,
        cycles=0,
        collectives=hlo.collectives(text),
        seconds=seconds,
    )


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The report of the memory, the arrays' places and the program's text, as far as they are there."""
    kinds = ("-memory-usage-report.txt", "-buffer-assignment.txt", ".txt")
    found = [max(folder.glob(_PREFIX + kind), key=lambda path: path.stat().st_size, default=None) for kind in kinds]
    return [path for path in found if path]


def _sizes(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_size for path in _files(folder)}


def _compile(sender: Connection, folder: str, config: ConfigDict, topology: str, placement: str, mesh: Mesh) -> None:
    """In a process of its own, which can be stopped: the compiler cannot."""
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    try:
        sender.send(compile_step(recipe(config), placement, mesh, chips.devices(topology)))
    except Exception as error:
        sender.send(error)
