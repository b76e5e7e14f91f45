"""Grids: the decreasing times that a sampler visits, from noise (first) to data (last, always 0)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.schedules import Schedule, time_at

FAST27 = (10, 10, 3, 2, 2)  # section counts of GLIDE's "fast27", whose last step is 997 of 1000


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


def karras(
    schedule: Schedule, num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, "N+1"]:
    """Times whose edm_sigma = sigma / alpha are evenly spaced in the power 1 / rho, then the data:

        e_i = (sigma_max^(1 / rho) + i / (N - 1) (sigma_min^(1 / rho) - sigma_max^(1 / rho)))^rho,  i = 0..N - 1,  e_N = 0.

    Args:
      schedule: the forward process; where it never is as noisy as sigma_max, the grid starts at its time 1.
      num_steps: N, at least 1.
      sigma_min, sigma_max: edm_sigma of the last time before the data and of the first; positive, sigma_min below sigma_max.
      rho: 7 in EDM; 1 is even spacing in edm_sigma.

    Raises:
      ValueError: a value is out of range, or the schedule's range is too small for N different times.

    Source: Karras et al. 2022, eq. 5.
    """
    _check(num_steps, 1.0)
    _check_sigmas(sigma_min, sigma_max)
    if rho <= 0:
        raise ValueError(f"grids.karras: rho must be positive; got {rho}.")
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = np.linspace(*ends, num_steps) ** rho
    return _at_logsnr(schedule, -2 * np.log(sigmas))


def logsnr_uniform(
    schedule: Schedule, num_steps: int, logsnr_min: float = -8.76, logsnr_max: float = 12.43
) -> Float[Array, "N+1"]:
    """Times evenly spaced in the log signal-to-noise ratio, then the data: even steps for DPM-Solver and UniPC.

    Args:
      schedule: the forward process; where it never is as noisy as logsnr_min, the grid starts at its time 1.
      num_steps: N, at least 1.
      logsnr_min, logsnr_max: of the first time and of the last before the data (the defaults are EDM's 80 and 0.002).

    Raises:
      ValueError: a value is out of range, or the schedule's range is too small for N different times.

    Source: Lu et al. 2022 (DPM-Solver), section 4; k-diffusion's get_sigmas_exponential.
    """
    _check(num_steps, 1.0)
    if not logsnr_min < logsnr_max:
        raise ValueError(f"grids.logsnr_uniform: logsnr_min {logsnr_min} must be below logsnr_max {logsnr_max}.")
    return _at_logsnr(schedule, np.linspace(logsnr_min, logsnr_max, num_steps))


def respaced(num_table_steps: int, spacing: str | Sequence[int]) -> Float[Array, "N+1"]:
    """The times of some steps of a DDPM table, (step + 1) / T, then the data: the process that improved DDPM calls respaced.

    Args:
      num_table_steps: T.
      spacing: see `space_steps`.

    Raises:
      ValueError: the spacing does not fit.
    """
    steps = np.array(space_steps(num_table_steps, spacing))[::-1]
    return jnp.asarray(np.append((steps + 1) / num_table_steps, 0.0), jnp.result_type(float))


def space_steps(num_table_steps: int, spacing: str | Sequence[int]) -> tuple[int, ...]:
    """The steps of a table that a respaced process keeps, ascending.

    Args:
      num_table_steps: T.
      spacing: how many steps of each of several equal sections of the table, as numbers or as a string: "250", "10,15,20",
        "90,60,60,20,20" (LSUN); "ddim25" for every k-th step from 0, with the first k that keeps exactly 25; or "fast27".

    Returns:
      Steps in [0, T). Within a section the first and last steps are kept, the others at even distances, rounded to even.

    Raises:
      ValueError: the string is none of these, or asks for more steps than there are.

    Source: Nichol and Dhariwal 2021, section 4 (space_timesteps); "fast27" is GLIDE's.

    >>> space_steps(1000, "ddim4"), space_steps(10, "3,2")
    ((0, 250, 500, 750), (0, 2, 4, 5, 9))
    """
    total = num_table_steps
    if total < 1:
        raise ValueError(f"space_steps: num_table_steps must be at least 1; got {total}.")
    if isinstance(spacing, str):
        if spacing == "fast27":
            if total != 1000:
                raise ValueError(
                    f"space_steps: fast27 is made for 1000 steps; the table has {total}. Use '27' instead."
                )
            return tuple(sorted({997 if step == 999 else step for step in space_steps(1000, FAST27)}))
        if spacing.startswith("ddim"):
            count, *more = _counts(spacing[4:], spacing)
            if more:
                raise ValueError(f"space_steps: {spacing!r} is no spacing; ddim takes one number, as in 'ddim25'.")
            return _every_kth(total, count, spacing)
        spacing = _counts(spacing, spacing)
    counts = tuple(int(count) for count in spacing)
    if not counts or min(counts) < 1:
        raise ValueError(f"space_steps: every section keeps at least one step; got {counts}.")
    steps: list[int] = []
    first = 0
    for i, count in enumerate(counts):
        size = total // len(counts) + (i < total % len(counts))
        if count > size:
            raise ValueError(
                f"space_steps: a section of {size} steps of the table of {total} cannot keep {count}. Ask for at most {size}."
            )
        stride = 1 if count == 1 else (size - 1) / (count - 1)
        place = 0.0
        for _ in range(count):  # added up, not multiplied: the original's rounding decides some steps
            steps.append(first + round(place))
            place += stride
        first += size
    return tuple(steps)


def resampled(grid: Float[Array, "N+1"], jump_steps: int = 10, num_resamples: int = 10) -> Float[Array, "M+1"]:
    """RePaint's times: of every `jump_steps` steps down, each is gone `num_resamples` times, with a rise back to its start between.

    Args:
      grid: decreasing times [N + 1].
      jump_steps: j, at least 1.
      num_resamples: r, at least 1; 1 gives the grid back.

    Returns:
      Times that end as the grid does; in all N r steps down and (r - 1) rises for each stretch of j steps. A rise is one step.

    Raises:
      ValueError: a number is below 1.

    Source: Lugmayr et al. 2022, appendix B. A rise there is j small steps, which add up to this one; its code goes the first
    stretch once and turns one step above the data, where this grid turns at the data itself.
    """
    if jump_steps < 1 or num_resamples < 1:
        raise ValueError(
            f"grids.resampled: jump_steps and num_resamples must be at least 1; got {jump_steps} and {num_resamples}."
        )
    times, num_steps = np.asarray(grid), len(grid) - 1
    order = [0]
    for first in range(0, num_steps, jump_steps):
        last = min(first + jump_steps, num_steps)
        down = list(range(first + 1, last + 1))
        order += down + ([first] + down) * (num_resamples - 1)
    return jnp.asarray(times[order])


def _at_logsnr(schedule: Schedule, logsnr: np.ndarray) -> Float[Array, "N+1"]:
    times = time_at(schedule, jnp.asarray(logsnr, jnp.result_type(float)))
    if (np.diff(np.asarray(times)) >= 0).any() or times[-1] <= 0:
        raise ValueError(
            "the schedule reaches only a part of that range of noise, so that times would repeat. Use fewer steps, a smaller "
            "sigma_max (a larger logsnr_min), or a larger sigma_min (a smaller logsnr_max)."
        )
    return jnp.append(times, 0.0)


def _every_kth(total: int, count: int, spacing: str) -> tuple[int, ...]:
    for stride in range(1, total + 1):
        if len(range(0, total, stride)) == count:
            return tuple(range(0, total, stride))
    near = sorted({len(range(0, total, stride)) for stride in range(1, total + 1)}, key=lambda n: abs(n - count))[:2]
    raise ValueError(
        f"space_steps: no whole stride keeps exactly {count} of {total} steps ({spacing!r}). The nearest: ddim{near[0]}, "
        f"ddim{near[1]}."
        if len(near) > 1
        else f"space_steps: a table of one step has no {spacing!r}; use ddim1."
    )


def _counts(text: str, spacing: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"space_steps: {spacing!r} is no spacing; use numbers ('250', '10,15,20'), 'ddim25' or 'fast27'."
        ) from error
    return counts


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"grids.karras: needs 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}.")


def _check(num_steps: int, start: float) -> None:
    if num_steps < 1:
        raise ValueError(f"A grid needs num_steps of at least 1; got {num_steps}.")
    if not 0 < start <= 1:
        raise ValueError(f"A grid starts at a time in (0, 1]; got start={start}.")
