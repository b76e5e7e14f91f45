"""Where a step runs. The step itself is written once, for a batch; only this file knows of devices.

A step takes (replicated, batch, axis_name): `replicated` is the same on every device (the train state, parameters), the
batch's leaves are [B, ...]. Inside it, what must be global goes through `all_mean`, `all_gather` and `example_indices`;
they are the identity of a single device when `axis_name` is None.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

AXIS = "data"
PLACEMENTS = ("pmap", "single")


class Placement(NamedTuple):
    """How steps are spread.

    num_devices: a global batch must be a multiple of it.
    train: step(state, batch, axis_name) -> (state, metrics), to the function of the whole batch; the state is donated,
      stays one unstacked tree, and both outputs are the same on every device.
    map: fn(params, batch, axis_name) -> a tree of [B, ...], to the function of the whole batch.
    replicate: a tree -> the same on every device, for what `map` is given again and again.
    """

    num_devices: int
    train: Callable[[Callable[..., Any]], Callable[..., Any]]
    map: Callable[[Callable[..., Any]], Callable[..., Any]]
    replicate: Callable[[Any], Any]


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


def make_placement(name: str, devices: list[jax.Device] | None = None) -> Placement:
    """The placement of a name.

    Args:
      name: "pmap" (data-parallel over all local devices, parameters replicated) or "single" (jit on one device).
      devices: all local devices by default; "single" uses the first.

    Raises:
      ValueError: the name is unknown.
    """
    devices = devices or jax.local_devices()
    if name == "single":
        to_device = functools.partial(jax.device_put, device=devices[0])
        return Placement(1, _single_train(devices[0]), _single_map(devices[0]), to_device)
    if name == "pmap":
        everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
        to_devices = functools.partial(jax.device_put, device=everywhere)
        train, mapped = functools.partial(_pmap_train, devices), functools.partial(_pmap_map, devices)
        return Placement(len(devices), train, mapped, to_devices)
    raise ValueError(f"placement must be one of {PLACEMENTS}; got {name!r}.")


def _single_train(device: jax.Device) -> Callable:
    def train(step: Callable) -> Callable:
        compiled = jax.jit(functools.partial(step, axis_name=None), donate_argnums=0)
        return lambda state, batch: compiled(jax.device_put(state, device), batch)

    return train


def _single_map(device: jax.Device) -> Callable:
    def mapped(fn: Callable) -> Callable:
        compiled = jax.jit(functools.partial(fn, axis_name=None))
        return lambda params, batch: compiled(jax.device_put(params, device), batch)

    return mapped


def _pmap_train(devices: list[jax.Device], step: Callable) -> Callable:
    # in_axes None and out_axes None keep the state unstacked: checkpoints, EMA and sampling see the tree that jit sees.
    # The step's outputs must then be equal on every device, which `all_mean` of gradients and metrics makes them.
    parallel = jax.pmap(
        functools.partial(step, axis_name=AXIS),
        AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )
    return lambda state, batch: parallel(state, _split(batch, len(devices)))


def _pmap_map(devices: list[jax.Device], fn: Callable) -> Callable:
    parallel = jax.pmap(functools.partial(fn, axis_name=AXIS), AXIS, in_axes=(None, 0), devices=devices)

    def mapped(params: Any, batch: Any) -> Any:
        out = parallel(params, _split(batch, len(devices)))
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), out)

    return mapped


def _split(batch: Any, num_devices: int) -> Any:
    """[B, ...] -> [devices, B / devices, ...]."""
    size = len(jax.tree.leaves(batch)[0])
    if size % num_devices:
        raise ValueError(
            f"A batch of {size} examples cannot be split over {num_devices} devices. Use a multiple of {num_devices}."
        )
    return jax.tree.map(lambda x: x.reshape(num_devices, size // num_devices, *x.shape[1:]), batch)
