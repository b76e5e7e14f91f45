"""Problems whose answers are known in closed form. From the package they take a schedule's two scales and nothing else.

Data are Gaussians N(mean, variance) with independent dimensions, or mixtures of isotropic Gaussians. For both, the best
denoiser (the posterior mean of x0 given x_t) is exact; for a Gaussian the probability-flow ODE is solved exactly too.
"""

import functools

import jax
import jax.numpy as jnp

from diffusion_jax import schedules
from diffusion_jax.predictions import Prediction

# The one table of schedules: what joins it here is held to every test that takes it.
SCHEDULES = {
    "linear_path": schedules.linear_path,
    "cosine": schedules.cosine,
    "linear": schedules.linear,
    "ddpm_linear": schedules.from_betas(schedules.linear_betas(1000)),
    "ddpm_cosine": schedules.from_betas(schedules.cosine_betas(1000)),
    "sigmoid": schedules.sigmoid,
    "edm": functools.partial(schedules.edm, sigma_max=20.0),
}


def scales(schedule, t, x):
    """alpha_t and sigma_t, shaped to multiply x; t is a scalar or [B]."""
    t = jnp.asarray(t, x.dtype)
    return schedule(t.reshape(t.shape + (1,) * (x.ndim - t.ndim)))


def gaussian_prediction(schedule, mean, variance, x_t, t):
    """Posterior means of x0 and eps where x0 ~ N(mean, variance); mean and variance broadcast against x_t.

    x_t ~ N(alpha mean, alpha^2 variance + sigma^2), jointly Gaussian with x0 (covariance alpha variance) and with eps
    (covariance sigma); hence the two regressions. Exact at every t, without a division by alpha or sigma.
    """
    alpha, sigma = scales(schedule, t, x_t)
    surprise = (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)
    return Prediction(mean + alpha * variance * surprise, sigma * surprise)


def gaussian_denoiser(schedule, mean, variance):
    """Denoiser of unconditional Gaussian data; mean and variance are [1, ...] or of x's shape."""
    return lambda x_t, t, cond: gaussian_prediction(schedule, mean, variance, x_t, t)


def conditional_gaussian_denoiser(schedule):
    """Denoiser whose condition is the Gaussian itself: cond = {"mean": [B, ...], "variance": [B, ...]}."""
    return lambda x_t, t, cond: gaussian_prediction(schedule, cond["mean"], cond["variance"], x_t, t)


def gaussian_flow(schedule, mean, variance, x_t, t, s):
    """Where the probability-flow ODE takes x_t by time s: the distance from the mean in standard deviations is kept."""
    alpha_t, sigma_t = scales(schedule, t, x_t)
    alpha_s, sigma_s = scales(schedule, s, x_t)
    stretch = jnp.sqrt((alpha_s**2 * variance + sigma_s**2) / (alpha_t**2 * variance + sigma_t**2))
    return alpha_s * mean + stretch * (x_t - alpha_t * mean)


def mixture_log_density(weights, means, variances, alpha, sigma, x):
    """log p_t(x) of one example x [...]: weights [K], means [K, ...], variances [K] (isotropic), scalar alpha, sigma."""
    return jax.nn.logsumexp(_log_joint(weights, means, variances, alpha, sigma, x))


def mixture_denoiser(schedule, weights, means, variances):
    """Denoiser of a mixture: the components' predictions, averaged with their posterior probabilities."""

    def one(x, alpha, sigma):
        share = jax.nn.softmax(_log_joint(weights, means, variances, alpha, sigma, x))

        def component(mean, variance):
            surprise = (x - alpha * mean) / (alpha**2 * variance + sigma**2)
            return mean + alpha * variance * surprise, sigma * surprise

        return jax.tree.map(lambda each: jnp.tensordot(share, each, 1), jax.vmap(component)(means, variances))

    def denoise(x_t, t, cond):
        alpha, sigma = (jnp.broadcast_to(scale, x_t.shape[:1]) for scale in schedule(jnp.asarray(t, x_t.dtype)))
        return Prediction(*jax.vmap(one)(x_t, alpha, sigma))

    return denoise


def _log_joint(weights, means, variances, alpha, sigma, x):
    total = alpha**2 * variances + sigma**2  # [K]
    distance = jax.vmap(lambda mean: jnp.sum((x - alpha * mean) ** 2))(means)
    return jnp.log(weights) - distance / (2 * total) - x.size / 2 * jnp.log(2 * jnp.pi * total)
