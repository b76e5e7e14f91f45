"""What samplers.py does to any sampler: its own defaults, its grids, and how many steps a budget of evaluations allows."""

from collections.abc import Callable
from typing import Any

NEED_SIGNAL = ("lms", "plms")  # divide by alpha: where it is 0 at time 1, their uniform grids start at EARLIEST
EARLIEST = 0.99
NOISY = ("ancestral", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde")


def make_sampler(name: str, schedule: Callable[..., Any]) -> Any:
    """A registered sampler with its own defaults."""
    from configs.default import get_config
    from diffusion_jax import build

    return build.SAMPLERS[name](schedule, get_config())


def make_grid(name: str, schedule: Callable[..., Any], num_steps: int, start: float) -> Any:
    import numpy as np

    from configs.default import get_config
    from diffusion_jax import build

    config = get_config()
    config.sample.update(num_steps=num_steps, start=start)
    return np.asarray(build.GRIDS[name](schedule, config))


def start_of(name: str, schedule: Callable[..., Any]) -> float:
    import jax.numpy as jnp

    return EARLIEST if name in NEED_SIGNAL and float(schedule(jnp.ones(())).alpha) == 0 else 1.0


def padded(grid: Any, length: int) -> Any:
    """A grid with its last time repeated, so that one compiled program runs grids of every length."""
    import numpy as np

    return np.append(grid, np.full(length - len(grid), grid[-1]))


def steps_within(sampler: Any, budgets: list[int]) -> dict[int, tuple[int, int]]:
    """For each budget of evaluations the most steps within it, and how many evaluations they make; counted in a run."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import samplers
    from diffusion_jax.predictions import Prediction

    calls: list[int] = []

    def denoiser(x_t: Any, t: Any, cond: Any) -> Prediction:
        jax.debug.callback(lambda: calls.append(1))
        return Prediction(x_t / 2, x_t / 2)

    keys, x = jax.random.split(jax.random.key(0), 1), jnp.ones((1, 1))

    @jax.jit
    def program(grid: Any, last: Any) -> Any:
        return samplers.run(sampler, denoiser, (x, sampler.init(x)), grid, {}, keys, 0, last)[0]

    found = {}
    for budget in budgets:
        for num_steps in range(budget, 0, -1):
            calls.clear()
            jax.block_until_ready(program(padded(np.linspace(0.9, 0, num_steps + 1), max(budgets) + 1), num_steps))
            jax.effects_barrier()
            if len(calls) <= budget:
                found[budget] = num_steps, len(calls)
                break
    return found
