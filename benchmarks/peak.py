"""The yardstick of the benchmarks: times of single calls, and the best rate of a large matrix product."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

SIDES = {"cpu": 2048}
LARGE_SIDE = 8192  # of any other device: what a GPU needs to reach its rate


def seconds(fn: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Times of single calls, after one that is not counted; sorted."""
    import jax

    times = []
    for _ in range(repeats + 1):
        start = clock()
        jax.block_until_ready(fn())
        times.append(clock() - start)
    return sorted(times[1:])


def one_core() -> Callable[[], float]:
    """Keeps this process and those that it starts to one core; call before JAX counts them. The clock: processor time."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return time.process_time


def as_commands_do() -> None:
    """Gives XLA and glibc what train.py and sample.py give them on a CPU (`diffusion_jax/cpu.py`); before JAX computes."""
    from diffusion_jax import cpu

    cpu.choose_convolutions()
    if cpu.is_alone():
        cpu.keep_memory()


class Product(NamedTuple):
    """A square matrix product of `flops` operations; over the least of its times they are the machine's peak.

    request: the same product's, to a PyTorch process (torch_answers.py).
    """

    run: Callable[[], Any]
    flops: int
    request: str


def product(dtype: str = "float32") -> Product:
    """Of float32 on a GPU in TensorFloat-32, as JAX multiplies there by default."""
    import jax
    import jax.numpy as jnp

    side = SIDES.get(jax.default_backend(), LARGE_SIDE)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    return Product(lambda: multiply(matrix, matrix), 2 * side**3, f"product {side} {dtype}")
