"""Guidance: functions from Denoiser to Denoiser, so that every sampler works with every one of them.

Two predictions of the same x_t are combined as weak + w (strong - weak): of the condition and of none (`classifier_free`), or
of a good model and of a poor one (`autoguidance`). How they are combined is a Combine: plain (`extrapolate`), `rescaled` or
`projected`. Scales may be traced.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.predictions import Parameterization, Prediction, with_eps, with_x0
from diffusion_jax.schedules import Schedule, level_like

Scalar: TypeAlias = Float[Array, ""] | float
# (strong, weak, guidance_scale, x_t, t) -> Prediction
Combine: TypeAlias = Callable[[Prediction, Prediction, Scalar, Float[Array, "B ..."], Float[Array, "*B"]], Prediction]
# (x_t, t, cond) -> log p(y | x_t) of each example, or anything else to be raised
LogProb: TypeAlias = Callable[[Float[Array, "B ..."], Float[Array, "*B"], Cond], Float[Array, "B"]]
SHIFTS = ("score", "mean")


def extrapolate(
    strong: Prediction, weak: Prediction, guidance_scale: Scalar, x_t: Float[Array, "B ..."], t: Float[Array, "*B"]
) -> Prediction:
    """weak + w (strong - weak), for eps and x0 alike: at a given x_t each is affine in the other.

    What else the prediction holds (a learned variance) is the strong one's, as in GLIDE.
    """
    x0, eps = (poor + guidance_scale * (good - poor) for good, poor in ((strong.x0, weak.x0), (strong.eps, weak.eps)))
    return strong._replace(x0=x0, eps=eps)


def rescaled(schedule: Schedule, space: Parameterization, amount: Scalar) -> Combine:
    """Extrapolation whose spread is pulled back to the strong prediction's: high scales no longer over-expose.

    With y in the given space and std over an example: y = amount y_guided std(y_strong) / std(y_guided) + (1 - amount) y_guided.

    Args:
      schedule: the forward process.
      space: where the spread is measured; the paper's network predicts v.
      amount: phi in [0, 1]; 0 is plain extrapolation, 0.7 the paper's.

    Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", section 3.4.
    """

    def combine(strong: Prediction, weak: Prediction, guidance_scale: Scalar, x_t: Array, t: Array) -> Prediction:
        guided = extrapolate(strong, weak, guidance_scale, x_t, t)
        y = space.to_output(guided, x_t, t, schedule)
        spread = _std(space.to_output(strong, x_t, t, schedule)) / jnp.maximum(_std(y), 1e-12)
        x0, eps, *_ = space.from_output(y * (amount * spread + 1 - amount), x_t, t, schedule)
        return guided._replace(x0=x0, eps=eps)

    return combine


def projected(schedule: Schedule, parallel: Scalar = 0.0, norm_limit: Scalar = jnp.inf) -> Combine:
    """Adaptive projected guidance (APG): of the difference d of the two x0, the part along the strong x0 is damped.

        d <- d min(1, norm_limit / |d|),   d = d_along + d_across,   x0 = x0_strong + (w - 1) (d_across + parallel d_along).

    The part along x0 is what raises contrast and saturates colours. parallel = 1 without a limit is plain extrapolation. The
    paper's third device, a negative momentum over the steps, would need a state that a denoiser does not have, and is left out.

    Args:
      schedule: the forward process.
      parallel: eta in [0, 1], the share of d_along that is kept.
      norm_limit: the paper's r, in units of x0's norm over an example; inf is none.

    Source: Sadat et al. 2024, "Eliminating oversaturation and artifacts of high guidance scales", eq. 7-9.
    """

    def combine(strong: Prediction, weak: Prediction, guidance_scale: Scalar, x_t: Array, t: Array) -> Prediction:
        difference = strong.x0 - weak.x0
        difference = difference * jnp.minimum(
            1.0, norm_limit / jnp.maximum(jnp.sqrt(_dot(difference, difference)), 1e-12)
        )
        along = _dot(difference, strong.x0) / jnp.maximum(_dot(strong.x0, strong.x0), 1e-12) * strong.x0
        update = difference + (parallel - 1) * along
        return with_x0(strong, strong.x0 + (guidance_scale - 1) * update, x_t, t, schedule)

    return combine


def classifier_free(
    denoiser: Denoiser, null_cond: Cond, guidance_scale: Scalar, combine: Combine = extrapolate
) -> Denoiser:
    """Classifier-free guidance: uncond + w (cond - uncond). The two passes are one pass over a doubled batch.

    Args:
      denoiser: the conditional model, trained with its condition sometimes replaced by the null one.
      null_cond: what to guide away from: cond's tree for one example, without the batch axis, or with it. The null condition,
        or a negative one ("blurry"). Where both are dicts, it may lack entries that need no replacing.
      guidance_scale: w >= 0, which may be a traced array: 1 is off, 0 is unconditional, larger follows cond more.
      combine: how the two predictions are combined.

    Returns:
      The guided denoiser; a learned variance is the conditional half's.

    Source: Ho and Salimans 2022; the doubled batch is GLIDE's (Nichol et al. 2021).
    """

    def guided(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        null = cond | null_cond if isinstance(cond, dict) else null_cond
        nothing = jax.tree.map(lambda null, given: jnp.broadcast_to(null, given.shape).astype(given.dtype), null, cond)
        both_cond = jax.tree.map(lambda *pair: jnp.concatenate(pair), cond, nothing)
        both_t = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        both = denoiser(jnp.concatenate([x_t, x_t]), both_t, both_cond)
        halves = jax.tree.map(lambda part: tuple(jnp.split(part, 2)), both)
        strong, weak = (jax.tree.map(lambda pair, i=i: pair[i], halves, is_leaf=_is_pair) for i in range(2))
        return combine(strong, weak, guidance_scale, x_t, t)

    return guided


def autoguidance(
    denoiser: Denoiser, weak: Denoiser, guidance_scale: Scalar, combine: Combine = extrapolate
) -> Denoiser:
    """Guidance by a poor version of the same model: weak + w (denoiser - weak), both with the condition.

    Args:
      denoiser: the good model.
      weak: a smaller or less trained one (an early checkpoint), with the same schedule and conditions.
      guidance_scale: w; 1 is off.
      combine: how the two predictions are combined.

    Source: Karras et al. 2024, "Guiding a diffusion model with a bad version of itself".
    """

    def guided(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        return combine(denoiser(x_t, t, cond), weak(x_t, t, cond), guidance_scale, x_t, t)

    return guided


def within_interval(guided: Denoiser, unguided: Denoiser, low: Scalar, high: Scalar) -> Denoiser:
    """`guided` at times in [low, high] and `unguided` outside, where what guidance costs is truly not spent.

    Guidance harms at high noise and does nothing at low noise. The bounds may be traced; a level of edm_sigma is turned into
    a time by `schedules.time_at`.

    Args:
      guided, unguided: e.g. `classifier_free(d, ...)` and d.
      low, high: times in [0, 1].

    Returns:
      A denoiser for one time for all examples, as samplers ask.

    Source: Kynkäänniemi et al. 2024, "Applying guidance in a limited interval improves sample and distribution quality".
    """

    def choose(x_t: Float[Array, "B ..."], t: Float[Array, ""], cond: Cond) -> Prediction:
        if jnp.ndim(t):
            raise ValueError("within_interval: t must be one time for all examples; got one for each.")
        return jax.lax.cond((low <= t) & (t <= high), guided, unguided, x_t, t, cond)

    return choose


def classifier(
    denoiser: Denoiser,
    schedule: Schedule,
    log_prob: LogProb,
    guidance_scale: Scalar,
    shift: str = "score",
) -> Denoiser:
    """Classifier guidance: towards p(x) p(y | x)^w, by the gradient g = w grad log p(y | x_t) of a classifier of noisy images.

        score:  eps <- eps - sigma_t g, and x0 follows     (any sampler; the choice for deterministic ones)
        mean:   the ancestral step's mean is shifted by its variance times g  (ancestral alone; others refuse it)

    Wrap clipping first: the guided x0 is not clipped again, as in the originals. The gradient is at x_t, as in ADM's code; its
    paper derives it at the mean.

    Args:
      denoiser: any denoiser.
      schedule: the forward process.
      log_prob: (x_t, t, cond) -> log p(y | x_t) of each example, or anything to be raised (`clip_similarity`).
      guidance_scale: w.
      shift: "score" or "mean".

    Raises:
      ValueError: shift is neither.

    Source: Dhariwal and Nichol 2021, algorithms 1 (mean) and 2 (score); Sohl-Dickstein et al. 2015, section 2.5.
    """
    if shift not in SHIFTS:
        raise ValueError(f"guidance.classifier: shift must be one of {SHIFTS}; got {shift!r}.")

    def guided(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        gradient = guidance_scale * jax.grad(lambda x: log_prob(x, t, cond).sum())(x_t)
        prediction = denoiser(x_t, t, cond)
        if shift == "mean":
            earlier = prediction.mean_gradient
            return prediction._replace(mean_gradient=gradient if earlier is None else earlier + gradient)
        eps = prediction.eps - level_like(schedule, t, x_t).sigma * gradient
        return with_eps(prediction, eps, x_t, t, schedule)

    return guided


def clip_similarity(
    encode_image: Callable[[Float[Array, "B ..."], Float[Array, "*B"]], Float[Array, "B D"]],
    text_features: Float[Array, "B D"],
    logit_scale: Scalar = 100.0,
) -> LogProb:
    """CLIP's agreement of noisy images with texts, for `classifier`: logit_scale <image features, text features>.

    Args:
      encode_image: (x_t, t) -> features of noisy images, of unit length: a CLIP trained on noise.
      text_features: of unit length, one row per example.
      logit_scale: exp of CLIP's learned one; 100 in GLIDE.

    Source: Nichol et al. 2021 (GLIDE), section 2.3.
    """

    def log_prob(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Float[Array, "B"]:
        return logit_scale * jnp.sum(encode_image(x_t, t) * text_features, axis=-1)

    return log_prob


def clip_x0(denoiser: Denoiser, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clamps the predicted x0 to the data's range and recomputes eps from it ("clip_denoised" in DDPM and ADM).

    Args:
      denoiser: any denoiser; wrap guidance first and clip its result.
      schedule: the forward process, to recompute eps.
      low, high: the data's range.
    """

    def clipped(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        prediction = denoiser(x_t, t, cond)
        return with_x0(prediction, jnp.clip(prediction.x0, low, high), x_t, t, schedule)

    return clipped


def dynamic_threshold(denoiser: Denoiser, schedule: Schedule, quantile: Scalar = 0.995) -> Denoiser:
    """Scales a predicted x0 that leaves [-1, 1] back into it: with s = max(1, the quantile of |x0|), clip(x0, -s, s) / s.

    Plain clipping saturates more and more pixels as the guidance scale grows; this keeps their differences.

    Args:
      denoiser: any denoiser; wrap guidance first. Use in place of `clip_x0`.
      schedule: the forward process, to recompute eps.
      quantile: in [0, 1], of the absolute values of an example; 1 rescales by the largest.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """

    def thresholded(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        prediction = denoiser(x_t, t, cond)
        size = jnp.quantile(jnp.abs(prediction.x0).reshape(len(x_t), -1), quantile, axis=1)
        size = jnp.maximum(size, 1).reshape(-1, *(1,) * (x_t.ndim - 1))
        return with_x0(prediction, jnp.clip(prediction.x0, -size, size) / size, x_t, t, schedule)

    return thresholded


def drop_condition(cond: Cond, null_cond: Cond, keys: Key[Array, "B"], probability: float) -> Cond:
    """Training's half of classifier-free guidance: each example's condition becomes the null one with a probability.

    Args:
      cond: a tree of arrays [B, ...].
      null_cond: the same tree for one example, without the batch axis.
      keys: one key per example, so that the outcome does not depend on the batch around it.
      probability: in [0, 1]; GLIDE's fine-tune drops 0.2, classifier-free guidance's paper 0.1 to 0.2.
    """
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)

    def choose(given: Array, null: Array) -> Array:
        chosen = drop.reshape(drop.shape + (1,) * (given.ndim - 1))
        return jnp.where(chosen, jnp.asarray(null, given.dtype)[None], given)

    return jax.tree.map(choose, cond, null_cond)


def _dot(a: Float[Array, "B ..."], b: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Inner product of each example, shaped to multiply it."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _std(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _is_pair(node: object) -> bool:
    return type(node) is tuple
