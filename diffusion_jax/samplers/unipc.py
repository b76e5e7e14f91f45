"""UniPC: a multistep predictor whose result is corrected by the evaluation that the next step makes anyway."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.multistep import Memory, empty, log_ratio, past, remember
from diffusion_jax.schedules import Schedule, level_like

VARIANTS = ("bh1", "bh2")


class State(NamedTuple):
    """The last predictions of x0, and the (corrected) x that the last step started from."""

    memory: Memory
    x: Float[Array, "B ..."]


def unipc(schedule: Schedule, order: int = 2, variant: str = "bh2") -> Sampler:
    """From r to u > r in lambda, with m the predictions of x0, h = lambda_u - lambda_r and r_k = (lambda_k - lambda_r) / h:

        x_u = sigma_u / sigma_r x_r + alpha_u (1 - e^-h) m_r + alpha_u B sum_k rho_k (m_k - m_r) / r_k,

    B = h (bh1) or 1 - e^-h (bh2). The predictor's sum runs over the points before r; the corrector, applied when the model has
    been evaluated at the predicted x_u, adds that point (r_k = 1) and starts again from x_r. The weights rho make polynomials
    of the order exact. One evaluation a step; the first step and the step to the data are of first order.
    Order: one more than `order`, by the corrector, for even steps of log SNR; the first-order last step holds a uniform grid of
    linear betas below 1.5.

    Args:
      schedule: the forward process.
      order: 1, 2 or 3 points of the predictor.
      variant: "bh2" (better for guided models) or "bh1".

    Raises:
      ValueError: the order or the variant is another.

    Source: Zhao et al. 2023, "UniPC", algorithms 5-8 with x0 predictions.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"unipc: order must be 1, 2 or 3; got {order}.")
    if variant not in VARIANTS:
        raise ValueError(f"unipc: variant must be one of {VARIANTS}; got {variant!r}.")

    def advance(x, m, others, places, weights, begin, end, h):
        level_r, level_u = level_like(schedule, begin, x), level_like(schedule, end, x)
        first = level_u.sigma / level_r.sigma * x - level_u.alpha * jnp.expm1(-h) * m
        scale = h if variant == "bh1" else -jnp.expm1(-h)
        terms = [w * (other - m) / r for w, other, r in zip(weights, others, places, strict=True)]
        return first + level_u.alpha * scale * sum(terms) if terms else first

    def step(denoise, x_t, t, s, keys, state):
        memory, m = state.memory, denoise(x_t, t).x0
        lambdas, usable = past(schedule, memory)
        now, count = log_ratio(schedule, t), sum(each.astype(int) for each in usable)

        def places_from(origin, h):  # r_k; a point that is not there gets any place that is no other's
            points = zip(lambdas, usable, strict=True)
            return [jnp.where(ok, (lam - origin) / h, -1 - k) for k, (lam, ok) in enumerate(points)]

        # The corrector: from the point before to t, with m as one point more.
        h = jnp.where(usable[0], now - lambdas[0], 1)
        places = [*places_from(lambdas[0], h)[1:order], jnp.ones((), x_t.dtype)]
        weights = _pick([_corrector(places, p, h, variant, order) for p in range(1, order + 1)], count)
        others = [*memory.values[1:order], m]
        before = jnp.where(jnp.isinf(memory.times[0][0]), t, memory.times[0][0])
        corrected = advance(state.x, memory.values[0], others, places, weights, before, t, h)
        x = jnp.where(usable[0], corrected, x_t)

        # The predictor: from t to s.
        h = jnp.where(jnp.isfinite(now) & (s > 0), log_ratio(schedule, s) - now, jnp.inf)
        finite = jnp.isfinite(h)
        h_finite = jnp.where(finite, h, 1)
        places = places_from(now, h_finite)[: order - 1]
        weights = _pick([_predictor(places, p, h_finite, variant, order) for p in range(1, order + 1)], count + 1)
        x_s = advance(x, m, memory.values[: order - 1], places, weights, t, s, h_finite)
        first_order = advance(x, m, (), (), (), t, s, h)
        return jnp.where(finite, x_s, first_order), State(remember(memory, m, t), x)

    return Sampler(lambda x_t: State(empty(x_t, order), x_t), step)


def _moments(h: Array, count: int, variant: str) -> list[Array]:
    """b_k = k! phi_(k+1)(-h) scaled by B: what the weights' k-th moment must be for polynomials to be exact."""
    scale = -h if variant == "bh1" else jnp.expm1(-h)
    phi, result = jnp.expm1(-h) / -h - 1, []
    for k in range(1, count + 1):
        result.append(phi * math.factorial(k) / scale)
        phi = phi / -h - 1 / math.factorial(k + 1)
    return result


def _solve(places: list[Array], h: Array, variant: str) -> list[Array]:
    """Weights with sum_k rho_k places_k^(i - 1) = b_i, i = 1..n."""
    n = len(places)
    matrix = jnp.stack([jnp.stack([place**i for place in places]) for i in range(n)])
    return list(jnp.linalg.solve(matrix, jnp.stack(_moments(h, n, variant))))


def _corrector(places: list[Array], order: int, h: Array, variant: str, length: int) -> list[Array]:
    """rho of the corrector of an order, on the last order - 1 points and the new one, with zeros for those not used."""
    used = [*places[: order - 1], places[-1]]
    rho = [jnp.full_like(h, 0.5)] if order == 1 else _solve(used, h, variant)
    return [*rho[:-1], *[jnp.zeros_like(h)] * (length - order), rho[-1]]


def _predictor(places: list[Array], order: int, h: Array, variant: str, length: int) -> list[Array]:
    """rho of the predictor of an order, on the last order - 1 points, with zeros for those not used."""
    used = places[: order - 1]
    rho = [jnp.full_like(h, 0.5)] if order == 2 else _solve(used, h, variant) if used else []
    return [*rho, *[jnp.zeros_like(h)] * (length - order)]


def _pick(choices: list[list[Array]], order: Array) -> list[Array]:
    """The weights of an order that is known at run time, at most the last."""
    index = jnp.clip(order, 1, len(choices)) - 1
    return [jnp.stack(column)[index] for column in zip(*choices, strict=True)]
