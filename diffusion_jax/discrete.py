"""Diffusion of categories: Sohl-Dickstein's binomial process of 2015 and its present form, D3PM.

Data are x_0 [B, D] of categories 0..K - 1. Step t = 1..T replaces a category with probability beta_t by a draw from a base: any
category ("uniform"), or a mask ("absorbing", category K). With alpha_bar_t = prod (1 - beta_j), alpha_bar_0 = 1,

    q(x_t | x_0) = alpha_bar_t [x_t = x_0] + (1 - alpha_bar_t) base(x_t),

for each dimension on its own. "uniform" with K = 2 is the binomial process. A network says how likely each x_0 is, as logits
[B, D, K] of (x_t, t); all that is here takes such a function and is exact for an exact one. Entropies are in nats.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.keys import fold_in

KINDS = ("uniform", "absorbing")
# (x_t [B, D], step [B]) -> logits of x_0 [B, D, K]
Logits: TypeAlias = Callable[[Int[Array, "B D"], Int[Array, "B"]], Float[Array, "B D K"]]


class Transition(NamedTuple):
    """A forward process; make it by `transition`. alpha_bar [T + 1] is float64, from 1 at step 0."""

    kind: str
    num_classes: int
    alpha_bar: np.ndarray

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    @property
    def base(self) -> np.ndarray:
        """What a replaced category is drawn from, over all states."""
        if self.kind == "uniform":
            return np.full(self.num_classes, 1 / self.num_classes)
        return np.eye(self.num_classes + 1)[-1]


def transition(kind: str, num_classes: int, betas: np.ndarray) -> Transition:
    """A forward process from its probabilities of replacement.

    Args:
      kind: "uniform" or "absorbing".
      num_classes: K, at least 2 for "uniform" and 1 for "absorbing".
      betas: [T], each in (0, 1]. `schedules.jsd_betas(T)` = 1 / (T - t + 1) is the 2015 paper's: alpha_bar falls evenly to 0.

    Raises:
      ValueError: a value is out of range.

    Source: Sohl-Dickstein et al. 2015, table B.1; Austin et al. 2021 (D3PM), appendix A.2.

    >>> from diffusion_jax.schedules import jsd_betas
    >>> transition("uniform", 2, jsd_betas(4)).alpha_bar.round(2).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if kind not in KINDS:
        raise ValueError(f"discrete.transition: kind must be one of {KINDS}; got {kind!r}.")
    if num_classes < (2 if kind == "uniform" else 1):
        raise ValueError(f"discrete.transition: {num_classes} classes are too few for {kind!r}.")
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(f"discrete.transition: betas must be a vector inside (0, 1]; got shape {betas.shape}.")
    return Transition(kind, num_classes, np.concatenate([[1.0], np.cumprod(1 - betas)]))


def marginal(process: Transition, x0: Int[Array, "B D"], step: Int[Array, "B"]) -> Float[Array, "B D S"]:
    """q(x_t | x_0) over the S states: K, and one more for the mask.

    Args:
      process: the forward process.
      x0: categories.
      step: t in 0..T, one per example.
    """
    kept = _at(process.alpha_bar, step)
    return kept * _one_hot(process, x0) + (1 - kept) * jnp.asarray(process.base, kept.dtype)[None, None]


def q_sample(
    process: Transition, x0: Int[Array, "B D"], step: Int[Array, "B"], keys: Key[Array, "B"]
) -> Int[Array, "B D"]:
    """A draw of x_t from q(x_t | x_0), a key per example. Args: as `marginal`."""
    return _draw(keys, marginal(process, x0, step))


def posterior(
    process: Transition, x0: Int[Array, "B D"], x_t: Int[Array, "B D"], step: Int[Array, "B"]
) -> Float[Array, "B D S"]:
    """q(x_{t-1} | x_t, x_0) over the states, by Bayes: q(x_t | x_{t-1}) q(x_{t-1} | x_0) / q(x_t | x_0).

    For K = 2 it is the paper's c d / (c d + (1 - c) (1 - d)), with c and d the two rates.

    Args:
      process: the forward process.
      x0, x_t: categories; x_t must be possible from x_0.
      step: t in 1..T.

    Source: Austin et al. 2021, eq. 3; Sohl-Dickstein et al. 2015, appendix B.
    """
    return _normalized(_backwards(process, x_t, step) * marginal(process, x0, step - 1))


def model_step(
    process: Transition, x0_logits: Float[Array, "B D K"], x_t: Int[Array, "B D"], step: Int[Array, "B"]
) -> Float[Array, "B D S"]:
    """p(x_{t-1} | x_t) = sum over x_0 of q(x_{t-1} | x_t, x_0) p(x_0 | x_t): exact when the logits are.

    What the process excludes has probability 0, whatever the network says: an unmasked category stays. (D3PM sums
    q(x_{t-1}, x_t | x_0) instead, which for "uniform" is exact for other logits than those of p(x_0 | x_t).)

    Args:
      process: the forward process.
      x0_logits: of p(x_0 | x_t).
      x_t: categories, K for the mask.
      step: t in 1..T.

    Source: Austin et al. 2021, section 3.3; Ho et al. 2020 for its Gaussian form.
    """
    log_p = jax.nn.log_softmax(_allowed(process, x0_logits, x_t))
    kept = _at(process.alpha_bar, step)
    base = jnp.asarray(process.base, kept.dtype)
    here = base[x_t][..., None]  # base(x_t)
    # q(x_t | x_0), for each x_0: never 0 where p(x_0 | x_t) is not.
    reach = kept * _one_hot(process, x_t)[..., : process.num_classes] + (1 - kept) * here
    weight = jnp.where(reach > 0, jnp.exp(log_p) / jnp.where(reach > 0, reach, 1), 0)
    kept_before = _at(process.alpha_bar, step - 1)
    total = weight.sum(-1, keepdims=True)
    padded = jnp.pad(weight, ((0, 0), (0, 0), (0, len(process.base) - process.num_classes)))
    return _normalized(
        _backwards(process, x_t, step) * (kept_before * padded + (1 - kept_before) * total * base[None, None])
    )


def step_nats(
    process: Transition,
    x0_logits: Float[Array, "B D K"],
    x0: Int[Array, "B D"],
    x_t: Int[Array, "B D"],
    step: Int[Array, "B"],
) -> Float[Array, "B"]:
    """A step's term of the bound on -log p(x_0), in nats summed over the dimensions.

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1, and -log p(x_0 | x_1) for t = 1, which is the same formula, since
    there q is certain.

    Args: as `model_step`, with the true x0.
    """
    q, p = posterior(process, x0, x_t, step), model_step(process, x0_logits, x_t, step)
    tiny = jnp.finfo(p.dtype).tiny
    terms = jnp.where(q > 0, q * (jnp.log(jnp.maximum(q, tiny)) - jnp.log(jnp.maximum(p, tiny))), 0)
    return terms.sum((-2, -1))


def prior_nats(process: Transition, x0: Int[Array, "B D"]) -> Float[Array, "B"]:
    """KL(q(x_T | x_0) || base), the bound's last term: 0 where alpha_bar_T is 0. An absorbing process must end at 0."""
    last = jnp.full(x0.shape[0], process.num_steps)
    q, base = marginal(process, x0, last), jnp.asarray(process.base)[None, None]
    safe = jnp.where(base > 0, base, 1)
    terms = jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1) / safe), 0)
    return jnp.where((q > 0) & (base == 0), jnp.inf, terms).sum((-2, -1))


def variational_bound(
    process: Transition, logits: Logits, x0: Int[Array, "B D"], keys: Key[Array, "B"]
) -> Float[Array, "B"]:
    """The bound on -log p(x_0) in nats: `prior_nats` and every step's term, each with one draw of x_t.

    Args:
      process: the forward process.
      logits: (x_t, step) -> logits of x_0.
      x0: categories.
      keys: one per example.

    Returns:
      -K of Sohl-Dickstein et al. 2015, eq. 14, per example; in bits after division by log 2.
    """

    def add(total: Array, step: Array) -> tuple[Array, None]:
        steps = jnp.full(x0.shape[0], step)
        x_t = q_sample(process, x0, steps, fold_in(keys, step))
        return total + step_nats(process, logits(x_t, steps), x0, x_t, steps), None

    return jax.lax.scan(add, prior_nats(process, x0), jnp.arange(1, process.num_steps + 1))[0]


def sample(process: Transition, logits: Logits, num_dims: int, keys: Key[Array, "B"]) -> Int[Array, "B D"]:
    """Ancestral sampling: x_T from the base, then x_{t-1} from `model_step` down to x_0, as one scan.

    Args:
      process: the forward process.
      logits: (x_t, step) -> logits of x_0.
      num_dims: D.
      keys: one per example.
    """
    count = keys.shape[0]
    base = jnp.asarray(process.base, jnp.result_type(float))
    x_t = _draw(fold_in(keys, 0), jnp.broadcast_to(base, (count, num_dims, len(base))))

    def back(x_t: Array, step: Array) -> tuple[Array, None]:
        steps = jnp.full(count, step)
        return _draw(fold_in(keys, step), model_step(process, logits(x_t, steps), x_t, steps)), None

    return jax.lax.scan(back, x_t, jnp.arange(process.num_steps, 0, -1))[0]


def reverse_entropy_bounds(process: Transition, step: int) -> tuple[float, float]:
    """Bounds on the entropy of the true reverse step H(x_{t-1} | x_t) of a dimension, in nats, for any data:

        H(x_t | x_{t-1}) + H(x_{t-1} | x_0) - H(x_t | x_0)  <=  H(x_{t-1} | x_t)  <=  H(x_t | x_{t-1}).

    Args:
      process: a uniform one.
      step: t in 1..T.

    Raises:
      ValueError: the process is absorbing, where entropy need not grow with t and the upper bound does not hold.

    Source: Sohl-Dickstein et al. 2015, section 2.6 and appendix A.
    """
    if process.kind != "uniform":
        raise ValueError("reverse_entropy_bounds: holds for a uniform process, whose entropy grows with every step.")

    def entropy(kept: float) -> float:
        others = (1 - kept) / process.num_classes
        p = np.array([kept + others] + [others] * (process.num_classes - 1))
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    before, now = process.alpha_bar[step - 1 : step + 1]
    forward = entropy(now / before)
    return forward + entropy(before) - entropy(now), forward


def _at(table: np.ndarray, step: Int[Array, "B"]) -> Float[Array, "B 1 1"]:
    return jnp.asarray(table, jnp.result_type(float))[step][:, None, None]


def _one_hot(process: Transition, x: Int[Array, "B D"]) -> Float[Array, "B D S"]:
    return jax.nn.one_hot(x, len(process.base), dtype=jnp.result_type(float))


def _backwards(process: Transition, x_t: Int[Array, "B D"], step: Int[Array, "B"]) -> Float[Array, "B D S"]:
    """q(x_t | x_{t-1}) as a function of x_{t-1}."""
    ratio = process.alpha_bar[1:] / np.maximum(process.alpha_bar[:-1], np.finfo(np.float64).tiny)
    kept = _at(np.concatenate([[1.0], ratio]), step)
    here = jnp.asarray(process.base, kept.dtype)[x_t][..., None]
    return kept * _one_hot(process, x_t) + (1 - kept) * here


def _allowed(process: Transition, x0_logits: Float[Array, "B D K"], x_t: Int[Array, "B D"]) -> Float[Array, "B D K"]:
    """The logits, with certainty where x_t tells x_0: an absorbing process changes categories to the mask alone."""
    if process.kind == "uniform":
        return x0_logits
    known = (x_t < process.num_classes)[..., None]
    is_it = x_t[..., None] == jnp.arange(process.num_classes)[None, None]
    return jnp.where(known, jnp.where(is_it, 0.0, -jnp.inf), x0_logits)


def _normalized(weights: Float[Array, "B D S"]) -> Float[Array, "B D S"]:
    return weights / weights.sum(-1, keepdims=True)


def _draw(keys: Key[Array, "B"], probabilities: Float[Array, "B D S"]) -> Int[Array, "B D"]:
    """One category per dimension, an example's from its own key."""
    return jax.vmap(lambda key, p: jax.random.categorical(key, jnp.log(p)))(keys, probabilities)
