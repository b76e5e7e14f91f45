"""How probable a model finds data: the variational bound of a reverse process, and the exact likelihood of its ODE."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.posterior import Gaussian, model_step, posterior
from diffusion_jax.predictions import MIN_SCALE, Prediction, to_velocity
from diffusion_jax.schedules import Schedule, diffuse, edm_sigma, level_like, time_like

DECODERS = ("uint8", None)
MIN_PROBABILITY = 1e-12  # of one pixel's value


class Bound(NamedTuple):
    """A variational bound in bits per dimension; column i is of the step from grid[i] to grid[i + 1]."""

    total: Float[Array, "B"]
    prior: Float[Array, "B"]
    vb: Float[Array, "B N"]
    x0_mse: Float[Array, "B N"]
    eps_mse: Float[Array, "B N"]


def normal_kl(
    mean1: Float[Array, "..."], logvar1: Float[Array, "..."], mean2: Float[Array, "..."], logvar2: Float[Array, "..."]
) -> Float[Array, "..."]:
    """KL(N(mean1, exp logvar1) || N(mean2, exp logvar2)) of each dimension, in nats:

    (logvar2 - logvar1 - 1 + exp(logvar1 - logvar2) + (mean1 - mean2)^2 exp(-logvar2)) / 2.
    """
    surprise = jnp.exp(logvar1 - logvar2) + jnp.square(mean1 - mean2) * jnp.exp(-logvar2)
    return (logvar2 - logvar1 - 1 + surprise) / 2


def approx_standard_normal_cdf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, within 3e-4 of the true one. Source: Page 1977; Ho et al. 2020's code."""
    return (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def discretized_gaussian_log_likelihood(
    x: Float[Array, "..."], means: Float[Array, "..."], log_scales: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Log probability of uint8 values, scaled to [-1, 1], under a Gaussian integrated over each value's bin of width 2 / 255.

    Args:
      x: one of 256 values from -1 to 1; the first bin reaches to -inf, the last to +inf.
      means: of the Gaussian.
      log_scales: log of its standard deviation.

    Returns:
      Nats of each dimension, none below log 1e-12.

    Source: Ho et al. 2020, eq. 13.
    """
    inverse = jnp.exp(-log_scales)
    below_upper = approx_standard_normal_cdf(inverse * (x - means + 1 / 255))
    below_lower = approx_standard_normal_cdf(inverse * (x - means - 1 / 255))
    inner = jnp.where(x > 0.999, 1 - below_lower, below_upper - below_lower)
    return jnp.log(jnp.maximum(jnp.where(x < -0.999, below_upper, inner), MIN_PROBABILITY))


def step_bits(
    schedule: Schedule,
    prediction: Prediction,
    x0: Float[Array, "B ..."],
    x_t: Float[Array, "B ..."],
    t: Float[Array, "*B"],
    s: Float[Array, "*B"],
    variance: str = "small",
    last_log_variance: Float[Array, "*B"] | None = None,
    decoder: str | None = "uint8",
) -> Float[Array, "B"]:
    """One term of the bound, bits per dimension: KL(q(x_s | x_t, x0) || p(x_s | x_t)), and -log p(x0 | x_t) where s = 0.

    Args:
      schedule: the forward process.
      prediction: the denoiser's at x_t.
      x0, x_t: the data and their noisy form [B, ...].
      t, s: times, s < t; scalars or [B].
      variance, last_log_variance: of the model's step, as in `posterior.model_step`.
      decoder: "uint8" for x0 in [-1, 1] made from uint8, whose probability is that of a bin; None for continuous x0, whose
        density it is.

    Raises:
      ValueError: a name is unknown.

    Source: Ho et al. 2020, eq. 5.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {DECODERS}; got {decoder!r}.")
    truth = posterior(schedule, x0, x_t, t, s, last_log_variance)
    model = model_step(schedule, prediction, x_t, t, s, variance, last_log_variance)
    divergence = normal_kl(truth.mean, truth.log_variance, model.mean, model.log_variance)
    nats = jnp.where(time_like(s, x0) > 0, divergence, -_decode(decoder, x0, model))
    return _mean(nats) / math.log(2)


def prior_bits(
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    t: Float[Array, "*B"] | float = 1.0,
    prior_variance: Float[Array, ""] | None = None,
) -> Float[Array, "B"]:
    """KL(q(x_t | x0) || N(0, prior_variance)) of the first time t, bits per dimension.

    Args:
      schedule: the forward process.
      x0: data [B, ...].
      t: the time that sampling starts at.
      prior_variance: alpha_t^2 + sigma_t^2 by default, which is 1 where variance is preserved.
    """
    alpha, sigma = level_like(schedule, t, x0)
    log_prior = jnp.log(alpha**2 + sigma**2 if prior_variance is None else jnp.asarray(prior_variance, x0.dtype))
    return _mean(normal_kl(alpha * x0, 2 * jnp.log(sigma), jnp.zeros_like(x0), log_prior)) / math.log(2)


def variational_bound(
    denoiser: Denoiser,
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    grid: Float[Array, "N+1"],
    cond: Cond,
    keys: Key[Array, "B"],
    variance: str = "small",
    decoder: str | None = "uint8",
) -> Bound:
    """The bound -log2 p(x0) <= prior + sum of `step_bits` along a grid, estimated with one noise per step.

    Args:
      denoiser: clip its x0 first (`guidance.clip_x0`) to follow the original.
      schedule: the forward process.
      x0: data [B, ...].
      grid: decreasing times that end at 0; the uniform one of T steps is DDPM's whole process, others respace it.
      cond: the condition, arrays [B, ...].
      keys: one key per example, for its noise.
      variance: one of posterior.VARIANCES.
      decoder: as in `step_bits`. The fixed variances of the last step, from grid[-2] to 0, are then that of the step before
        (DDPM's choice); for continuous data (None) sigma^2 / alpha^2, that of x0 given x_t where noise is small.

    Returns:
      Bound; x0_mse and eps_mse are the denoiser's mean squared errors at each time.

    Source: Ho et al. 2020, section 3.4; Nichol and Dhariwal 2021.
    """
    grid = jnp.asarray(grid, x0.dtype)
    last_log_variance = None
    if decoder is None:
        last_log_variance = 2 * jnp.log(edm_sigma(schedule(grid[-2])))
    elif len(grid) > 2:
        before = posterior(schedule, x0, x0, grid[-3], grid[-2]).variance
        last_log_variance = jnp.log(jnp.maximum(jnp.ravel(before)[0], MIN_SCALE**4))

    def step(_: None, now: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array, Array]]:
        i, t, s = now
        eps = normal_per_example(fold_in(keys, i), x0.shape[1:], x0.dtype)
        x_t = diffuse(schedule, x0, eps, t)
        prediction = denoiser(x_t, t, cond)
        bits = step_bits(schedule, prediction, x0, x_t, t, s, variance, last_log_variance, decoder)
        return None, (bits, _mean(jnp.square(prediction.x0 - x0)), _mean(jnp.square(prediction.eps - eps)))

    _, terms = jax.lax.scan(step, None, (jnp.arange(len(grid) - 1), grid[:-1], grid[1:]))
    vb, x0_mse, eps_mse = (term.T for term in terms)
    prior = prior_bits(schedule, x0, grid[0])
    return Bound(prior + vb.sum(axis=1), prior, vb, x0_mse, eps_mse)


def exact_log_likelihood(
    denoiser: Denoiser,
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    grid: Float[Array, "N+1"],
    cond: Cond,
    keys: Key[Array, "B"] | None = None,
    num_probes: int = 1,
    prior_variance: Float[Array, ""] | None = None,
) -> Float[Array, "B"]:
    """log p(x) under the probability-flow ODE dx/dt = velocity(x, t), in nats of a whole example:

        log p(x_first) = log N(x_last; 0, prior_variance) + integral of div velocity dt  from first to last,

    by the classic Runge-Kutta method of order 4, x and the integral together. `first` is the grid's last positive time, whose
    slightly noisy density it is, at x0 as given; `last` is grid[0].

    Args:
      denoiser: (x_t, t, cond) -> Prediction, whose examples do not depend on one another.
      schedule: the forward process, with finite slopes inside the grid.
      x0: data [B, ...].
      grid: decreasing times, as samplers take them; its final 0 is not visited. For a table of betas take its own times.
      cond: the condition, arrays [B, ...].
      keys: one key per example for Hutchinson's estimate of the divergence; None takes the exact trace, at the price of one
        derivative per dimension.
      num_probes: Rademacher vectors of that estimate, each used along the whole path.
      prior_variance: of the noise at grid[0]; alpha^2 + sigma^2 by default, which is that of data with unit variance.

    Returns:
      log p [B]. Minus it over the dimensions and log 2 are bits per dimension of continuous data.

    Source: Song et al. 2021, "Score-based generative modeling through SDEs", section 4.3 and appendix D.2; Hutchinson 1990.
    """
    grid = jnp.asarray(grid, x0.dtype)
    probes = None if keys is None else _probes(keys, num_probes, x0)

    def slope(t: Array, x: Array) -> tuple[Array, Array]:
        def velocity(x: Array) -> Array:
            return to_velocity(denoiser(x, t, cond), x, t, schedule)

        value, push = jax.linearize(velocity, x)
        return value, _exact_divergence(push, x) if probes is None else _estimated_divergence(push, probes)

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (x, integral), (t, then) = carry, now
        h = then - t
        v1, d1 = slope(t, x)
        v2, d2 = slope(t + h / 2, x + h / 2 * v1)
        v3, d3 = slope(t + h / 2, x + h / 2 * v2)
        v4, d4 = slope(then, x + h * v3)
        return (x + h / 6 * (v1 + 2 * (v2 + v3) + v4), integral + h / 6 * (d1 + 2 * (d2 + d3) + d4)), None

    upwards = grid[-2::-1]
    (x, integral), _ = jax.lax.scan(step, (x0, jnp.zeros(len(x0), x0.dtype)), (upwards[:-1], upwards[1:]))
    alpha, sigma = schedule(grid[0])
    variance = alpha**2 + sigma**2 if prior_variance is None else jnp.asarray(prior_variance, x0.dtype)
    log_prior = -(jnp.square(x) / variance + jnp.log(2 * math.pi * variance)) / 2
    return _sum(log_prior) + integral


def _decode(decoder: str | None, x0: Array, model: Gaussian) -> Array:
    if decoder == "uint8":
        return discretized_gaussian_log_likelihood(x0, model.mean, model.log_variance / 2)
    square = jnp.square(x0 - model.mean) * jnp.exp(-model.log_variance)
    return -(square + model.log_variance + math.log(2 * math.pi)) / 2


def _probes(keys: Key[Array, "B"], num_probes: int, x: Float[Array, "B ..."]) -> Float[Array, "P B ..."]:
    draw = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))
    return jnp.stack([draw(fold_in(keys, i)) for i in range(num_probes)])


def _estimated_divergence(push, probes: Float[Array, "P B ..."]) -> Float[Array, "B"]:
    return jnp.mean(jax.vmap(lambda probe: _sum(probe * push(probe)))(probes), axis=0)


def _exact_divergence(push, x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    # One derivative along each dimension, for all examples at once: they do not depend on one another.
    def entry(i: Array) -> Array:
        direction = jax.nn.one_hot(i, x[0].size, dtype=x.dtype).reshape(1, *x.shape[1:])
        return _sum(direction * push(jnp.broadcast_to(direction, x.shape)))

    return jnp.sum(jax.lax.map(entry, jnp.arange(x[0].size)), axis=0)


def _mean(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def _sum(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
