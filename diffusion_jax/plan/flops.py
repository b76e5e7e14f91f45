"""Floating-point operations of a function, counted from its jaxpr: those of matrix products and convolutions.

XLA's own count (`cost_analysis`) takes the body of a loop once, however often it runs, and depends on how the compiler
rewrote the program. What is left out here (norms, activations, the optimizer) is below a hundredth in these networks.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(fn: Callable[..., Any], *args: Any) -> int:
    """Operations of fn(*args), a multiplication and an addition each being one.

    Args:
      fn: traced, not run.
      args: arrays or ShapeDtypeStructs.
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inside(params)]
    if name == "cond":  # one branch runs; the same product in the form that each backend likes
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _of_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _of_convolution(equation: Any) -> int:
    """2 x outputs x taps x input channels; zeros between dilated inputs are not multiplied, those of the border are."""
    params, (_, kernel), out = equation.params, equation.invars, equation.outvars[0].aval
    in_channels_per_group, *taps = (kernel.aval.shape[axis] for axis in params["dimension_numbers"].rhs_spec[1:])
    return 2 * math.prod(out.shape) * math.prod(taps) * in_channels_per_group // math.prod(params["lhs_dilation"])


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation runs."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr
