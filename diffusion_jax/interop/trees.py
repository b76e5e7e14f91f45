"""Parameters of a known tree out of arrays under another system's names."""

from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np

from diffusion_jax.models import Params

SHOWN = 5  # problems in a line


def fill(
    template: Params,
    arrays: Mapping[str, np.ndarray],
    name_of: Callable[[list[str]], str | None],
    convert: Callable[[np.ndarray], np.ndarray],
    unread: Collection[str] = (),
) -> Params:
    """The template's tree with the arrays in it.

    Args:
      template: shapes.
      arrays: by name; each is read once.
      name_of: a parameter's path in the template -> its name among the arrays; None fills it with ones.
      convert: an array -> its layout here.
      unread: names that may be left over.

    Raises:
      ValueError: arrays are missing, left over or misshapen; it lists them.
    """
    leaves, problems = [], []
    left = {key for key in arrays if not key.endswith("num_batches_tracked")} - set(unread)
    for path, leaf in jax.tree_util.tree_leaves_with_path(template):
        key = name_of([part.key for part in path])
        if key is None:
            leaves.append(np.ones(leaf.shape, np.float32))
            continue
        left.discard(key)
        array = convert(arrays[key]) if key in arrays else None
        if array is None or array.shape != leaf.shape:
            problems.append(f"missing {key}" if array is None else f"{key} has {array.shape} for {leaf.shape}")
        leaves.append(array)
    problems += [f"left over {key}" for key in sorted(left)]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError("; ".join(problems[:SHOWN]) + more)
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
