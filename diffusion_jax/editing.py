"""Editing: what turns a sampler into inpainting, denoising of an observation, variations, inversion and interpolation.

Each is a function from Denoiser to Denoiser, from Sampler to Sampler, or a state to start from, so that it works with every
sampler and every guidance. Masks are True (or 1) where the picture is known and kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffusion_jax import samplers
from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.posterior import Gaussian, coefficients
from diffusion_jax.predictions import MIN_SCALE, Prediction, with_x0
from diffusion_jax.samplers import Sampler
from diffusion_jax.schedules import Schedule, diffuse, level_like

KNOWN_NOISE = 2**31 - 2  # folded into a step's keys for the noise of the known part, apart from the sampler's own


def replace_known(
    denoiser: Denoiser, schedule: Schedule, known: Float[Array, "B ..."], mask: Bool[Array, "B ..."]
) -> Denoiser:
    """Inpainting as GLIDE does it: the predicted x0 is overwritten where the picture is known, and eps recomputed.

    The last step returns x0, so that the known part comes out untouched to the last bit (from samplers that end on x0 exactly).

    Args:
      denoiser: any denoiser, guided already; clip its result.
      schedule: the forward process.
      known: the picture, of x0's shape.
      mask: True where it is kept; broadcasts against x0.

    Source: Nichol et al. 2021 (GLIDE), the inpainting notebook's denoised_fn.
    """

    def edited(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        prediction = denoiser(x_t, t, cond)
        return with_x0(prediction, jnp.where(mask, known, prediction.x0), x_t, t, schedule)

    return edited


def posterior_product(
    denoiser: Denoiser,
    schedule: Schedule,
    observed: Float[Array, "B ..."],
    deviation: Float[Array, "..."],
    data_variance: float | Float[Array, "..."] = 1.0,
) -> Denoiser:
    """The denoiser of p(x0) times a Gaussian observation N(observed; x0, deviation^2): denoising, or soft inpainting.

    Given x_t, x0 has mean x0_hat and about the variance v = V sigma^2 / (alpha^2 V + sigma^2), V being the data's. The product of
    the two Gaussians has the mean

        x0 <- x0_hat + v / (v + deviation^2) (observed - x0_hat).

    Exact for Gaussian data of variance V, so that every sampler then draws from the true posterior.

    Args:
      denoiser: any denoiser, guided already.
      schedule: the forward process.
      observed: of x0's shape.
      deviation: of the observation's noise, broadcast against x0; 0 keeps a pixel (`replace_known`), inf leaves it free.
      data_variance: V; 1 for data of unit spread.

    Source: Sohl-Dickstein et al. 2015, section 2.5 (multiplying distributions), with the observation on x0 rather than on every
    x_t; Song et al. 2023 (pseudoinverse guidance) for the variance.
    """

    def edited(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        alpha, sigma = level_like(schedule, t, x_t)
        variance = data_variance * sigma**2 / (alpha**2 * data_variance + sigma**2)
        prediction = denoiser(x_t, t, cond)
        weight = _weight(variance, deviation)
        return with_x0(prediction, prediction.x0 + weight * (observed - prediction.x0), x_t, t, schedule)

    return edited


def step_product(observed: Float[Array, "B ..."], deviation: Float[Array, "..."]) -> Callable[[Gaussian], Gaussian]:
    """A step of the reverse process times N(observed, deviation^2), for `ancestral(..., product=...)`: the 2015 paper's own form.

    1 / variance' = 1 / variance + 1 / deviation^2,   mean' = variance' (mean / variance + observed / deviation^2).

    The same factor multiplies every step, and the pixels are not noised: with deviation 0 where a picture is known and inf
    elsewhere it is the paper's inpainting; with one deviation everywhere its denoising, which starts from `observed` itself.

    Args:
      observed: of x's shape.
      deviation: broadcast against x; 0 fixes a pixel, inf leaves it free.

    Source: Sohl-Dickstein et al. 2015, section 2.5 and appendix C.
    """

    def product(step: Gaussian) -> Gaussian:
        weight = _weight(step.variance, deviation)
        variance = (1 - weight) * step.variance
        log_variance = jnp.log(jnp.maximum(variance, MIN_SCALE**4))
        return Gaussian(step.mean + weight * (observed - step.mean), variance, log_variance)

    return product


def repaint(sampler: Sampler, schedule: Schedule, known: Float[Array, "B ..."], mask: Bool[Array, "B ..."]) -> Sampler:
    """Inpainting by RePaint: after each step the known part is replaced by the picture at that step's noise.

    Where the grid rises (`grids.resampled`) the step adds the forward process's noise instead, so that the free part is drawn
    again and again beside the known one and the two come to agree; a multistep method forgets what it remembered.

    Args:
      sampler: any.
      schedule: the forward process.
      known: the picture, of x0's shape.
      mask: True where it is kept.

    Source: Lugmayr et al. 2022, "RePaint", algorithm 1.
    """

    known = jnp.asarray(known)

    def step(denoise, x_t, t, s, keys, state):
        fresh = normal_per_example(fold_in(keys, KNOWN_NOISE), x_t.shape[1:], x_t.dtype)

        def down() -> tuple:
            x_s, after = sampler.step(denoise, x_t, t, s, keys, state)
            return jnp.where(mask, diffuse(schedule, known, fresh, s), x_s), after

        def up() -> tuple:
            level_t, level_s = level_like(schedule, t, x_t), level_like(schedule, s, x_t)
            added = coefficients(schedule, s, t, x_t).added
            x_s = level_s.alpha / level_t.alpha * x_t + jnp.sqrt(added) * fresh
            return x_s, sampler.init(x_s)

        return jax.lax.cond(s < t, down, up)

    return sampler._replace(step=step)


def first_step(num_steps: int, strength: float | Float[Array, ""]) -> Array:
    """The step of a grid from which a picture is redrawn with a strength: round((1 - strength) N).

    Args:
      num_steps: N.
      strength: in [0, 1]; 1 redraws from pure noise, 0 leaves the picture.
    """
    return jnp.round((1 - jnp.asarray(strength)) * num_steps).astype(jnp.int32)


def sdedit_start(
    schedule: Schedule, picture: Float[Array, "B ..."], t: Float[Array, ""], keys: Key[Array, "B"]
) -> Float[Array, "B ..."]:
    """SDEdit: the picture at the noise of time t, from which any sampler goes on; its large forms stay, details are drawn anew.

    Args:
      schedule: the forward process.
      picture: [B, ...].
      t: the time to start from, `grid[first_step(...)]`.
      keys: one key per example; the noise is `samplers.initial_noise`'s.

    Source: Meng et al. 2022, "SDEdit".
    """
    return diffuse(schedule, picture, samplers.initial_noise(keys, picture.shape[1:]), t)


def invert(
    sampler: Sampler,
    denoiser: Denoiser,
    x0: Float[Array, "B ..."],
    grid: Float[Array, "N+1"],
    cond: Cond,
    keys: Key[Array, "B"],
) -> Float[Array, "B ..."]:
    """The noise that a deterministic sampler turns into x0: the sampler run upwards, from the grid's last positive time.

    Decoding it with the same grid gives x0 back up to the method's error; with another condition, a variation of x0. Give no
    guidance, or a small one: the reverse of a strongly guided flow is not stable.

    Args:
      sampler: deterministic and of one step: ddim, euler, heun, midpoint.
      denoiser: (x_t, t, cond) -> Prediction.
      x0: data, taken as the state at grid[-2] (DDPM's step 0).
      grid: the decreasing times of sampling, [N + 1], N at least 2.
      cond, keys: as in `samplers.sample`.

    Returns:
      The state at grid[0].

    Source: Song et al. 2021 (DDIM), section 4.3; Dhariwal and Nichol 2021, appendix F.
    """
    return samplers.sample(sampler, denoiser, x0, grid[:-1][::-1], cond, keys)


def between(denoiser: Denoiser, other: Cond, fraction: Float[Array, "..."] | float) -> Denoiser:
    """From one condition to another: the denoiser of the scores' mean, as of p(x | cond)^(1 - f) p(x | other)^f.

        x0 = (1 - f) x0(x_t, cond) + f x0(x_t, other), and eps, and what a learned variance adds, likewise.

    With the same noise, pictures go from the one to the other as f grows. Costs two evaluations.

    Args:
      denoiser: any denoiser, guided or not; wrap clipping after.
      other: cond's tree.
      fraction: f in [0, 1], broadcast against x; 0 is cond alone.

    Source: Liu et al. 2022, "Compositional visual generation with composable diffusion models", for sums of scores.
    """

    def mixed(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        here, there = denoiser(x_t, t, cond), denoiser(x_t, t, other)
        return jax.tree.map(lambda a, b: (1 - fraction) * a + fraction * b, here, there)

    return mixed


def slerp(a: Float[Array, "..."], b: Float[Array, "..."], fraction: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Spherical interpolation of two noises: sin((1 - f) w) / sin w a + sin(f w) / sin w b, w the angle between them.

    A straight line between two draws of noise passes through points of too small a norm; this one keeps it.

    Args:
      a, b: one noise each, of the same shape; the angle is taken over all of it.
      fraction: f in [0, 1]; broadcasts against a.

    Source: Song et al. 2021 (DDIM), appendix D.5.
    """
    cosine = jnp.sum(a * b) / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-12)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    sine = jnp.sin(angle)
    flat = sine < 1e-4  # nearly parallel: the straight line, without 0 / 0
    safe = jnp.where(flat, 1, sine)
    weight_a = jnp.where(flat, 1 - fraction, jnp.sin((1 - fraction) * angle) / safe)
    weight_b = jnp.where(flat, fraction, jnp.sin(fraction * angle) / safe)
    return weight_a * a + weight_b * b


def _weight(variance: Float[Array, "..."], deviation: Float[Array, "..."]) -> Float[Array, "..."]:
    """variance / (variance + deviation^2): 1 at deviation 0 whatever the variance, 0 at inf."""
    deviation = jnp.asarray(deviation, variance.dtype)
    return jnp.where(deviation == 0, 1, variance / (variance + jnp.where(deviation == 0, 1, deviation**2)))
