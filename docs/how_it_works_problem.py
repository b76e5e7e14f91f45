"""The example of docs/how_it_works.md: a spiral of three arms in the plane, for which all that a model learns is known exactly.

An arm is a row of small Gaussians. A point's label names its arm, but only seven times in ten: captions found beside pictures are
not all true. So x_t is a mixture of Gaussians at every noise level, and the densities, the denoiser and the classifier are closed
forms. Labels are 0, 1, 2, and NO_LABEL, which says nothing: the condition of classifier-free guidance's second pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import grids, guidance, samplers, schedules
from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.guidance import LogProb, clip_similarity
from diffusion_jax.keys import fold_in, keys_per_example, normal_per_example
from diffusion_jax.predictions import Prediction, from_x0, to_score
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.schedules import Schedule

NUM_ARMS, PER_ARM = 3, 32
NO_LABEL = NUM_ARMS
DEVIATION = 0.07  # of each small Gaussian, in each direction
LABEL_IS_RIGHT = 0.7
WANTED = 0  # the label that is asked for: blue
START = 0.99  # where sampling begins: at t = 1 no signal is left to divide by
SCHEDULE = schedules.cosine
CLIP_SCALE = 2.0  # at least 1.03, so that the logits of the surest point fit into a unit vector


def centres() -> Float[np.ndarray, "K 2"]:
    """The means of the Gaussians, arm after arm; within an arm from the inside out, at equal distances."""
    turn = np.linspace(0, 1, 2001)
    radius, angle = 0.44 + 1.56 * turn, 1.15 * np.pi * turn
    curve = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    places = np.linspace(0, length[-1], PER_ARM)
    arm = np.stack([np.interp(places, length, column) for column in curve.T], 1)
    angles = 2 * np.pi * np.arange(NUM_ARMS) / NUM_ARMS + 0.5
    rotations = np.array([[[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]] for a in angles])
    return np.concatenate([arm @ rotation for rotation in rotations])


CENTRES = centres()
ARM_OF = np.repeat(np.arange(NUM_ARMS), PER_ARM)


def label_of_arm() -> Float[np.ndarray, "4 3"]:
    """p(label | arm), a row per label; p(NO_LABEL | arm) is 1, as it goes with every point."""
    wrong = (1 - LABEL_IS_RIGHT) / (NUM_ARMS - 1)
    table = np.where(np.eye(NUM_ARMS), LABEL_IS_RIGHT, wrong)
    return np.concatenate([table, np.ones((1, NUM_ARMS))])


def draw(keys: Key[Array, "B"]) -> tuple[Float[Array, "B 2"], Int[Array, "B"]]:
    """Points and the arms that they are on."""
    which = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(CENTRES)))(fold_in(keys, 1))
    return jnp.asarray(CENTRES)[which] + DEVIATION * normal_per_example(fold_in(keys, 2), (2,)), jnp.asarray(ARM_OF)[
        which
    ]


def log_joint(
    x_t: Float[Array, "B 2"], label: Int[Array, "B"], alpha: Float[Array, ""], sigma: Float[Array, ""]
) -> Float[Array, "B K"]:
    """log p(x_t, Gaussian k, label): x_t of Gaussian k has mean alpha c_k and variance alpha^2 DEVIATION^2 + sigma^2."""
    variance = alpha**2 * DEVIATION**2 + sigma**2
    distance = jnp.sum((x_t[:, None] - alpha * jnp.asarray(CENTRES, x_t.dtype)) ** 2, -1)
    log_label = jnp.log(jnp.asarray(label_of_arm()[:, ARM_OF], x_t.dtype))[label]
    return log_label - distance / (2 * variance) - jnp.log(2 * jnp.pi * variance * len(CENTRES))


def log_density(schedule: Schedule) -> LogProb:
    """(x_t, t, {"label": [B]}) -> log p(x_t, label); of NO_LABEL it is log p(x_t)."""

    def log_density(x_t: Float[Array, "B 2"], t: Float[Array, ""], cond: Cond) -> Float[Array, "B"]:
        return jax.nn.logsumexp(log_joint(x_t, cond["label"], *schedule(jnp.asarray(t, x_t.dtype))), axis=1)

    return log_density


def exact_denoiser(schedule: Schedule) -> Denoiser:
    """What the best of networks would say: the mean of all x0 that may have become this x_t, each by its probability."""

    def denoise(x_t: Float[Array, "B 2"], t: Float[Array, ""], cond: Cond) -> Prediction:
        alpha, sigma = schedule(jnp.asarray(t, x_t.dtype))
        share = jax.nn.softmax(log_joint(x_t, cond["label"], alpha, sigma), axis=1)[..., None]
        means = jnp.asarray(CENTRES, x_t.dtype)
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return from_x0(jnp.sum(share * (means + gain * (x_t[:, None] - alpha * means)), 1), x_t, t, schedule)

    return denoise


def noisy_classifier(schedule: Schedule) -> LogProb:
    """log p(label | x_t), by Bayes: the classifier that has seen all noise levels and knows which one this is."""
    density = log_density(schedule)

    def log_prob(x_t: Float[Array, "B 2"], t: Float[Array, ""], cond: Cond) -> Float[Array, "B"]:
        return density(x_t, t, cond) - density(x_t, t, {"label": jnp.full_like(cond["label"], NO_LABEL)})

    return log_prob


def clean_classifier(schedule: Schedule) -> LogProb:
    """The classifier that has seen clean points only: it takes x_t for an x0, whatever t is."""
    log_prob = noisy_classifier(schedule)
    return lambda x_t, t, cond: log_prob(x_t, jnp.zeros_like(jnp.asarray(t, x_t.dtype)), cond)


def text_features() -> Float[np.ndarray, "3 3"]:
    """A unit vector per label: as far apart as three can be, in the plane of the first two coordinates."""
    angles = 2 * np.pi * np.arange(NUM_ARMS) / NUM_ARMS
    return np.stack([np.cos(angles), np.sin(angles), np.zeros(NUM_ARMS)], 1)


def encode_image(schedule: Schedule) -> Callable[[Float[Array, "B 2"], Float[Array, ""]], Float[Array, "B 3"]]:
    """(x_t, t) -> a unit vector f: a CLIP of noisy points that names captions as well as any can, in closed form.

    The softmax of CLIP_SCALE <f, text> over the labels is exactly p(label | x_t). The first two coordinates hold
    log p(label | x_t), less its mean over the labels, over CLIP_SCALE; the third fills up to length 1.
    """
    log_prob = noisy_classifier(schedule)

    def encode(x_t: Float[Array, "B 2"], t: Float[Array, ""]) -> Float[Array, "B 3"]:
        labels = [jnp.full(x_t.shape[:1], label) for label in range(NUM_ARMS)]
        logits = jnp.stack([log_prob(x_t, t, {"label": label}) for label in labels], 1)
        inside = 2 / (3 * CLIP_SCALE) * logits @ jnp.asarray(text_features(), x_t.dtype)
        return inside.at[:, 2].set(jnp.sqrt(1 - jnp.sum(inside**2, 1)))

    return encode


def nearest(x: Float[np.ndarray, "B 2"]) -> tuple[Float[np.ndarray, "B"], Int[np.ndarray, "B"]]:
    """The distance to the nearest centre, and which it is."""
    distances = np.linalg.norm(np.asarray(x)[:, None] - CENTRES, axis=-1)
    return distances.min(1), distances.argmin(1)


# --- What is asked of it ---


def labels(count: int, label: int = WANTED) -> dict[str, Array]:
    return {"label": jnp.full((count,), label)}


DENOISER = exact_denoiser(SCHEDULE)
CLIP = clip_similarity(encode_image(SCHEDULE), text_features()[WANTED].astype(np.float32), CLIP_SCALE)


def unconditional(x_t: Array, t: Array, cond: Cond) -> Prediction:
    return DENOISER(x_t, t, labels(len(x_t), NO_LABEL))


def classifier_free(guidance_scale: float) -> Denoiser:
    return guidance.classifier_free(DENOISER, {"label": NO_LABEL}, guidance_scale)


def ways(guidance_scale: float) -> dict[str, Denoiser]:
    """The same wish, told in four ways."""

    def towards(log_prob: LogProb) -> Denoiser:
        return guidance.classifier(unconditional, SCHEDULE, log_prob, guidance_scale)

    return {
        "classifier": towards(noisy_classifier(SCHEDULE)),
        "classifier-free": classifier_free(guidance_scale),
        "CLIP": towards(CLIP),
        "classifier of clean points": towards(clean_classifier(SCHEDULE)),
    }


def keys_of(count: int, seed: int = 0) -> Array:
    return keys_per_example(jax.random.key(seed), jnp.arange(count))


def noised(x0: Array, t: float, seed: int = 1) -> Array:
    return schedules.diffuse(SCHEDULE, x0, normal_per_example(keys_of(len(x0), seed), x0.shape[1:]), jnp.float32(t))


def arrows_of(denoiser: Denoiser, x_t: Array | np.ndarray, t: float, label: int = WANTED) -> np.ndarray:
    """sigma_t times the score, -eps: the way to the data, in units of the noise that is there."""
    x_t, t = jnp.asarray(x_t, jnp.float32), jnp.float32(t)
    score = to_score(denoiser(x_t, t, labels(len(x_t), label)), x_t, t, SCHEDULE)
    return np.asarray(SCHEDULE(t).sigma * score)


def path(sampler: Sampler, denoiser: Denoiser, x_t: Array, num_steps: int, seed: int = 0) -> np.ndarray:
    """The states [N + 1, B, 2] of a sampler, the first given."""
    grid, cond, keys = grids.uniform(num_steps, START), labels(len(x_t)), keys_of(len(x_t), seed)
    step = jax.jit(lambda carry, i: samplers.run(sampler, denoiser, carry, grid, cond, keys, i, i + 1))
    states, carry = [x_t], (x_t, sampler.init(x_t))
    for i in range(num_steps):
        carry = step(carry, i)
        states.append(carry[0])
    return np.stack(states)


def sample(denoiser: Denoiser, count: int, num_steps: int, sampler: Sampler | None = None) -> np.ndarray:
    """Samples from the same noise every time, by DDIM unless told otherwise."""
    keys = keys_of(count)
    sampler, grid = sampler or ddim(SCHEDULE), grids.uniform(num_steps, START)
    noise = samplers.initial_noise(keys, (2,))
    draw = jax.jit(lambda noise: samplers.sample(sampler, denoiser, noise, grid, labels(len(noise)), keys))
    return np.asarray(draw(noise))


def measured(x0: np.ndarray) -> dict[str, float]:
    """right: share on the wanted arm. spread: their deviation along it, 1 if even. distance: RMS from the nearest centre."""
    distance, which = nearest(x0)
    right = ARM_OF[which] == WANTED
    places = which[right] % PER_ARM
    return {
        "right": float(right.mean()),
        "spread": float(places.std() / np.arange(PER_ARM).std()) if right.any() else 0.0,
        "deviation": float(np.sqrt(x0.var(axis=0).sum())),
        "distance": float(np.sqrt((distance**2).mean())),
    }


def nearness(way: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Of two fields at the same points: the cosine over all, the ratio of their sizes, the largest difference."""
    size, exact_size = np.linalg.norm(way), np.linalg.norm(exact)
    cosine = float((way * exact).sum() / (size * exact_size))
    return {"cosine": cosine, "length": float(size / exact_size), "difference": float(np.abs(way - exact).max())}


def nearness_at(t: float, count: int) -> dict[str, dict[str, float]]:
    """How each way's addition to the unconditional score agrees with the exact classifier's, over points x_t."""
    x_t = noised(draw(keys_of(count))[0], t)
    base = arrows_of(unconditional, x_t, t)
    added = {name: arrows_of(way, x_t, t) - base for name, way in ways(1.0).items()}
    return {name: nearness(field, added["classifier"]) for name, field in added.items()}
