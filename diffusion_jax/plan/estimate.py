"""What one placement of a recipe needs of each chip: first by arithmetic, then by the compiler."""

import math
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.plan import hlo
from diffusion_jax.plan import recipe as recipes
from diffusion_jax.plan.chips import Chip
from diffusion_jax.plan.recipe import Recipe
from diffusion_jax.training import sharding

KINDS = {
    "params": "parameters",
    "opt_state": "optimizer",
    "ema_params": "EMA",
    "more_ema": "further EMA",
}  # others: rest


class Mesh(NamedTuple):
    """Devices along each axis; under pmap all along data, under single 1."""

    data: int
    fsdp: int
    tensor: int

    @property
    def size(self) -> int:
        return math.prod(self)


class Program(NamedTuple):
    """A compiled step, for one chip.

    refusal: why the compiler would not, or "": then the rest is 0.
    arguments, temporaries, code, peak: bytes; the peak is of all that lies there at once, as the compiler counts it.
    traffic: bytes that pass between the HBM and the cores; a loop's body is counted once.
      It and `code` are None where the compiler was stopped before it wrote the program (`layout.py`).
    cycles: the compiler's estimate, of its operations but without exchanges; 0 is none.
    collectives: by kind; None where the program's text cannot be read.
    seconds: the compilation took.
    """

    refusal: str
    arguments: int
    temporaries: int
    code: int | None
    peak: int
    traffic: float | None
    cycles: int
    collectives: dict[str, hlo.Collective] | None
    seconds: float


def mesh(recipe: Recipe, placement: str, num_devices: int) -> Mesh:
    """The mesh of a placement, -1 filled in.

    Raises:
      UserError: the recipe's mesh has another number of devices, or its batch cannot be shared among them.
    """
    config, shape = recipe.config, tuple(recipe.config.parallel.mesh)
    if placement == "sharded":
        known = math.prod(n for n in shape if n != -1)
        shape = tuple(num_devices // known if n == -1 else n for n in shape)
        if math.prod(shape) != num_devices:
            raise UserError(
                f"config.parallel.mesh={','.join(map(str, shape))} (data, fsdp, tensor) does not have the {num_devices} chips."
            )
    found = {"pmap": Mesh(num_devices, 1, 1), "single": Mesh(1, 1, 1)}.get(placement) or Mesh(*shape)
    pieces = found.data * found.fsdp * config.train.accumulation
    if config.train.batch_size % pieces:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size} cannot be shared by {found.data * found.fsdp} chips in "
            f"{config.train.accumulation} accumulated pieces. Set a multiple of {pieces}, or fewer devices in the mesh."
        )
    return found


def state_bytes(recipe: Recipe, mesh: Mesh) -> dict[str, int]:
    """Bytes of the train state on each chip, by kind."""
    found: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(recipe.state)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = sharding.spec(name, leaf.shape, mesh.fsdp, mesh.tensor)
        parts = math.prod(getattr(mesh, axis) for axis in spec if axis)
        kind = KINDS.get(name.split("/")[0], "rest")
        found[kind] = found.get(kind, 0) + leaf.size * leaf.dtype.itemsize // parts
    return found


def smallest(recipe: Recipe, num_devices: int) -> tuple[Mesh, int]:
    """The mesh of data x fsdp on which the state takes the least of each chip, and that many bytes.

    More devices along fsdp are not always less of the state on each: an axis that they do not divide is not split.
    """
    meshes = [Mesh(num_devices // n, n, 1) for n in range(1, num_devices + 1) if num_devices % n == 0]
    sizes = [sum(state_bytes(recipe, mesh).values()) for mesh in meshes]
    return min(zip(meshes, sizes, strict=True), key=lambda pair: pair[1])


def compile_step(recipe: Recipe, placement: str, mesh: Mesh, devices: Sequence[jax.Device]) -> Program:
    """The recipe's train step, compiled for devices that need not be there."""
    config = recipe.config.copy_and_resolve_references()
    config.parallel.update(placement=placement, mesh=tuple(mesh))
    step = recipes.recipe(config, devices[0].platform).step
    lowered = build.placement(config, devices).lower_train(step, recipe.state, recipe.batch)
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = re.sub(r".*?CompileTimeHbmOom: |\. HLO module.*", "", str(error).splitlines()[0])
        return Program(reason, 0, 0, 0, 0, 0.0, 0, {}, time.monotonic() - started)
    memory, text, costs = compiled.memory_analysis(), _text(compiled), compiled.cost_analysis()
    assert memory and costs, "CPU, GPU and TPU programs have both"
    return Program(
        refusal="",
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        traffic=costs["bytes accessed"],
        cycles=hlo.cycles(text) if text else 0,
        collectives=hlo.collectives(text) if text else None,
        seconds=time.monotonic() - started,
    )


def _text(compiled: jax.stages.Compiled) -> str | None:
    """The program's text; None where libtpu 0.0.52 fails to write it, as of exchanges that a v5p gives to its SparseCores."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "async-update" not in str(error):
            raise
        return None


def seconds(chip: Chip, step_flops: int, mesh: Mesh, program: Program) -> dict[str, float]:
    """The least time of a step for each of its parts, at the chip's peak rates, and the compiler's own estimate.

    Products and convolutions are spread over all chips. What overlaps is up to the program: the step takes at least the
    largest of the three, and their sum if nothing overlaps.
    """
    received = sum(collective.received for collective in (program.collectives or {}).values())
    return {
        "products": step_flops / mesh.size / chip.flops,
        "HBM": (program.traffic or 0) / chip.hbm_bandwidth,
        "links": received / chip.ici_bandwidth,
        "compiler": program.cycles / chip.clock,
    }
