"""Networks, in Flax Linen. Flax lives in this folder and nowhere else; outside it a network is a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Float, Key

Params: TypeAlias = Any  # a nested dict of arrays


class Network(NamedTuple):
    """A network as two pure functions.

    init: key -> params.
    apply: (params, x_t [B, H, W, C], time [B], cond, dropout_keys [B] or None) -> output [B, H, W, C_out]. `time` is in
      the network's own unit (DDPM's step, 0 to T - 1). Dropout is on only where keys are given.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., Float[Array, "B H W C_out"]]
