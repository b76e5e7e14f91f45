"""Where a step runs. The step itself is written once, for a batch; only this file knows of devices and processes.

A step takes (replicated, batch, axis_name): `replicated` is the train state or what sampling shares (parameters), the
batch's leaves are [B, ...]. Inside it, what must be global goes through `all_mean`, `all_gather` and `example_indices`;
they are the identity where `axis_name` is None: there the batch is the global one, on however many devices.

With several processes every function here is called by all of them, with the same shapes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from diffusion_jax.training import sharding

AXIS = "data"
AXES = ("data", "fsdp", "tensor")
PLACEMENTS = ("pmap", "sharded", "single")
FULLY_SHARDED = (1, -1, 1)
Step = Callable[[Any, Any, str | None], Any]


class Placement(NamedTuple):
    """How steps are spread.

    num_devices: a global batch must be a multiple of it.
    rows: batch size -> the rows of the global batch that this process gives to `train`.
    shardings: a train state's or parameters' shapes -> where each array lies.
    train: step(state, batch, axis_name) -> (state, metrics), to a function of the state and this process's rows (NumPy); the
      state is donated and is one unstacked tree in every placement; metrics are the same on every device.
    map: fn(shared, batch, axis_name) -> a tree of [B, ...], to a function of the whole batch, which every process has.
    replicate: parameters -> onto the devices, as `shardings` says, for what `map` is given again and again.
    lower_train: (step, state's shapes, global batch's shapes) -> the step's program, lowered for the devices; they may be
      those of a machine that is not there.
    """

    num_devices: int
    rows: Callable[[int], Int[np.ndarray, "R"]]
    shardings: Callable[[Any], Any]
    train: Callable[[Step], Callable[[Any, Any], tuple[Any, Any]]]
    map: Callable[[Step], Callable[[Any, Any], Any]]
    replicate: Callable[[Any], Any]
    lower_train: Callable[[Step, Any, Any], jax.stages.Lowered]


def all_mean(tree: Any, axis_name: str | None) -> Any:
    """Mean over the devices of the axis, each of which holds the mean over its share of the batch."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def all_gather(tree: Any, axis_name: str | None) -> Any:
    """Leaves [B of a device, ...] of every device, joined in the order of the global batch; the same on every device."""
    return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)


def example_indices(num_examples: int, axis_name: str | None) -> Int[Array, "B"]:
    """Places in the global batch of this device's `num_examples` examples."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_examples
    return first + jnp.arange(num_examples)


def make_placement(
    name: str, devices: Sequence[jax.Device] | None = None, mesh_shape: tuple[int, int, int] = FULLY_SHARDED
) -> Placement:
    """The placement of a name.

    Args:
      name: "pmap" (data-parallel, parameters replicated), "sharded" (jit over a mesh of data x fsdp x tensor: parameters,
        optimizer and EMA are sharded over fsdp and tensor, see `sharding.spec`) or "single" (one device).
      devices: those of all processes by default; "single" uses the first.
      mesh_shape: sharded: devices along data, fsdp and tensor; one of them may be -1, for what is left. Data is the axis
        that reaches over slices.

    Raises:
      ValueError: the name is unknown, or the mesh has another number of devices.
    """
    devices = list(devices or jax.devices())
    if name == "single":
        if jax.process_count() > 1:
            raise ValueError("the placement single is of one process; use pmap or sharded.")
        return _sharded(Mesh(np.array(devices[:1]).reshape(1, 1, 1), AXES))
    if name == "sharded":
        return _sharded(_mesh(devices, mesh_shape))
    if name == "pmap":
        return _replicated(devices)
    raise ValueError(f"placement must be one of {PLACEMENTS}; got {name!r}.")


def _mesh(devices: list[jax.Device], shape: tuple[int, int, int]) -> Mesh:
    known = math.prod(n for n in shape if n != -1)
    shape = tuple(len(devices) // known if n == -1 else n for n in shape)
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"a mesh of data x fsdp x tensor = {shape} does not have the {len(devices)} devices there are."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
    if shape[0] % slices:
        raise ValueError(
            f"data = {shape[0]} devices cannot be spread over {slices} slices: make it a multiple of them."
        )
    within = (shape[0] // slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES)


def _sharded(mesh: Mesh) -> Placement:
    """jit over a mesh; the compiler derives the communication from where parameters and batch lie."""
    # Devices along the tensor axis share the same rows.
    by_rows, everywhere = NamedSharding(mesh, PartitionSpec(AXES[:2])), NamedSharding(mesh, PartitionSpec())
    shardings = functools.partial(sharding.shardings, mesh)

    def traced(fn: Step) -> Callable[[Any, Any], Any]:
        """`fn` of the global batch, which knows the mesh while it is traced (models/partition.py asks for it)."""

        @functools.wraps(fn)  # the program bears its name in profiles
        def run(tree: Any, batch: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return fn(tree, batch, None)

        return run

    def program(step: Step, state: Any) -> Any:
        places = shardings(state)
        places_out = (places, everywhere)
        return jax.jit(traced(step), in_shardings=(places, by_rows), out_shardings=places_out, donate_argnums=0)

    def train(step: Step) -> Callable:
        compiled = None

        def run(state: Any, batch: Any) -> Any:
            nonlocal compiled
            compiled = compiled or program(step, state)
            return compiled(state, _from_rows(batch, by_rows))

        return run

    def mapped(fn: Step) -> Callable:
        compiled = jax.jit(traced(fn), out_shardings=by_rows)
        return lambda shared, batch: _whole(compiled(shared, _put_all(_check(batch, by_rows), by_rows)))

    return Placement(
        math.prod(mesh.devices.shape[:2]),
        functools.partial(_rows, by_rows),
        shardings,
        train,
        mapped,
        lambda tree: _put(tree, shardings(tree)),
        lambda step, state, batch: program(step, state).lower(state, batch),
    )


def _replicated(devices: list[jax.Device]) -> Placement:
    """pmap on one process. On several its modern spelling, whose state is of global arrays, as checkpoints want it."""
    mesh = Mesh(np.array(devices), (AXIS,))
    by_rows, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())

    def shard_map(step: Step, out_specs: Any, **options: Any) -> Any:
        # Without check_vma=False the gradient of what is replicated would be summed already, and all_mean would not mend it.
        mapped = jax.shard_map(
            functools.partial(step, axis_name=AXIS),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=out_specs,
            check_vma=False,
        )
        return jax.jit(mapped, **options)

    def train(step: Step) -> Callable:
        if jax.process_count() > 1:
            compiled = shard_map(step, PartitionSpec(), donate_argnums=0)
            return lambda state, batch: compiled(state, _from_rows(batch, by_rows))
        # in_axes None and out_axes None keep the state unstacked: checkpoints, EMA and sampling see the tree that jit sees.
        # The step's outputs must then be equal on every device, which `all_mean` of gradients and metrics makes them.
        axes = {"in_axes": (None, 0), "out_axes": None, "donate_argnums": 0, "devices": devices}
        parallel = jax.pmap(functools.partial(step, axis_name=AXIS), AXIS, **axes)
        return lambda state, batch: parallel(state, _put_all(_split(batch, len(devices)), by_rows))

    def mapped(fn: Step) -> Callable:
        if jax.process_count() > 1:
            compiled = shard_map(fn, PartitionSpec(AXIS))
            return lambda shared, batch: _whole(compiled(shared, _put_all(_check(batch, by_rows), by_rows)))
        parallel = jax.pmap(functools.partial(fn, axis_name=AXIS), AXIS, in_axes=(None, 0), devices=devices)

        def run(shared: Any, batch: Any) -> Any:
            out = parallel(shared, _split(batch, len(devices)))
            return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), out)

        return run

    def lower_train(step: Step, state: Any, batch: Any) -> jax.stages.Lowered:
        return shard_map(step, PartitionSpec(), donate_argnums=0).lower(
            _described(state, everywhere), _described(batch, by_rows)
        )

    return Placement(
        len(devices),
        functools.partial(_rows, by_rows),
        lambda template: jax.tree.map(lambda _: everywhere, template),
        train,
        mapped,
        lambda tree: _put_all(tree, everywhere),
        lower_train,
    )


@functools.lru_cache
def _rows(by_rows: NamedSharding, batch_size: int) -> Int[np.ndarray, "R"]:
    places = by_rows.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places]))


def _from_rows(batch: Any, by_rows: NamedSharding) -> Any:
    """This process's rows -> global arrays."""
    if jax.process_count() == 1:
        return _put_all(_check(batch, by_rows), by_rows)
    devices = by_rows.mesh.devices.size
    share = len(jax.tree.leaves(batch)[0])
    size = share * devices // len(_rows(by_rows, devices))
    rows = _rows(by_rows, size)

    def assemble(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(size)
            return x[slice(*np.searchsorted(rows, (first, last)))]

        return _assembled((size, *x.shape[1:]), by_rows, part)

    return jax.tree.map(assemble, batch)


def _put(tree: Any, places: Any) -> Any:
    return jax.tree.map(_put_one, tree, places)


def _put_all(tree: Any, place: NamedSharding) -> Any:
    return jax.tree.map(lambda x: _put_one(x, place), tree)


def _put_one(x: Any, place: NamedSharding) -> jax.Array:
    """Onto the devices of every process; what all processes have whole, or what lies there already."""
    if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, place)
    x = np.asarray(x)
    return _assembled(x.shape, place, lambda index: x[index])


def _assembled(
    shape: tuple[int, ...], place: NamedSharding, part: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """The global array whose parts the processes have; put explicitly, as a transfer guard wants it."""
    parts = place.addressable_devices_indices_map(shape).items()
    arrays = [jax.device_put(part(index), device) for device, index in parts]
    return jax.make_array_from_single_device_arrays(shape, place, arrays)


def _whole(tree: Any) -> Any:
    """What every process can read."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def _described(tree: Any, place: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _check(batch: Any, by_rows: NamedSharding) -> Any:
    num_devices = by_rows.mesh.devices.size // by_rows.mesh.shape.get("tensor", 1)
    _check_size(len(jax.tree.leaves(batch)[0]), num_devices)
    return batch


def _check_size(size: int, num_devices: int) -> None:
    if size % num_devices:
        raise ValueError(
            f"A batch of {size} examples cannot be split over {num_devices} devices. Use a multiple of {num_devices}."
        )


def _split(batch: Any, num_devices: int) -> Any:
    """[B, ...] -> [devices, B / devices, ...]."""
    size = len(jax.tree.leaves(batch)[0])
    _check_size(size, num_devices)
    return jax.tree.map(lambda x: x.reshape(num_devices, size // num_devices, *x.shape[1:]), batch)
