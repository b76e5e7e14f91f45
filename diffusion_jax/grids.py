"""Grids: the decreasing times that a sampler visits, from noise (first) to data (last, always 0)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def uniform(num_steps: int, start: float = 1.0) -> Float[Array, "N+1"]:
    """Times start (1 - i / N), i = 0..N.

    For DDPM's T steps, N = T visits every one of them, and an N that divides T every (T / N)-th.

    Args:
      num_steps: N, the number of sampler steps, at least 1.
      start: the first time, in (0, 1]; below 1 where a model must not be asked about pure noise.

    Raises:
      ValueError: a value is out of range.
    """
    _check(num_steps, start)
    return start * jnp.linspace(1.0, 0.0, num_steps + 1)


def quadratic(num_steps: int, start: float = 1.0) -> Float[Array, "N+1"]:
    """Times start (1 - i / N)^2, denser towards the data: for schedules whose sigma grows like sqrt(t), as linear betas do.

    Args and Raises: as `uniform`. Source: Song et al. 2021 (DDIM), appendix D.2.
    """
    return start * (uniform(num_steps, start) / start) ** 2


def shifted(num_steps: int, shift: float = 3.0, start: float = 1.0) -> Float[Array, "N+1"]:
    """Uniform times u bent towards the noise: t = shift u / (1 + (shift - 1) u), times start.

    Args:
      num_steps: N, at least 1.
      shift: positive; 1 is uniform, above 1 spends more steps at high noise.
      start: the first time, in (0, 1].

    Raises:
      ValueError: a value is out of range.

    Source: Esser et al. 2024 (Stable Diffusion 3), eq. 23.
    """
    _check(num_steps, start)
    if shift <= 0:
        raise ValueError(f"grids.shifted: shift must be positive; got {shift}.")
    u = jnp.linspace(1.0, 0.0, num_steps + 1)
    return start * shift * u / (1 + (shift - 1) * u)


def _check(num_steps: int, start: float) -> None:
    if num_steps < 1:
        raise ValueError(f"A grid needs num_steps of at least 1; got {num_steps}.")
    if not 0 < start <= 1:
        raise ValueError(f"A grid starts at a time in (0, 1]; got start={start}.")
