"""Noise schedules: a time t in [0, 1] -> the scales of signal and noise.

A schedule is any elementwise function t -> Level(alpha, sigma) such that the forward process is

    x_t = alpha_t x0 + sigma_t eps,   eps ~ N(0, I),

with t = 0 the data (alpha = 1, sigma = 0) and t = 1 the noise. Hyper-parameters are bound by `functools.partial`:
`partial(linear, beta_max=10.0)` is a schedule too.
"""

import functools
import math
from collections.abc import Callable, Sequence
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

# log alpha^2 towards which a table falls in a last step that leaves no signal. Finite, so that the times within that step
# have a slope, and not lower, since it multiplies the rounding of t; at t = 1 alpha is exactly 0.
NO_SIGNAL = -50.0


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


def edm(t: Float[Array, "..."], sigma_max: float = 80.0) -> Level:
    """EDM's variance-exploding process: alpha = 1, sigma = sigma_max t.

    Args:
      t: times in [0, 1], any shape.
      sigma_max: noise at t = 1, in units of the data.

    Source: Karras et al. 2022, table 1 (sigma(t) = t, s(t) = 1).
    """
    return Level(jnp.ones_like(t), sigma_max * t)


def sigmoid(t: Float[Array, "..."], start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Level:
    """Sigmoid schedule, variance preserving: with g(t) = S(-(start + t (end - start)) / tau) and S the logistic function,

        alpha^2 = (g(t) - g(1)) / (g(0) - g(1)).

    Args:
      t: times in [0, 1], any shape.
      start, end: the stretch of the logistic function that is used; (0, 3) leaves more signal in the middle.
      tau: temperature.

    Returns:
      Level with alpha^2 + sigma^2 = 1; alpha is exactly 0 at t = 1, where its slope is -inf.

    Source: Chen 2023, "On the importance of noise scheduling", algorithm 1; Jabri et al. 2022.
    """

    t = jnp.asarray(t, jnp.result_type(t, float))
    span = (end - start) / tau

    def logistic_difference(middle: Array, gap: Array) -> Array:
        # S(-middle + gap / 2) - S(-middle - gap / 2), without the cancellation of two numbers near each other.
        return jnp.sinh(gap / 2) / (2 * jnp.cosh((middle - gap / 2) / 2) * jnp.cosh((middle + gap / 2) / 2))

    def stretch(low: Array, high: Array) -> Array:  # of the curve between two times
        return logistic_difference(start / tau + span * (low + high) / 2, span * (high - low))

    signal, noise = stretch(t, jnp.ones_like(t)), stretch(jnp.zeros_like(t), t)
    return Level(jnp.sqrt(signal / (signal + noise)), jnp.sqrt(noise / (signal + noise)))


def shifted(schedule: Schedule, shift: float, power: float = 2.0) -> Schedule:
    """The schedule with sigma / alpha multiplied by `shift` at every time, for images of another resolution.

    alpha' = alpha / n,  sigma' = shift sigma / n,  n = (alpha^p + (shift sigma)^p)^(1 / p).

    Averaging d x d pixels divides noise by d and leaves the picture: an image with d times the side needs shift = d to
    lose as much. On the linear path (power 1) this is the bent time of Stable Diffusion 3, t' = shift t / (1 + (shift - 1) t).

    Args:
      schedule: one with alpha^p + sigma^p = 1.
      shift: positive; above 1 is noisier.
      power: p, which the result keeps: 2 for variance preserving schedules, 1 for the linear path, inf for EDM's alpha = 1
        (there it is a larger sigma_max).

    Raises:
      ValueError: shift is not positive, or power is none of 1, 2 and inf.

    Source: Hoogeboom et al. 2023, "Simple diffusion", section 2.1; Esser et al. 2024, eq. 23.
    """
    if shift <= 0:
        raise ValueError(f"schedules.shifted: shift must be positive; got {shift}.")
    if power not in (1, 2, math.inf):
        raise ValueError(f"schedules.shifted: power must be 1, 2 or inf; got {power}.")

    def bent(t: Float[Array, "..."]) -> Level:
        alpha, sigma = schedule(t)
        sigma = shift * sigma
        norm = {1: alpha + sigma, 2: jnp.hypot(alpha, sigma), math.inf: alpha}[power]
        return Level(alpha / norm, sigma / norm)

    return bent


def linear_betas(
    num_steps: int, beta_first: float = 1e-4, beta_last: float = 0.02, reference_steps: int | None = 1000
) -> np.ndarray:
    """DDPM's linear betas, scaled so that any number of steps spans the same noise.

    beta_i = linspace(beta_first, beta_last, T) x reference_steps / T, in float64.

    Args:
      num_steps: T; with the defaults at least 21, since the last beta would reach 1 below.
      beta_first, beta_last: the ends of the table of reference_steps.
      reference_steps: None takes the ends as they are for any T (the annotated diffusion model, old DDPM code).

    Returns:
      betas [T], float64.

    Raises:
      ValueError: T is too small for the last beta to stay below 1.

    Source: Ho et al. 2020, section 4; the scaling is improved DDPM's.
    """
    scale = 1.0 if reference_steps is None else reference_steps / _positive(num_steps)
    if scale * beta_last >= 1:
        least = int((reference_steps or 1) * beta_last) + 1
        raise ValueError(
            f"linear_betas: num_steps is {num_steps}; the last beta reaches 1 below {least} steps. Use {least} or more."
        )
    return np.linspace(scale * beta_first, scale * beta_last, _positive(num_steps), dtype=np.float64)


def cosine_betas(num_steps: int, max_beta: float = 0.999, min_beta: float = 0.0) -> np.ndarray:
    """Improved DDPM's cosine betas (`squaredcos_cap_v2`), float64.

    alpha_bar(u) = cos^2((u + 0.008) / 1.008 pi / 2), beta_i = 1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), clipped.

    Args:
      num_steps: T, at least 1.
      max_beta: cap, which keeps the last step from destroying all signal (0.9999 in the annotated diffusion model).
      min_beta: floor (1e-4 in the annotated diffusion model).

    Returns:
      betas [T], float64.

    Raises:
      ValueError: num_steps is not positive.

    Source: Nichol and Dhariwal 2021, eq. 17.
    """
    u = np.arange(_positive(num_steps) + 1, dtype=np.float64) / num_steps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], min_beta, max_beta)


def quadratic_betas(num_steps: int, beta_first: float = 1e-4, beta_last: float = 0.02) -> np.ndarray:
    """betas [T] whose square roots are equally spaced: linspace(sqrt(beta_first), sqrt(beta_last), T)^2, float64.

    Source: Ho et al. 2020's code ("quad").
    """
    return np.linspace(beta_first**0.5, beta_last**0.5, _positive(num_steps), dtype=np.float64) ** 2


def sigmoid_betas(num_steps: int, beta_first: float = 1e-4, beta_last: float = 0.02) -> np.ndarray:
    """betas [T] that rise along a logistic curve: beta_first + (beta_last - beta_first) S(linspace(-6, 6, T)), float64.

    Not the sigmoid of alpha_bar: that is `sigmoid_alpha_bar_betas`. Source: Rogge and Rasul 2022, "The annotated diffusion
    model".
    """
    return beta_first + (beta_last - beta_first) / (1 + np.exp(-np.linspace(-6, 6, _positive(num_steps))))


def sigmoid_alpha_bar_betas(
    num_steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> np.ndarray:
    """The table of the continuous `sigmoid` schedule: beta_i = min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), max_beta).

    Args:
      num_steps: T, at least 1.
      start, end, tau: as in `sigmoid`.
      max_beta: cap.

    Returns:
      betas [T], float64.

    Source: Jabri et al. 2022; Chen 2023.
    """
    u = (start + np.arange(_positive(num_steps) + 1, dtype=np.float64) / num_steps * (end - start)) / tau
    alpha_bar = 1 / (1 + np.exp(u)) - 1 / (1 + np.exp(end / tau))
    return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, max_beta)


def constant_betas(num_steps: int, beta_last: float = 0.02) -> np.ndarray:
    """betas [T], all beta_last, float64. Source: Ho et al. 2020's code ("const")."""
    return np.full(_positive(num_steps), beta_last, np.float64)


def jsd_betas(num_steps: int) -> np.ndarray:
    """beta_i = 1 / (T - i): each step erases an equal share of the signal, the last one all that is left, float64.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1 (for binomial diffusion); Ho et al. 2020's code ("jsd").
    """
    return 1.0 / np.linspace(_positive(num_steps), 1, num_steps, dtype=np.float64)


def warmup_betas(num_steps: int, fraction: float, beta_first: float = 1e-4, beta_last: float = 0.02) -> np.ndarray:
    """betas [T] that rise linearly over the first `fraction` of the steps and stay at beta_last, float64.

    Source: Ho et al. 2020's code ("warmup10" and "warmup50" for fractions 0.1 and 0.5).
    """
    betas, rise = constant_betas(num_steps, beta_last), int(num_steps * fraction)
    betas[:rise] = np.linspace(beta_first, beta_last, rise, dtype=np.float64)
    return betas


def geometric_betas(num_steps: int, sigma_first: float = 1e-3, sigma_last: float = 20.0) -> np.ndarray:
    """betas [T] under which sigma / alpha grows from step to step by one factor, float64: for data with fine detail.

    Args:
      num_steps: T.
      sigma_first: sigma / alpha of the first step.
      sigma_last: of the last.

    Source: Song and Ermon 2019, section 4.3, brought to preserved variance.
    """
    ratio = np.geomspace(sigma_first, sigma_last, _positive(num_steps), dtype=np.float64)
    log_alpha_bar = np.concatenate([[0.0], -np.log1p(ratio**2)])
    return -np.expm1(np.diff(log_alpha_bar))


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas rescaled so that the last step leaves no signal: alpha_T = 0, alpha of the first step unchanged.

    With a_i = sqrt(alpha_bar_i): a_i' = (a_i - a_T) a_1 / (a_1 - a_T), and betas follow from the ratios of a'^2. A network
    for them must not predict eps, which tells nothing of x0 at the last step: take v.

    Args:
      betas: [T], T at least 2.

    Returns:
      betas [T], float64; the last is exactly 1.

    Raises:
      ValueError: there are fewer than two betas.

    Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", algorithm 1.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2:
        raise ValueError(f"zero_terminal_snr: needs a vector of at least two betas; got shape {betas.shape}.")
    root = np.sqrt(np.cumprod(1 - betas))
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def respaced_betas(betas: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The betas of the process that visits only some steps of a table: 1 - alpha_bar_k / alpha_bar_(k - 1) over those kept.

    Samplers here need none of this, since the posterior between two times depends on their levels alone: a grid of the times
    (step + 1) / T is the same process (`grids.respaced`). It is for comparing with systems that recompute the table.

    Args:
      betas: [T].
      steps: the steps kept, ascending, in [0, T).

    Returns:
      betas [len(steps)], float64.

    Raises:
      ValueError: steps are not ascending or leave the table.

    Source: Nichol and Dhariwal 2021, section 4.
    """
    steps = np.asarray(steps)
    if not len(steps) or (np.diff(steps) <= 0).any() or steps[0] < 0 or steps[-1] >= len(betas):
        raise ValueError(f"respaced_betas: steps must ascend within 0..{len(betas) - 1}; got {steps.tolist()}.")
    alpha_bar = np.cumprod(1 - np.asarray(betas, np.float64))[steps]
    return 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


# Every named table of betas, T -> betas [T]; the names are those of DDPM's, improved DDPM's and GLIDE's code.
BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "linear_unscaled": functools.partial(linear_betas, reference_steps=None),
    "linear": linear_betas,
    "cosine": cosine_betas,
    "squaredcos_cap_v2": cosine_betas,
    "quadratic": quadratic_betas,
    "sigmoid": sigmoid_betas,
    "sigmoid_alpha_bar": sigmoid_alpha_bar_betas,
    "const": constant_betas,
    "jsd": jsd_betas,
    "geometric": geometric_betas,
    "warmup10": functools.partial(warmup_betas, fraction=0.1),
    "warmup50": functools.partial(warmup_betas, fraction=0.5),
}


def from_betas(betas: np.ndarray) -> Schedule:
    """Schedule of a table of betas: step i of T is the time t = (i + 1) / T, and t = 0 is the data itself.

    At those times alpha^2 = prod_{j <= i} (1 - beta_j) exactly; between them log alpha^2 is linear, which is the
    continuous process whose rate is constant within each step. `discrete_step` inverts the numbering.

    Args:
      betas: [T], each in (0, 1); the last may be 1, which leaves no signal (alpha = 0 at t = 1).

    Returns:
      A variance-preserving schedule, defined on all of [0, 1].

    Raises:
      ValueError: betas is not one-dimensional or leaves (0, 1).

    Source: Ho et al. 2020, eq. 4.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
        raise ValueError(
            "from_betas: betas must be a non-empty vector with values inside (0, 1), the last at most 1; "
            f"got shape {betas.shape}."
        )
    times = np.linspace(0, 1, len(betas) + 1)
    with np.errstate(divide="ignore"):  # log 0 where the last beta is 1
        logs = np.maximum(np.log1p(-betas), NO_SIGNAL)
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(logs)])

    def schedule(t: Float[Array, "..."]) -> Level:
        t = jnp.asarray(t, jnp.result_type(t, float))
        between = jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(log_alpha_bar, t.dtype))
        return _variance_preserving(jnp.where(t >= 1, -jnp.inf, between) if betas[-1] == 1 else between)

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


def edm_sigma(level: Level) -> Float[Array, "..."]:
    """Noise relative to the signal, sigma / alpha: what EDM and k-diffusion call sigma; +inf where no signal is left."""
    return level.sigma / level.alpha


def time_at(schedule: Schedule, logsnr_wanted: Float[Array, "..."], low: float = 0.0, high: float = 1.0) -> Array:
    """The time in [low, high] at which a schedule has a log signal-to-noise ratio, by bisection.

    Args:
      schedule: one whose logsnr falls with time.
      logsnr_wanted: 2 log(alpha / sigma), any shape; of an edm_sigma it is -2 log(edm_sigma).
      low, high: where to look.

    Returns:
      times, of the shape of logsnr_wanted: the nearest end where the schedule never has that ratio.
    """
    wanted = jnp.asarray(logsnr_wanted, jnp.result_type(logsnr_wanted, float))
    # Times near the data are tiny where sigma grows steeply, so that halving goes on below 1 / 2^23.
    halvings = 2 * jnp.finfo(wanted.dtype).nmant

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = bounds
        middle = (below + above) / 2
        early = logsnr(schedule(middle)) > wanted
        return jnp.where(early, middle, below), jnp.where(early, above, middle)

    bounds = jnp.full_like(wanted, low), jnp.full_like(wanted, high)
    below, above = jax.lax.fori_loop(0, halvings, halve, bounds)
    return jnp.where(logsnr(schedule(above)) >= wanted, above, below)


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
