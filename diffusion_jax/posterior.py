"""One step of the reverse process as a Gaussian: the true q(x_s | x_t, x0) and the model's p(x_s | x_t), for s < t.

Both hold for any schedule and any pair of times. On a table of betas, t = (i + 1) / T and s = i / T give DDPM's posterior of
step i; two times of a respaced grid give the respaced process, whose table never has to be computed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.predictions import MIN_SCALE, Parameterization, Prediction, from_x0
from diffusion_jax.schedules import Schedule, level_like, time_like

VARIANCES = ("small", "large", "learned", "learned_range")


class Gaussian(NamedTuple):
    """A diagonal Gaussian. Where the step lands on the data the variance may be 0; log_variance is held finite there."""

    mean: Float[Array, "B ..."]
    variance: Float[Array, "B ..."]
    log_variance: Float[Array, "B ..."]


class Coefficients(NamedTuple):
    """q(x_s | x_t, x0) has mean c.x0 x0 + c.x_t x_t and the given variance; added is the variance of q(x_t | x_s)."""

    x0: Float[Array, "..."]
    x_t: Float[Array, "..."]
    variance: Float[Array, "..."]
    added: Float[Array, "..."]


def coefficients(
    schedule: Schedule, t: Float[Array, "*B"], s: Float[Array, "*B"], x: Float[Array, "B ..."]
) -> Coefficients:
    """The numbers of a step from t to s, shaped to multiply x [B, ...].

    With alpha_ts = alpha_t / alpha_s and added = sigma_t^2 - alpha_ts^2 sigma_s^2 (DDPM's beta), the mean of q(x_s | x_t, x0) is
    (alpha_s added x0 + alpha_ts sigma_s^2 x_t) / sigma_t^2 and its variance added sigma_s^2 / sigma_t^2.

    Source: Ho et al. 2020, eq. 7; for two arbitrary times, Kingma et al. 2021, appendix A.
    """
    level_t, level_s = level_like(schedule, t, x), level_like(schedule, s, x)
    alpha_ts = level_t.alpha / level_s.alpha
    added = jnp.maximum(level_t.sigma**2 - alpha_ts**2 * level_s.sigma**2, 0)
    shrink = level_s.sigma**2 / level_t.sigma**2
    return Coefficients(level_s.alpha * added / level_t.sigma**2, alpha_ts * shrink, added * shrink, added)


def posterior(
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    x_t: Float[Array, "B ..."],
    t: Float[Array, "*B"],
    s: Float[Array, "*B"],
    last_log_variance: Float[Array, "*B"] | None = None,
) -> Gaussian:
    """q(x_s | x_t, x0), the forward process looked at backwards.

    Args:
      schedule: the forward process.
      x0, x_t: the data and its noisy form, [B, ...].
      t, s: times, s < t; scalars or [B].
      last_log_variance: the log variance where s = 0 and the variance is 0, a scalar or [B]. DDPM's tables use that of the
        step before, which is the default: from 2 t to t. A likelihood on a respaced grid gives its own.
    """
    c = coefficients(schedule, t, s, x_t)
    shape = jnp.broadcast_shapes(x0.shape, x_t.shape)
    log_variance = jnp.broadcast_to(_log_variance(schedule, c, t, s, x_t, last_log_variance), shape)
    return Gaussian(c.x0 * x0 + c.x_t * x_t, jnp.broadcast_to(c.variance, shape), log_variance)


def model_step(
    schedule: Schedule,
    prediction: Prediction,
    x_t: Float[Array, "B ..."],
    t: Float[Array, "*B"],
    s: Float[Array, "*B"],
    variance: str = "small",
    last_log_variance: Float[Array, "*B"] | None = None,
) -> Gaussian:
    """The model's p(x_s | x_t): the posterior's mean at the predicted x0, and one of four variances.

        small           the posterior's, added sigma_s^2 / sigma_t^2           (right for data that are one point)
        large           the forward step's, added                              (right for data that are unit normal)
        learned         exp(raw_variance)
        learned_range   exp(f log large + (1 - f) log small),  f = (raw_variance + 1) / 2

    The mean is of the prediction's x0: clip it first (`guidance.clip_x0`) and the mean is recomputed from the clipped one.

    Args:
      schedule: the forward process.
      prediction: a Denoiser's, with raw_variance for the two learned ones.
      x_t: [B, ...].
      t, s: times, s < t; scalars or [B].
      variance: one of VARIANCES.
      last_log_variance: as in `posterior`; "large" uses it at s = 0 too, as DDPM's code does.

    Raises:
      ValueError: the variance's name is unknown, or it is learned and the prediction has none.

    Source: Ho et al. 2020, section 3.2; Nichol and Dhariwal 2021, eq. 15.
    """
    check_variance(variance)
    small = posterior(schedule, prediction.x0, x_t, t, s, last_log_variance)
    if variance == "small":
        return small
    if variance != "large" and prediction.raw_variance is None:
        raise ValueError(
            f"variance is {variance!r} but the denoiser predicts none. Use 'small' or 'large', or a network trained with "
            "learned variance (make_denoiser's learned_variance)."
        )
    if variance == "learned":
        log_variance = prediction.raw_variance
    else:
        added = jnp.log(jnp.maximum(coefficients(schedule, t, s, x_t).added, MIN_SCALE**4))
        if variance == "large":
            log_variance = jnp.where(time_like(s, x_t) > 0, added, small.log_variance)
        else:
            log_variance = small.log_variance + (prediction.raw_variance + 1) / 2 * (added - small.log_variance)
    return Gaussian(small.mean, jnp.exp(log_variance), log_variance)


def check_variance(variance: str) -> None:
    """Raises ValueError for a name that is no reverse variance."""
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {VARIANCES}; got {variance!r}.")


def previous_mean(num_steps: int) -> Parameterization:
    """The mean of x_{t-1} as a network's output: x0's posterior mean for the step from t to t - 1 / T.

    It belongs to a table of T steps. A respaced process asks for another mean than the network was trained to give: use x0,
    eps or v for that. The original does not recompute the mean from a clipped x0 here; we do, as for all others.

    Args:
      num_steps: T.

    Source: Ho et al. 2020's code ("xprev"); guided-diffusion's PREVIOUS_X.
    """

    def step(t: Array, x_t: Array, schedule: Schedule) -> Coefficients:
        t = jnp.asarray(t, x_t.dtype)
        # Rounded to the step's number: at the first step s must be the data exactly, not 1e-8.
        return coefficients(schedule, t, jnp.round(t * num_steps - 1) / num_steps, x_t)

    def from_output(output: Array, x_t: Array, t: Array, schedule: Schedule) -> Prediction:
        c = step(t, x_t, schedule)
        return from_x0((output - c.x_t * x_t) / jnp.maximum(c.x0, MIN_SCALE), x_t, t, schedule)

    def to_output(prediction: Prediction, x_t: Array, t: Array, schedule: Schedule) -> Array:
        c = step(t, x_t, schedule)
        return c.x0 * prediction.x0 + c.x_t * x_t

    return Parameterization(from_output, to_output)


def _log_variance(
    schedule: Schedule,
    c: Coefficients,
    t: Float[Array, "*B"],
    s: Float[Array, "*B"],
    x: Float[Array, "B ..."],
    last_log_variance: Float[Array, "*B"] | None,
) -> Float[Array, "..."]:
    if last_log_variance is None:
        t = jnp.asarray(t, x.dtype)
        before = coefficients(schedule, jnp.minimum(2 * t, 1), t, x)
        # With a single step there is none before it.
        last = jnp.where(time_like(t, x) < 1, before.variance, c.added)
        last = jnp.log(jnp.maximum(last, MIN_SCALE**4))
    else:
        last = time_like(last_log_variance, x)
    landing = time_like(s, x) <= 0
    return jnp.where(landing, last, jnp.log(jnp.where(landing, 1, jnp.maximum(c.variance, MIN_SCALE**4))))
