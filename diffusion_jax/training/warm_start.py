"""Fine-tuning: a run that begins at the parameters of another checkpoint, and says which it took.

Parameters are matched by their names. One rule goes beyond equal shapes: the first convolution of a network that reads more
pictures than the checkpoint's (a part to repaint, a small one to enlarge) keeps what it has and gives the new channels weights
of zero, so that before the first step the network is the old one, whatever the new channels hold.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.models import Params
from diffusion_jax.training.fingerprint import named_leaves
from diffusion_jax.training.step import TrainState

FIRST = "conv_in/kernel"
NAMES_SHOWN = 6  # of each kind, in a line; the whole list is in a file
Shape = tuple[int, ...]


class Inputs(NamedTuple):
    """What a first convolution reads: the channels of each part, in their order, of patches of patch x patch pixels."""

    parts: Mapping[str, int]
    patch: int

    @property
    def channels(self) -> int:
        return self.patch**2 * sum(self.parts.values())


class Match(NamedTuple):
    """Names and shapes of parameters: taken as they are, widened (the shape there and here), new here, left there.

    inputs: what the first convolution reads there and here.
    """

    inputs: tuple[Inputs, Inputs]
    taken: dict[str, Shape]
    widened: dict[str, tuple[Shape, Shape]]
    new: dict[str, Shape]
    left: dict[str, Shape]


def match(found: Params, wanted: Params, there: Inputs, here: Inputs, reshaped: str) -> Match:
    """What a network can take of a checkpoint.

    Args:
      found, wanted: the parameters there and here, or their shapes.
      there, here: what the first convolution reads there and here.
      reshaped: what becomes of parameters whose shape is another: "refuse", or "new" to begin them untrained.

    Raises:
      UserError: a shape is another, or nothing fits.
    """
    ours, theirs = ({name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()} for tree in (wanted, found))
    shared = [name for name in ours if name in theirs]
    taken = {name: ours[name] for name in shared if ours[name] == theirs[name]}
    widened = {
        name: (theirs[name], ours[name])
        for name in shared
        if name == FIRST and name not in taken and _widens(theirs[name], ours[name], there, here)
    }
    other = [name for name in shared if name not in taken and name not in widened]
    if other and reshaped == "refuse":
        told = "; ".join(f"{name} is {theirs[name]} there and {ours[name]} here" for name in other[:NAMES_SHOWN])
        more = f"; and {len(other) - NAMES_SHOWN} more" if len(other) > NAMES_SHOWN else ""
        raise UserError(
            f"parameters of another shape: {told}{more}. Use the sizes of that network, or begin these untrained with "
            "--config.train.init_reshaped=new."
        )
    if not taken:
        raise UserError(
            "none of its parameters is one of this network's. Use a checkpoint of the same kind of network."
        )
    new = {name: shape for name, shape in ours.items() if name not in taken and name not in widened}
    left = {name: shape for name, shape in theirs.items() if name not in taken and name not in widened}
    return Match((there, here), taken, widened, new, left)


def _widens(found: Shape, wanted: Shape, there: Inputs, here: Inputs) -> bool:
    return (
        there.patch == here.patch
        and there.parts.items() <= here.parts.items()
        and (found[-2], wanted[-2]) == (there.channels, here.channels)
        and (*found[:-2], found[-1]) == (*wanted[:-2], wanted[-1])
    )


def widen(kernel: Float[Array, "h w C O"], there: Inputs, here: Inputs) -> Float[Array, "h w D O"]:
    """The kernel of a first convolution that reads more parts: those that are new have weights of zero.

    The inputs are laid out [row of the patch][column][channel], and the parts are channels.
    """
    height, width, _, features = kernel.shape
    by_channel = kernel.reshape(height, width, there.patch**2, sum(there.parts.values()), features)
    known, start = {}, 0
    for name, count in there.parts.items():
        known[name] = by_channel[..., start : start + count, :]
        start += count
    zeros = {
        name: jnp.zeros((*by_channel.shape[:3], count, features), kernel.dtype) for name, count in here.parts.items()
    }
    parts = [known.get(name, zeros[name]) for name in here.parts]
    return jnp.concatenate(parts, axis=-2).reshape(height, width, here.channels, features)


def begin(state: TrainState, saved: Params, found: Match) -> TrainState:
    """The state before the first step with the checkpoint's parameters in it, and all averages at them.

    Args:
      state: the untrained one, which says where each array lies.
      saved: the checkpoint's parameters, those that are taken lying as the state's do.
      found: from `match`.
    """
    theirs, (there, here) = named_leaves(saved), found.inputs

    def choose(name: str, fresh: Array) -> Array:
        if name in found.widened:
            grow = functools.partial(widen, there=there, here=here)
            return jax.jit(grow, out_shardings=fresh.sharding)(theirs[name])
        return theirs[name] if name in found.taken else fresh

    leaves = [choose(name, leaf) for name, leaf in named_leaves(state.params).items()]
    params = jax.tree.unflatten(jax.tree.structure(state.params), leaves)
    # Copies: the step may not be given one buffer under two names.
    main, *more = (jax.tree.map(jnp.copy, params) for _ in range(1 + len(state.more_ema)))
    return state._replace(params=params, ema_params=main, more_ema=tuple(more))


def report(found: Match, most: int | None = NAMES_SHOWN) -> list[str]:
    """A line for each kind of arrays that there are: how many, and names with shapes, `most` of each at most."""
    size = sum(math.prod(shape) for shape in found.taken.values())
    lines = [f"taken: {_arrays(found.taken)}, {size / 1e6:.2f} million parameters"]
    if most is None:
        lines += [f"  {name} {list(shape)}" for name, shape in found.taken.items()]
    widened = {f"{name} {list(old)} ->": new for name, (old, new) in found.widened.items()}
    for what, names in (
        ("widened with zeros", widened),
        ("new, begun untrained", found.new),
        ("left, not of this network", found.left),
    ):
        if names:
            lines.append(f"{what}: {_arrays(names)}")
            shown = list(names.items())[:most]
            lines += [f"  {name} {list(shape)}" for name, shape in shown]
            if len(shown) < len(names):
                lines.append(f"  and {len(names) - len(shown)} more")
    return lines


def _arrays(names: Mapping[str, Any]) -> str:
    return f"{len(names)} array{'s' if len(names) != 1 else ''}"
