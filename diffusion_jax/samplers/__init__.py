"""Samplers: from noise to data along a grid of times. One method per file, one scan here that runs them all.

A sampler is a pair of pure functions:

    init(x_t) -> state                                                 what a multistep method remembers; () for most
    step(denoise, x_t, t, s, keys, state) -> (x_s, state)              one step from t down to s < t

`denoise(x_t, t) -> Prediction` is a Denoiser with its condition bound. `keys` [B] are fresh at each step, one per
example, so that example i never depends on its batch-mates. Every leaf of a state is [B, ...], since a batch may be spread over
devices; a time that is remembered stands there once per example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.predictions import Prediction
from diffusion_jax.schedules import Level

Denoise: TypeAlias = Callable[[Float[Array, "B ..."], Float[Array, ""]], Prediction]


class Sampler(NamedTuple):
    """A sampling method; see the module's docstring for the two signatures.

    uses_mean_gradient: whether it shifts its mean by a Prediction's mean_gradient; the others refuse one.
    """

    init: Callable[[Float[Array, "B ..."]], Any]
    step: Callable[..., tuple[Float[Array, "B ..."], Any]]
    uses_mean_gradient: bool = False


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
            prediction = denoiser(x, t, cond)
            if prediction.mean_gradient is not None and not sampler.uses_mean_gradient:
                raise ValueError(
                    "this sampler has no noise whose mean could be shifted. Use the ancestral sampler, or guide by the score "
                    "(guidance.classifier's shift='score')."
                )
            return prediction

        x, state = carry
        return sampler.step(denoise, x, grid[i], grid[i + 1], fold_in(keys, i), state)

    return jax.lax.fori_loop(first, last, body, carry)


def no_state(x_t: Float[Array, "B ..."]) -> tuple:
    """`init` of a method that remembers nothing."""
    return ()


def initial_noise(keys: Key[Array, "B"], shape: tuple[int, ...], level: Level | None = None) -> Float[Array, "B ..."]:
    """The first state: unit normal, from a stream apart from the one that the steps use.

    Args:
      keys: one per example.
      shape: of one example.
      level: the schedule's at the first time, to scale by sqrt(alpha^2 + sigma^2), the spread there of data of unit variance:
        1 where variance is preserved, sigma_max for EDM. None is 1.
    """
    noise = normal_per_example(fold_in(keys, INITIAL_NOISE), shape)
    return noise if level is None else jnp.hypot(level.alpha, level.sigma) * noise


INITIAL_NOISE = 2**31 - 1  # folded into a key for x_T; step numbers are far below
