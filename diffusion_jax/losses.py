"""Losses per example. Their weights are in `weights`, the distributions of the time they are drawn at in `times`."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import discrete
from diffusion_jax.denoiser import Cond
from diffusion_jax.keys import normal_per_example
from diffusion_jax.likelihood import step_bits
from diffusion_jax.posterior import check_variance
from diffusion_jax.predictions import Parameterization, Prediction
from diffusion_jax.schedules import Schedule, diffuse, discrete_step, edm_sigma, logsnr

DISTANCES: dict[str, Callable[[Array], Array]] = {
    "l2": jnp.square,
    "l1": jnp.abs,
    # torch's smooth_l1: the square's half within 1 of the target, straight beyond.
    "huber": lambda error: jnp.where(jnp.abs(error) < 1, jnp.square(error) / 2, jnp.abs(error) - 0.5),
}
DDPM_LOSSES = ("mse", "rescaled_mse", "kl", "rescaled_kl")
CATEGORICAL_LOSSES = ("kl", "rescaled_kl")


def denoising_loss(
    apply: Callable[[Float[Array, "B ..."], Float[Array, "B"], Cond], Float[Array, "B ..."]],
    parameterization: Parameterization,
    loss_space: Parameterization,
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    t: Float[Array, "B"],
    keys: Key[Array, "B"],
    cond: Cond,
    *,
    weight: Callable[[Float[Array, "B"]], Float[Array, "B"]] | None = None,
    distance: str = "l2",
) -> Float[Array, "B"]:
    """Mean squared error of a network, in the space asked for: what it outputs and what it is judged by are apart.

        x_t = alpha_t x0 + sigma_t eps,
        loss = weight(logsnr_t) mean distance(to_loss_space(network(x_t)) - to_loss_space(x0, eps))

    Same spaces: DDPM's L_simple (eps), v-prediction, flow matching (velocity), EDM (edm). An x0 output judged as velocity
    weighs the error of x0 by 1 / sigma^2 on the linear path (JiT).

    Args:
      apply: (x_t, t in [0, 1], cond) -> raw output; parameters, the network's time and input scale bound.
      parameterization: what the output means.
      loss_space: where the error is measured.
      schedule: the forward process.
      x0: clean data [B, ...].
      t: one time per example.
      keys: one key per example, for its noise.
      cond: the condition, arrays [B, ...].
      weight: logsnr -> factor of the loss; those of `weights` are made for the eps space.
      distance: "l2" (the square), "l1", or "huber" (torch's smooth_l1: half the square within 1, straight beyond).

    Returns:
      The loss of each example [B], per dimension, in squared units of the loss space with l2.

    Raises:
      ValueError: the distance's name is unknown.

    Source: Ho et al. 2020, eq. 14; Li and He 2025 (JiT) for spaces held apart.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {tuple(DISTANCES)}; got {distance!r}.")
    eps = normal_per_example(keys, x0.shape[1:], x0.dtype)
    x_t = diffuse(schedule, x0, eps, t)
    estimate = apply(x_t, t, cond)
    if loss_space is not parameterization:
        estimate = loss_space.to_output(parameterization.from_output(estimate, x_t, t, schedule), x_t, t, schedule)
    target = loss_space.to_output(Prediction(x0, eps), x_t, t, schedule)
    loss = _mean(DISTANCES[distance](estimate - target))
    return loss if weight is None else weight(logsnr(schedule(t))) * loss


class DdpmLoss(NamedTuple):
    """A loss and its parts, each [B]; a part that the loss does not have is None."""

    loss: Float[Array, "B"]
    mse: Float[Array, "B"] | None
    vb: Float[Array, "B"] | None


def ddpm_loss(
    apply: Callable[[Float[Array, "B ..."], Float[Array, "B"], Cond], Float[Array, "B ..."]],
    parameterization: Parameterization,
    schedule: Schedule,
    num_steps: int,
    x0: Float[Array, "B ..."],
    t: Float[Array, "B"],
    keys: Key[Array, "B"],
    cond: Cond,
    *,
    kind: str = "mse",
    variance: str = "small",
    decoder: str | None = "uint8",
) -> DdpmLoss:
    """The losses of DDPM, improved DDPM and ADM at the steps of a table of T:

        mse            |output - target|^2, plus vb where the variance is learned           (L_simple, L_hybrid)
        rescaled_mse   the same with T / 1000 vb
        kl             vb                                                                   (a term of L_vlb)
        rescaled_kl    T vb, whose mean over uniform steps is the whole bound

    with vb = `likelihood.step_bits` from t to t - 1 / T. In the first two it teaches the variance alone: the mean's part of
    the output has no gradient there. x0 is not clipped.

    Args:
      apply: as in `denoising_loss`; with a learned variance the output has twice the channels, the last axis.
      parameterization: what the output means, and the space of mse.
      schedule: the forward process, `schedules.from_betas` of T betas.
      num_steps: T.
      x0: clean data [B, ...]; with decoder "uint8" in [-1, 1] and made from uint8.
      t: one time per example, each (i + 1) / T (`times.discrete_uniform_time`).
      keys: one key per example, for its noise.
      cond: the condition, arrays [B, ...].
      kind: one of DDPM_LOSSES.
      variance: one of posterior.VARIANCES, the reverse step's.
      decoder: of the last step, as in `likelihood.variational_bound`, whose terms these are.

    Raises:
      ValueError: a name is unknown.

    Source: Nichol and Dhariwal 2021, section 3; Ho et al. 2020, eqs. 5 and 14.
    """
    if kind not in DDPM_LOSSES:
        raise ValueError(f"kind must be one of {DDPM_LOSSES}; got {kind!r}.")
    check_variance(variance)
    learned = variance.startswith("learned")
    eps = normal_per_example(keys, x0.shape[1:], x0.dtype)
    x_t = diffuse(schedule, x0, eps, t)
    output, raw_variance = apply(x_t, t, cond), None
    if learned:
        output, raw_variance = jnp.split(output, 2, axis=-1)

    def vb(output: Array) -> Float[Array, "B"]:
        prediction = parameterization.from_output(output, x_t, t, schedule)._replace(raw_variance=raw_variance)
        # Rounded to the step's number: at the first step s must be the data exactly, not 1e-8.
        s = jnp.round(discrete_step(t, num_steps)) / num_steps
        # That of the smallest noise for continuous data; else step_bits' own, of the step before.
        last = None if decoder else 2 * jnp.log(edm_sigma(schedule(jnp.asarray(1 / num_steps, x0.dtype))))
        return step_bits(schedule, prediction, x0, x_t, t, s, variance, last, decoder)

    if kind in ("kl", "rescaled_kl"):
        bits = vb(output) * (num_steps if kind == "rescaled_kl" else 1)
        return DdpmLoss(bits, None, bits)
    mse = _mean(jnp.square(output - parameterization.to_output(Prediction(x0, eps), x_t, t, schedule)))
    if not learned:
        return DdpmLoss(mse, mse, None)
    bits = vb(jax.lax.stop_gradient(output)) * (num_steps / 1000 if kind == "rescaled_mse" else 1)
    return DdpmLoss(mse + bits, mse, bits)


def categorical_loss(
    apply: Callable[[Int[Array, "B D"], Float[Array, "B"], Cond], Float[Array, "B D K"]],
    process: discrete.Transition,
    x0: Int[Array, "B D"],
    t: Float[Array, "B"],
    keys: Key[Array, "B"],
    cond: Cond,
    *,
    kind: str = "rescaled_kl",
) -> Float[Array, "B"]:
    """A term of the bound of categorical data, `discrete.step_nats`, in bits per dimension; times T for "rescaled_kl".

    Args:
      apply: (x_t, t, cond) -> logits of x_0.
      process: the forward process, of T steps.
      x0: categories.
      t: one time per example, each (i + 1) / T (`times.discrete_uniform_time`).
      keys: one key per example, for its noise.
      cond: the condition, arrays [B, ...].
      kind: "kl" or "rescaled_kl".

    Raises:
      ValueError: the kind is another.

    Source: Sohl-Dickstein et al. 2015, eq. 14; Austin et al. 2021.
    """
    if kind not in CATEGORICAL_LOSSES:
        raise ValueError(f"kind must be one of {CATEGORICAL_LOSSES}; got {kind!r}.")
    step = jnp.round(t * process.num_steps).astype(jnp.int32)
    x_t = discrete.q_sample(process, x0, step, keys)
    nats = discrete.step_nats(process, apply(x_t, t, cond), x0, x_t, step)
    return nats / (x0.shape[1] * math.log(2)) * (process.num_steps if kind == "rescaled_kl" else 1)


def _mean(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def classification_loss(
    apply: Callable[[Float[Array, "B ..."], Float[Array, "B"], Cond], Float[Array, "B K"]],
    schedule: Schedule,
    x0: Float[Array, "B ..."],
    t: Float[Array, "B"],
    keys: Key[Array, "B"],
    labels: Int[Array, "B"],
) -> Float[Array, "B"]:
    """Cross-entropy of a classifier of noisy images, -log p(label | x_t), in nats.

    Args:
      apply: (x_t, t in [0, 1], cond) -> logits; the condition is {}.
      schedule, x0, t, keys: as for `denoising_loss`.
      labels: of x0.

    Source: Dhariwal and Nichol 2021, section 4.1.
    """
    x_t = diffuse(schedule, x0, normal_per_example(keys, x0.shape[1:], x0.dtype), t)
    return -jnp.take_along_axis(jax.nn.log_softmax(apply(x_t, t, {})), labels[:, None], axis=-1)[:, 0]


class ContrastiveLoss(NamedTuple):
    """Losses, and 1 or 0 for whether each picture finds its caption among all, and each caption its picture; all [B]."""

    loss: Float[Array, "B"]
    image_to_text: Float[Array, "B"]
    text_to_image: Float[Array, "B"]


def contrastive_loss(
    image_features: Float[Array, "B D"],
    text_features: Float[Array, "B D"],
    all_images: Float[Array, "N D"],
    all_texts: Float[Array, "N D"],
    places: Int[Array, "B"],
    logit_scale: Float[Array, ""] | float,
) -> ContrastiveLoss:
    """CLIP's symmetric InfoNCE of B pairs among the N of the whole batch, in nats:

        loss_i = -1/2 [log softmax_j(s <z_i, w_j>) + log softmax_j(s <w_i, z_j>)] at j = i's place.

    Of several equal captions each is as good an answer: a tie counts as found.

    Args:
      image_features, text_features: z and w of this device's pairs, of unit length.
      all_images, all_texts: those of all pairs, through which gradients pass too.
      places: of this device's pairs among all.
      logit_scale: s.

    Source: Radford et al. 2021 (CLIP), figure 3.
    """

    def one_way(queries: Array, answers: Array) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        logits = logit_scale * queries @ answers.T  # [B, N]
        right = jnp.take_along_axis(logits, places[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - right, (right >= logits.max(-1)).astype(jnp.float32)

    of_texts, found_texts = one_way(image_features, all_texts)
    of_images, found_images = one_way(text_features, all_images)
    return ContrastiveLoss((of_texts + of_images) / 2, found_texts, found_images)
