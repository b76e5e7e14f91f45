"""samplers.py's problem "mixture": five Gaussians in the plane, whose denoiser and quantiles are exact."""

import functools
from collections.abc import Callable
from typing import Any

from sampler_runs import NOISY, make_grid, make_sampler, padded, start_of, steps_within

GRIDS = {"linear_path": ("uniform", "logsnr"), "ddpm_linear": ("uniform", "quadratic", "logsnr")}
REFERENCE_STEPS = 1000
DIRECTIONS = 32


def mixture() -> tuple[Any, Any, Any]:
    """Weights [K], means [K, 2] and deviations [K] of the data."""
    import numpy as np

    weights = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    means = np.array([[-0.5, -0.4], [0.55, -0.35], [0.1, 0.6], [-0.6, 0.4], [0.6, 0.45]])
    return weights, means, np.array([0.2, 0.1, 0.15, 0.12, 0.08])


def mixture_denoiser(schedule: Callable[..., Any]) -> Callable[..., Any]:
    """The exact denoiser of `mixture`: each component's posterior mean, by the component's posterior probability."""
    import jax
    import jax.numpy as jnp

    from diffusion_jax.predictions import Prediction

    weights, means, deviations = map(jnp.asarray, mixture())

    def denoise(x_t: Any, t: Any, cond: Any) -> Prediction:
        alpha, sigma = schedule(jnp.asarray(t, x_t.dtype))
        total = alpha**2 * deviations**2 + sigma**2
        offset = x_t[:, None] - alpha * means
        share = jax.nn.softmax(jnp.log(weights / total) - jnp.sum(offset**2, -1) / (2 * total))[..., None]
        surprise = offset / total[:, None]
        x0 = jnp.sum(share * (means + alpha * deviations[:, None] ** 2 * surprise), 1)
        return Prediction(x0, jnp.sum(share * sigma * surprise, 1))

    return denoise


@functools.cache
def quantiles(count: int) -> tuple[Any, Any]:
    """Directions [2, D], and the quantiles [count, D] of the mixture along each."""
    import numpy as np
    from scipy.special import ndtr

    weights, means, deviations = mixture()
    angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    axes = np.stack([np.cos(angles), np.sin(angles)])
    places, levels, columns = np.linspace(-3, 3, 6001), (np.arange(count) + 0.5) / count, []
    for centres in (means @ axes).T:
        cdf = ndtr((places[:, None] - centres) / deviations) @ weights
        inside = (cdf > 1e-12) & (cdf < 1 - 1e-12)
        columns.append(np.interp(levels, cdf[inside], places[inside]))
    return axes, np.stack(columns, 1)


def sliced_wasserstein(samples: Any) -> float:
    """The mean distance between sorted projections of samples [N, 2] and the exact quantiles of the projected mixture."""
    import numpy as np

    axes, exact = quantiles(len(samples))
    return float(np.abs(np.sort(np.asarray(samples) @ axes, 0) - exact).mean())


def true_samples(count: int, seed: int) -> Any:
    import numpy as np

    weights, means, deviations = mixture()
    rng = np.random.default_rng(seed)
    which = rng.choice(len(weights), count, p=weights)
    return means[which] + deviations[which, None] * rng.normal(size=(count, 2))


def measure(names: list[str], budgets: list[int], count: int, seed: int) -> dict[str, Any]:
    """The record of these samplers: a row for each schedule, sampler, budget and grid."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    from diffusion_jax import samplers, schedules
    from diffusion_jax.keys import keys_per_example
    from diffusion_jax.samplers.unipc import unipc

    tables = {"linear_path": schedules.linear_path, "ddpm_linear": schedules.from_betas(schedules.linear_betas(1000))}
    keys = keys_per_example(jax.random.key(seed), jnp.arange(count))
    floor = float(np.mean([sliced_wasserstein(true_samples(count, seed + 1 + i)) for i in range(8)]))
    rows, longest = [], max(*budgets, 2) + 1
    costs: dict[str, dict[int, tuple[int, int]]] = {}
    for table in GRIDS:
        schedule, denoiser = tables[table], mixture_denoiser(tables[table])

        def noise_at(t: float, schedule: Any = schedule) -> Any:
            return samplers.initial_noise(keys, (2,), schedule(jnp.asarray(t)))

        def solution(t: float, schedule: Any = schedule, denoiser: Any = denoiser) -> Any:
            lambdas = -2 * np.log([float(schedules.edm_sigma(schedule(jnp.asarray(min(t, 0.99999)))))])[0]
            times = np.asarray(schedules.time_at(schedule, jnp.linspace(lambdas, 20.0, REFERENCE_STEPS)))
            grid = jnp.asarray(np.concatenate([[t] if times[0] < t else [], times, [0.0]]))
            method = unipc(schedule, 3)
            return jax.jit(lambda x: samplers.sample(method, denoiser, x, grid, {}, keys))(noise_at(t))

        exact: dict[float, Any] = {}
        for name in names:
            sampler = make_sampler(name, schedule)
            if name not in costs:
                costs[name] = steps_within(sampler, budgets)

            @jax.jit
            def program(x: Any, grid: Any, last: Any, sampler: Any = sampler, denoiser: Any = denoiser) -> Any:
                return samplers.run(sampler, denoiser, (x, sampler.init(x)), grid, {}, keys, 0, last)[0]

            for budget in budgets:
                num_steps, evaluations = costs[name][budget]
                for grid_name in GRIDS[table]:
                    grid = make_grid(grid_name, schedule, num_steps, start_of(name, schedule))
                    t = round(float(grid[0]), 12)
                    made = np.asarray(program(noise_at(grid[0]), padded(grid, longest), num_steps))
                    row = {"schedule": table, "sampler": name, "grid": grid_name, "budget": budget}
                    row |= {"steps": num_steps, "evaluations": evaluations, "wasserstein": sliced_wasserstein(made)}
                    if name not in NOISY:
                        if t not in exact:
                            exact[t] = np.asarray(solution(grid[0]))
                            print(
                                f"{table}: the solution from {t:g} is {sliced_wasserstein(exact[t]):.4f} from the data"
                            )
                        row["rms"] = float(np.sqrt(np.mean(np.sum((made - exact[t]) ** 2, -1))))
                    rows.append(row)
            print(table, name, flush=True)
    return {
        "problem": "mixture",
        "num_samples": count,
        "seed": seed,
        "floor": floor,
        "jax": jax.__version__,
        "rows": rows,
    }
