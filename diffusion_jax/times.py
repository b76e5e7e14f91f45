"""Distributions of the training time t, one draw per key; and the one that learns from the losses where to draw.

`LossHistory` is a value: `update` returns the next one, the train state carries it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.schedules import Schedule, time_at

UNIFORM_SHARE = 0.001  # of the draws from a history, so that no step is forgotten


def uniform_time(keys: Key[Array, "B"], low: float = 0.0, high: float = 1.0) -> Float[Array, "B"]:
    """t uniform in [low, high), one per key."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def logit_normal_time(keys: Key[Array, "B"], mean: float = 0.0, std: float = 1.0) -> Float[Array, "B"]:
    """t = sigmoid(mean + std n), n unit normal: most of training at middle noise; mean above 0 leans to the noise.

    Source: Esser et al. 2024 (Stable Diffusion 3), section 3.1, where t = 1 is noise too.
    """
    return jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))


def log_normal_sigma_time(
    keys: Key[Array, "B"], schedule: Schedule, mean: float = -1.2, std: float = 1.2
) -> Float[Array, "B"]:
    """The t where log(sigma / alpha) = mean + std n, n unit normal; an end of [0, 1] where the schedule has no such noise.

    Source: Karras et al. 2022, table 1 (ln sigma ~ N(P_mean, P_std^2)).
    """
    return time_at(schedule, -2 * (mean + std * jax.vmap(jax.random.normal)(keys)))


def discrete_uniform_time(keys: Key[Array, "B"], num_steps: int) -> Float[Array, "B"]:
    """t = (i + 1) / T with i uniform in 0..T - 1: the times of a table of T betas. Source: Ho et al. 2020, algorithm 1."""
    return step_time(jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(keys), num_steps)


def step_time(steps: Int[Array, "B"], num_steps: int) -> Float[Array, "B"]:
    """The time of a step of a table, t = (i + 1) / T; `schedules.discrete_step` is its inverse."""
    return (steps + 1) / num_steps


class LossHistory(NamedTuple):
    """The last losses seen at each of T steps: row i holds counts[i] of them, oldest first."""

    losses: Float[Array, "T H"]
    counts: Int[Array, "T"]


def init(num_steps: int, length: int = 10) -> LossHistory:
    """An empty history of T = num_steps steps, which remembers H = length losses of each."""
    return LossHistory(jnp.zeros((num_steps, length)), jnp.zeros(num_steps, jnp.int32))


def update(history: LossHistory, steps: Int[Array, "N"], losses: Float[Array, "N"]) -> LossHistory:
    """The history after losses at steps, taken in their order; a full row loses its oldest.

    Args:
      history: what was seen before.
      steps: in 0..T - 1, any number of each.
      losses: of one example each, not weighed by `draw`'s importance.

    Source: Nichol and Dhariwal 2021, section 3.3.
    """
    num_steps, length = history.losses.shape
    order = jnp.argsort(steps, stable=True)
    steps, losses = steps[order], losses[order].astype(history.losses.dtype)
    # Which of its step's new losses each is: its place in the sorted list, from the first of that step.
    rank = jnp.arange(len(steps)) - jnp.searchsorted(steps, steps)
    total = history.counts + jnp.zeros_like(history.counts).at[steps].add(1)
    dropped = jnp.maximum(total - length, 0)
    source = jnp.arange(length) + dropped[:, None]
    kept = jnp.take_along_axis(history.losses, jnp.minimum(source, length - 1), axis=1)
    kept = jnp.where(source < history.counts[:, None], kept, 0)
    place = history.counts[steps] + rank - dropped[steps]
    place = jnp.where(place < 0, length, place)  # dropped too: out of bounds, where a negative place would wrap
    return LossHistory(kept.at[steps, place].set(losses, mode="drop"), jnp.minimum(total, length))


def probabilities(history: LossHistory) -> Float[Array, "T"]:
    """How often each step is drawn: in proportion to sqrt(mean(loss^2)), and uniformly until every row is full."""
    num_steps, length = history.losses.shape
    root = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
    learned = (1 - UNIFORM_SHARE) * root / jnp.sum(root) + UNIFORM_SHARE / num_steps
    return jnp.where(jnp.all(history.counts == length), learned, 1 / num_steps)


def draw(history: LossHistory, keys: Key[Array, "B"]) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """(steps [B], importance weights 1 / (T p) [B]): the weighted loss has the mean of uniform steps, and less variance."""
    p = probabilities(history)
    steps = jax.vmap(lambda key: jax.random.choice(key, len(p), p=p))(keys)
    return steps, 1 / (len(p) * p[steps])
