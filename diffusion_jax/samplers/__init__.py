"""Samplers: from noise to data along a grid of times. One method per file, one scan here that runs them all.

A sampler is a pair of pure functions:

    init(x_t) -> state                                                 what a multistep method remembers; () for most
    step(denoise, x_t, t, s, keys, state) -> (x_s, state)              one step from t down to s < t

`denoise(x_t, t) -> Prediction` is a Denoiser with its condition bound. `keys` [B] are fresh at each step, one per
example, so that example i never depends on its batch-mates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.predictions import Prediction

Denoise: TypeAlias = Callable[[Float[Array, "B ..."], Float[Array, ""]], Prediction]


class Sampler(NamedTuple):
    """A sampling method; see the module's docstring for the two signatures."""

    init: Callable[[Float[Array, "B ..."]], Any]
    step: Callable[..., tuple[Float[Array, "B ..."], Any]]


def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    x_t: Float[Array, "B ..."],
    grid: Float[Array, "N+1"],
    cond: Cond,
    keys: Key[Array, "B"],
) -> Float[Array, "B ..."]:
    """Runs a sampler along a whole grid, as one `lax.scan`.

    Args:
      sampler: the method.
      denoiser: (x_t, t, cond) -> Prediction, guided or edited as wanted.
      x_t: the state at grid[0], usually `initial_noise`.
      grid: decreasing times [N + 1].
      cond: the condition, a tree of arrays [B, ...].
      keys: one key per example.

    Returns:
      x at the grid's last time, [B, ...].
    """
    return run(sampler, denoiser, (x_t, sampler.init(x_t)), grid, cond, keys, 0, len(grid) - 1)[0]


def run(
    sampler: Sampler,
    denoiser: Denoiser,
    carry: tuple[Float[Array, "B ..."], Any],
    grid: Float[Array, "N+1"],
    cond: Cond,
    keys: Key[Array, "B"],
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
) -> tuple[Float[Array, "B ..."], Any]:
    """Runs the steps first, ..., last - 1 of a grid, from a carry (x, the sampler's state) to the next.

    With Python integers this is a scan; with traced ones a loop whose bounds are data, so that one compiled program runs
    any part of the grid (to show progress, or to be interrupted). Other arguments: as `sample`.
    """
    grid = jnp.asarray(grid, carry[0].dtype)

    def body(i: Array, carry: tuple) -> tuple:
        def denoise(x: Float[Array, "B ..."], t: Float[Array, ""]) -> Prediction:
            return denoiser(x, t, cond)

        x, state = carry
        return sampler.step(denoise, x, grid[i], grid[i + 1], fold_in(keys, i), state)

    return jax.lax.fori_loop(first, last, body, carry)


def no_state(x_t: Float[Array, "B ..."]) -> tuple:
    """`init` of a method that remembers nothing."""
    return ()


def initial_noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """x at t = 1, where sigma = 1: unit normal, from a stream apart from the one that the steps use."""
    return normal_per_example(fold_in(keys, INITIAL_NOISE), shape)


INITIAL_NOISE = 2**31 - 1  # folded into a key for x_T; step numbers are far below
