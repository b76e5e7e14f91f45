"""Weights of the training loss by noise level, each a function logsnr [B] -> [B] with its own numbers bound by `partial`.

All are written for the squared error of eps (`denoising_loss` with loss_space = eps). An error of x0 weighs snr times as much
there, since eps - eps_hat = -alpha / sigma (x0 - x0_hat); that is how the papers' weights on x0 are turned into these.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def min_snr(logsnr: Float[Array, "B"], gamma: float = 5.0) -> Float[Array, "B"]:
    """min(1, gamma / snr): the error of x0 never weighs more than gamma. Source: Hang et al. 2023, section 3.4."""
    return jnp.minimum(1, gamma * jnp.exp(-logsnr))


def p2(logsnr: Float[Array, "B"], k: float = 1.0, gamma: float = 1.0) -> Float[Array, "B"]:
    """1 / (k + snr)^gamma: less weight for imperceptible noise. Source: Choi et al. 2022, eq. 8."""
    return (k + jnp.exp(logsnr)) ** -gamma


def edm_weight(logsnr: Float[Array, "B"], sigma_data: float = 0.5) -> Float[Array, "B"]:
    """(s^2 + sigma_data^2) / sigma_data^2, with s = sigma / alpha: one for the error of EDM's output F.

    It is lambda(s) = (s^2 + sigma_data^2) / (s sigma_data)^2 on x0. `predictions.edm` as both the parameterization and the
    loss space gives the same loss without a division; it is infinite where no signal is left.

    Source: Karras et al. 2022, table 1.
    """
    return jnp.exp(-logsnr) / sigma_data**2 + 1


def sigmoid_weight(logsnr: Float[Array, "B"], bias: float = 0.0) -> Float[Array, "B"]:
    """S(bias - logsnr), with S the logistic function: noise below logsnr = bias counts, cleaner data less and less.

    The papers weigh d logsnr, not dt: draw t such that its logsnr is uniform to have theirs exactly.

    Source: Kingma and Gao 2023, section 4.4; Hoogeboom et al. 2024 (Simpler diffusion), section 3.1.
    """
    return jax.nn.sigmoid(bias - logsnr)
