"""What keeps a network's arrays split by rows where its parameters are split over the same devices."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from diffusion_jax.models import Network

ROWS = ("data", "fsdp")  # mesh axes over which a batch is split
LAYERS = (nn.Dense, nn.Conv, nn.Embed)  # whose kernels are split over fsdp too


def keep_rows(network: Network) -> Network:
    """The same network, what enters and leaves each of its layers split by rows over the mesh that it is traced under.

    Without it the partitioner is free to split a layer's output as its kernel is, over channels, and then gathers the
    whole batch on each device where heads are parted or joined. With it, it must gather the kernel. Where there is no
    mesh with these axes, or they do not divide the rows, nothing changes.
    """

    def apply(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_constrained):
            return network.apply(*args, **kwargs)

    return network._replace(apply=apply)


def _constrained(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if context.method_name != "__call__" or not isinstance(context.module, LAYERS):
        return call(*args, **kwargs)
    # What enters too: the constraint then holds for its gradient, which else would be split as the kernel is.
    return _split_by_rows(call(*map(_split_by_rows, args), **kwargs))


def _split_by_rows(x: jax.Array) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if not set(ROWS) <= set(mesh.axis_names) or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))
