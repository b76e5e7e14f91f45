"""What a network can be trained to say about x_t = alpha x0 + sigma eps, and how each saying gives the others.

Everything downstream (guidance, samplers, losses) speaks `Prediction(x0, eps)`. Each parameterization has one function
in, `from_NAME(output, x_t, t, schedule)`, and one out, `to_NAME(prediction, x_t, t, schedule)`; `PARAMETERIZATIONS`
lists the pairs. Times are a scalar or [B]; arrays are [B, ...].

Some conversions divide by alpha (0 at pure noise) or sigma (0 at the data), where the quantity asked for is not
determined by the one given; some schedules have an infinite slope at an end. There the divisor is held at
`MIN_SCALE`, and the slope below its inverse, so that the result is finite. No sampler asks about the data, and none about
pure noise where its grid starts below 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.schedules import Level, Schedule, level_like, rate, time_like

MIN_SCALE = 1e-5


class Prediction(NamedTuple):
    """An estimate of the clean data and of the unit noise in x_t; x_t = alpha_t x0 + sigma_t eps holds between them.

    raw_variance: what a network with learned variance says of it, as it says it; `posterior.model_step` reads it.
    mean_gradient: a scaled grad log p(y | x_t), by which an ancestral step shifts its mean (`guidance.classifier`).
    """

    x0: Float[Array, "B ..."]
    eps: Float[Array, "B ..."]
    raw_variance: Float[Array, "B ..."] | None = None
    mean_gradient: Float[Array, "B ..."] | None = None


def with_x0(
    prediction: Prediction,
    x0: Float[Array, "B ..."],
    x_t: Float[Array, "B ..."],
    t: Float[Array, "*B"],
    schedule: Schedule,
) -> Prediction:
    """The prediction with another x0 and the eps that follows from it; all else as it was."""
    return prediction._replace(x0=x0, eps=from_x0(x0, x_t, t, schedule).eps)


def with_eps(
    prediction: Prediction,
    eps: Float[Array, "B ..."],
    x_t: Float[Array, "B ..."],
    t: Float[Array, "*B"],
    schedule: Schedule,
) -> Prediction:
    """The prediction with another eps and the x0 that follows from it; all else as it was."""
    return prediction._replace(x0=from_eps(eps, x_t, t, schedule).x0, eps=eps)


class Parameterization(NamedTuple):
    """The two directions of one parameterization, each (array or Prediction, x_t, t, schedule) -> the other."""

    from_output: Callable[..., Prediction]
    to_output: Callable[..., Float[Array, "B ..."]]


def from_x0(
    x0: Float[Array, "B ..."], x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Prediction:
    """Prediction from the clean data: eps = (x_t - alpha x0) / sigma."""
    level = level_like(schedule, t, x_t)
    return Prediction(x0, (x_t - level.alpha * x0) / jnp.maximum(level.sigma, MIN_SCALE))


def from_eps(
    eps: Float[Array, "B ..."], x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Prediction:
    """Prediction from the unit noise: x0 = (x_t - sigma eps) / alpha."""
    level = level_like(schedule, t, x_t)
    return Prediction((x_t - level.sigma * eps) / jnp.maximum(level.alpha, MIN_SCALE), eps)


def from_v(
    v: Float[Array, "B ..."], x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Prediction:
    """Prediction from v = alpha eps - sigma x0, with n = alpha^2 + sigma^2 (1 where variance is preserved):

    x0 = (alpha x_t - sigma v) / n,  eps = (sigma x_t + alpha v) / n.

    Source: Salimans and Ho 2022, appendix D.
    """
    alpha, sigma = level_like(schedule, t, x_t)
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x_t - sigma * v) / norm, (sigma * x_t + alpha * v) / norm)


def from_velocity(
    velocity: Float[Array, "B ..."], x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Prediction:
    """Prediction from velocity = dx_t/dt = alpha' x0 + sigma' eps, with d = alpha sigma' - sigma alpha':

    x0 = (sigma' x_t - sigma velocity) / d,  eps = (alpha velocity - alpha' x_t) / d.

    On the linear path d = 1 and velocity = eps - x0. Source: Lipman et al. 2023.
    """
    alpha, sigma = level_like(schedule, t, x_t)
    alpha_rate, sigma_rate = _finite_rate(schedule, t, x_t)
    determinant = alpha * sigma_rate - sigma * alpha_rate
    x0 = (sigma_rate * x_t - sigma * velocity) / determinant
    return Prediction(x0, (alpha * velocity - alpha_rate * x_t) / determinant)


def from_score(
    score: Float[Array, "B ..."], x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Prediction:
    """Prediction from the score grad log p_t(x_t) = -eps / sigma (Song et al. 2021)."""
    return from_eps(-level_like(schedule, t, x_t).sigma * score, x_t, t, schedule)


def to_x0(
    prediction: Prediction, x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Float[Array, "B ..."]:
    """The clean data of a Prediction."""
    return prediction.x0


def to_eps(
    prediction: Prediction, x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Float[Array, "B ..."]:
    """The unit noise of a Prediction."""
    return prediction.eps


def to_v(
    prediction: Prediction, x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Float[Array, "B ..."]:
    """v = alpha eps - sigma x0."""
    alpha, sigma = level_like(schedule, t, x_t)
    return alpha * prediction.eps - sigma * prediction.x0


def to_velocity(
    prediction: Prediction, x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Float[Array, "B ..."]:
    """velocity = alpha' x0 + sigma' eps, the drift of the probability-flow ODE at x_t."""
    alpha_rate, sigma_rate = _finite_rate(schedule, t, x_t)
    return alpha_rate * prediction.x0 + sigma_rate * prediction.eps


def to_score(
    prediction: Prediction, x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule
) -> Float[Array, "B ..."]:
    """score = -eps / sigma."""
    return -prediction.eps / jnp.maximum(level_like(schedule, t, x_t).sigma, MIN_SCALE)


def edm(sigma_data: float = 0.5) -> Parameterization:
    """EDM's preconditioned output F. With z = x_t / alpha and s = sigma / alpha (EDM's sigma), for any schedule,

        x0 = sigma_data^2 / (s^2 + sigma_data^2) z + s sigma_data / sqrt(s^2 + sigma_data^2) F.

    Written without the division by alpha, n = sigma^2 + alpha^2 sigma_data^2:

        x0 = (alpha sigma_data^2 x_t + sigma sigma_data sqrt(n) F) / n,   eps = (sigma x_t - alpha sigma_data sqrt(n) F) / n.

    The network's input should have unit variance too (`denoiser.make_denoiser`'s input_scale, 1 / sqrt(n)). For
    sigma_data = 1 where variance is preserved, F is -v.

    Args:
      sigma_data: standard deviation of the data.

    Raises:
      ValueError: sigma_data is not positive.

    Source: Karras et al. 2022, eq. 7 and table 1.
    """
    if sigma_data <= 0:
        raise ValueError(f"predictions.edm: sigma_data must be positive; got {sigma_data}.")

    def terms(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], schedule: Schedule) -> tuple[Array, Array, Array]:
        alpha, sigma = level_like(schedule, t, x_t)
        return alpha * sigma_data, sigma, sigma**2 + (alpha * sigma_data) ** 2

    def from_output(output: Array, x_t: Array, t: Array, schedule: Schedule) -> Prediction:
        scaled_alpha, sigma, n = terms(x_t, t, schedule)
        x0 = sigma_data * (scaled_alpha * x_t + sigma * jnp.sqrt(n) * output) / n
        return Prediction(x0, (sigma * x_t - scaled_alpha * jnp.sqrt(n) * output) / n)

    def to_output(prediction: Prediction, x_t: Array, t: Array, schedule: Schedule) -> Array:
        scaled_alpha, sigma, n = terms(x_t, t, schedule)
        return (sigma / sigma_data * prediction.x0 - scaled_alpha * prediction.eps) / jnp.sqrt(n)

    return Parameterization(from_output, to_output)


def _finite_rate(schedule: Schedule, t: Float[Array, "*B"], x_t: Float[Array, "B ..."]) -> Level:
    # Schedules of betas have an infinite d sigma/dt at the data, the sigmoid one an infinite d alpha/dt at pure noise.
    alpha_rate, sigma_rate = rate(schedule, time_like(t, x_t))
    return Level(jnp.maximum(alpha_rate, -1 / MIN_SCALE), jnp.minimum(sigma_rate, 1 / MIN_SCALE))


PARAMETERIZATIONS = {
    "x0": Parameterization(from_x0, to_x0),
    "eps": Parameterization(from_eps, to_eps),
    "v": Parameterization(from_v, to_v),
    "velocity": Parameterization(from_velocity, to_velocity),
    "score": Parameterization(from_score, to_score),
}
