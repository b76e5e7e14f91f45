"""What multistep methods share: a memory of the last predictions and of their times."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.schedules import Schedule


class Memory(NamedTuple):
    """The last values, newest first, and the times that they are of; time inf is none."""

    values: tuple[Float[Array, "B ..."], ...]
    times: tuple[Float[Array, "B"], ...]


def empty(x_t: Float[Array, "B ..."], length: int) -> Memory:
    """A memory of `length` places with nothing in them."""
    nothing = jnp.full(x_t.shape[0], jnp.inf, x_t.dtype)
    return Memory((jnp.zeros_like(x_t),) * length, (nothing,) * length)


def remember(memory: Memory, value: Float[Array, "B ..."], t: Float[Array, ""]) -> Memory:
    """The memory with a newer value; the oldest is forgotten."""
    times = jnp.full_like(memory.times[0], t)
    return Memory((value, *memory.values[:-1]), (times, *memory.times[:-1]))


def log_ratio(schedule: Schedule, t: Float[Array, ""]) -> Float[Array, ""]:
    """lambda = log(alpha / sigma), half the log SNR, in which DPM-Solver's steps are even; +inf at the data."""
    level = schedule(t)
    return jnp.log(level.alpha) - jnp.log(level.sigma)


def past(schedule: Schedule, memory: Memory) -> tuple[list[Float[Array, ""]], list[Array]]:
    """lambda of each remembered time, and which of them can be used: there, and with signal (a finite lambda).

    A time that cannot be used has the lambda 0. All examples are at the same time, so that the first one tells it.
    """
    found = []
    for times in memory.times:
        value = log_ratio(schedule, jnp.where(jnp.isinf(times[0]), 1, times[0]))
        found.append((value, jnp.isfinite(value) & ~jnp.isinf(times[0])))
    return [jnp.where(usable, value, 0) for value, usable in found], [usable for _, usable in found]


def decay(schedule: Schedule, t: Float[Array, ""], s: Float[Array, ""]) -> Float[Array, ""]:
    """exp(-h), h = lambda_s - lambda_t: (alpha_t sigma_s) / (sigma_t alpha_s), exactly 0 from pure noise and to the data."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return alpha_t * sigma_s / (sigma_t * alpha_s)
