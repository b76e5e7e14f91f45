"""The yardstick of the benchmarks: times of single calls, and the best rate of a large float32 matrix product."""

import time
from collections.abc import Callable
from typing import Any

MATRIX = 2048
PRODUCT_FLOPS = 2 * MATRIX**3


def seconds(fn: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Times of single calls, after one that is not counted; sorted."""
    import jax

    times = []
    for _ in range(repeats + 1):
        start = clock()
        jax.block_until_ready(fn())
        times.append(clock() - start)
    return sorted(times[1:])


def product() -> Callable[[], Any]:
    """One square product of PRODUCT_FLOPS operations; over the least of its times they are the machine's peak."""
    import jax
    import jax.numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX), jnp.float32)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return lambda: multiply(matrix)
