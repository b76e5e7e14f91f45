"""Noise schedules: a time t in [0, 1] -> the scales of signal and noise.

A schedule is any elementwise function t -> Level(alpha, sigma) such that the forward process is

    x_t = alpha_t x0 + sigma_t eps,   eps ~ N(0, I),

with t = 0 the data (alpha = 1, sigma = 0) and t = 1 the noise. Hyper-parameters are bound by `functools.partial`:
`partial(linear, beta_max=10.0)` is a schedule too.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Level(NamedTuple):
    """Scales of the forward process at a time: x_t = alpha x0 + sigma eps."""

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]


Schedule: TypeAlias = Callable[[Float[Array, "..."]], Level]


def cosine(t: Float[Array, "..."]) -> Level:
    """Continuous cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Args:
      t: times in [0, 1], any shape.

    Returns:
      Level with alpha^2 + sigma^2 = 1; alpha is exactly 0 at t = 1.

    Source: Nichol and Dhariwal 2021 (eq. 17) without its offset; Salimans and Ho 2022.
    """
    # cos(pi t / 2) at t = 1 is -4e-8 in float32; the sine of the complement is exactly zero there.
    return Level(jnp.sin(jnp.pi / 2 * (1 - t)), jnp.sin(jnp.pi / 2 * t))


def linear(t: Float[Array, "..."], beta_min: float = 0.1, beta_max: float = 20.0) -> Level:
    """Continuous limit of DDPM's linear betas (variance preserving).

    log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2, and alpha^2 + sigma^2 = 1.

    Args:
      t: times in [0, 1], any shape.
      beta_min: noise rate at t = 0, per unit time (DDPM: 1e-4 x 1000 steps).
      beta_max: noise rate at t = 1, per unit time (DDPM: 0.02 x 1000 steps).

    Returns:
      Level; d sigma/dt is +inf at t = 0, as the formula says.

    Source: Song et al. 2021, "Score-based generative modeling through SDEs", eq. 33.
    """
    log_alpha = -(t**2) * (beta_max - beta_min) / 4 - t * beta_min / 2
    return _variance_preserving(2 * log_alpha)


def linear_path(t: Float[Array, "..."]) -> Level:
    """Straight path from data to noise (flow matching): alpha = 1 - t, sigma = t.

    Args:
      t: times in [0, 1], any shape.

    Source: Lipman et al. 2023; Liu et al. 2023 (rectified flow).
    """
    return Level(1 - t, t)


def linear_betas(num_steps: int) -> np.ndarray:
    """DDPM's linear betas, scaled so that any number of steps spans the same noise.

    beta_i = linspace(1e-4, 0.02, T) x 1000 / T, in float64.

    Args:
      num_steps: T; at least 21, since the last beta would reach 1 below.

    Returns:
      betas [T], float64.

    Raises:
      ValueError: T is too small for the last beta to stay below 1.

    Source: Ho et al. 2020, section 4; the scaling is improved DDPM's.
    """
    scale = 1000 / _positive(num_steps)
    if scale * 0.02 >= 1:
        raise ValueError(
            f"linear_betas: num_steps is {num_steps}; the last beta reaches 1 below 21 steps. Use 21 or more."
        )
    return np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64)


def cosine_betas(num_steps: int, max_beta: float = 0.999) -> np.ndarray:
    """Improved DDPM's cosine betas (`squaredcos_cap_v2`), float64.

    alpha_bar(u) = cos^2((u + 0.008) / 1.008 pi / 2), beta_i = min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), max_beta).

    Args:
      num_steps: T, at least 1.
      max_beta: cap, which keeps the last step from destroying all signal.

    Returns:
      betas [T], float64.

    Raises:
      ValueError: num_steps is not positive.

    Source: Nichol and Dhariwal 2021, eq. 17.
    """
    u = np.arange(_positive(num_steps) + 1, dtype=np.float64) / num_steps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def from_betas(betas: np.ndarray) -> Schedule:
    """Schedule of a table of betas: step i of T is the time t = (i + 1) / T, and t = 0 is the data itself.

    At those times alpha^2 = prod_{j <= i} (1 - beta_j) exactly; between them log alpha^2 is linear, which is the
    continuous process whose rate is constant within each step. `discrete_step` inverts the numbering.

    Args:
      betas: [T], each in (0, 1).

    Returns:
      A variance-preserving schedule, defined on all of [0, 1].

    Raises:
      ValueError: betas is not one-dimensional or leaves (0, 1).

    Source: Ho et al. 2020, eq. 4.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"from_betas: betas must be a non-empty vector with values inside (0, 1); got shape {betas.shape}."
        )
    times = np.linspace(0, 1, len(betas) + 1)
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])

    def schedule(t: Float[Array, "..."]) -> Level:
        t = jnp.asarray(t, jnp.result_type(t, float))
        return _variance_preserving(jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(log_alpha_bar, t.dtype)))

    return schedule


def discrete_step(t: Float[Array, "..."], num_steps: int) -> Float[Array, "..."]:
    """Index of the DDPM step that a time belongs to, T t - 1: what a network trained on T steps is told.

    Args:
      t: times in [0, 1].
      num_steps: T.

    Returns:
      Step, as a float (fractional between two steps; -1 at t = 0, which no network is asked about).
    """
    return t * num_steps - 1


def logsnr(level: Level) -> Float[Array, "..."]:
    """Log signal-to-noise ratio, 2 log(alpha / sigma); +inf at the data, -inf at pure noise."""
    return 2 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def rate(schedule: Schedule, t: Float[Array, "..."]) -> Level:
    """Time derivative of a schedule: Level(d alpha/dt, d sigma/dt) at t, by forward differentiation."""
    t = jnp.asarray(t)
    return jax.jvp(schedule, (t,), (jnp.ones_like(t),))[1]


def diffuse(
    schedule: Schedule, x0: Float[Array, "B ..."], eps: Float[Array, "B ..."], t: Float[Array, "*B"]
) -> Float[Array, "B ..."]:
    """A draw from q(x_t | x0): x_t = alpha_t x0 + sigma_t eps.

    Args:
      schedule: t -> Level.
      x0: data [B, ...].
      eps: unit normal, of x0's shape.
      t: times [B], or one time for all.
    """
    level = level_like(schedule, t, x0)
    return level.alpha * x0 + level.sigma * eps


def level_like(schedule: Schedule, t: Float[Array, "*B"], x: Float[Array, "B ..."]) -> Level:
    """The schedule's Level at t, shaped to multiply x [B, ...] (t is a scalar or [B])."""
    return schedule(time_like(t, x))


def time_like(t: Float[Array, "*B"], x: Float[Array, "B ..."]) -> Float[Array, "..."]:
    """t, a scalar or [B], as [1 or B, 1, ..., 1] of x's rank and dtype."""
    t = jnp.asarray(t, x.dtype)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def _variance_preserving(log_alpha_bar: Float[Array, "..."]) -> Level:
    # expm1 keeps sigma's digits where alpha is close to 1; 0 - x, since -x would make it -0 at the data, with slope -inf.
    return Level(jnp.exp(log_alpha_bar / 2), jnp.sqrt(0 - jnp.expm1(log_alpha_bar)))


def _positive(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}.")
    return num_steps
