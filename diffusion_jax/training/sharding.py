"""Where the arrays of a sharded train state lie: rules by name and by shape, the same for parameters, optimizer and EMA."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MIN_SIZE = 2**14  # numbers; smaller arrays are replicated: to gather them costs more time than they take room
# Layers whose outputs are split over the tensor axis, and those behind them that take the split channels in: of a residual
# block, an attention block and a transformer's block.
SPLIT_OUT = re.compile(r"(.*/)?(conv_in|qkv|query|key|value|text_kv|mlp_in|emb|time_embed_0)/kernel")
SPLIT_IN = re.compile(r"(.*/)?(conv_out|out|attn_out|mlp_out|time_embed_1)/kernel")


def spec(path: str, shape: tuple[int, ...], fsdp: int, tensor: int) -> PartitionSpec:
    """How an array is split over the axes fsdp and tensor.

    A kernel's last axis is its outputs, the one before its inputs; tensor splits one of them by the layer's name. Fsdp
    splits the longest axis that is left and that it divides. What no rule splits is replicated; so are small arrays.

    Args:
      path: its names from the root, as "opt_state/0/mu/down_1_res/conv_in/kernel".
      shape: its shape.
      fsdp, tensor: devices along each axis.
    """
    axes: list[str | None] = [None] * len(shape)
    if np.prod(shape, dtype=np.int64) < MIN_SIZE:
        return PartitionSpec()
    if tensor > 1 and len(shape) >= 2:
        axis = -1 if SPLIT_OUT.fullmatch(path) else -2 if SPLIT_IN.fullmatch(path) else None
        if axis is not None and shape[axis] % tensor == 0:
            axes[axis] = "tensor"
    free = [i for i, n in enumerate(shape) if axes[i] is None and n % fsdp == 0]
    if fsdp > 1 and free:
        axes[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def shardings(mesh: Mesh, template: Any) -> Any:
    """A NamedSharding for each array of a tree, by `spec`.

    Args:
      mesh: with the axes fsdp and tensor.
      template: arrays, or their shapes.
    """
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(
            mesh, spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, fsdp, tensor)
        )

    return jax.tree_util.tree_map_with_path(place, template)
