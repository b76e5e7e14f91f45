"""What each sampler costs beyond its network evaluations, at the size of the demo.

    python benchmarks/sampler_overhead.py --config=configs/scenes.py --json=overhead.json
    python benchmarks/sampler_overhead.py --config=configs/scenes.py --samplers=ddim,unipc --repeats=9

Three loops of one structure, each one compiled program: the sampler with the network (guided), the same number of network
evaluations alone, and the sampler at the same shapes with a denoiser that costs nothing (x0 = x_t / 2, eps = x_t / 4). The first
minus the second is the overhead as a user meets it, but it is a small difference of large times, which a busy machine drowns; the
third is the overhead itself. Its share of the network's time is the figure to hold below 2%. Times are the best of the repeats,
which alternate between the first two programs. Parameters are random.
"""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags
from peak import as_commands_do

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.")
SAMPLERS = flags.DEFINE_list("samplers", None, "Only these. [all]")
NUM_STEPS = flags.DEFINE_integer("num_steps", 5, "Steps of a timed run with the network.", lower_bound=2)
OWN_STEPS = flags.DEFINE_integer("own_steps", 50, "Steps of a timed run without the network.", lower_bound=2)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs with the network; ten times as many without.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
START = 0.9  # of the grid: every sampler can begin there
# Evaluations of N steps, where they are not N (benchmarks/samplers.py counts them in a run).
EVALUATIONS: dict[str, Callable[[int], int]] = {
    "heun": lambda n: 2 * n - 1,
    "midpoint": lambda n: 2 * n,
    "plms": lambda n: n + 1,
}


def seconds(fn: Callable[[], Any]) -> tuple[float, float]:
    """The time of one call, and the processor's time of all threads for it."""
    import jax

    start, busy = time.perf_counter(), time.process_time()
    jax.block_until_ready(fn())
    return time.perf_counter() - start, time.process_time() - busy


def best(times: list[tuple[float, float]], num_steps: int) -> tuple[float, float]:
    """The least of each column, for one step."""
    return min(wall for wall, _ in times) / num_steps, min(busy for _, busy in times) / num_steps


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.use_compilation_cache()
    as_commands_do()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import build, grids, guidance, samplers
    from diffusion_jax.data.captions import CaptionTokenizer
    from diffusion_jax.keys import keys_per_example
    from diffusion_jax.predictions import Prediction

    config, repeats, num_steps, own_steps = CONFIG.value, REPEATS.value, NUM_STEPS.value, OWN_STEPS.value
    tokenizer = CaptionTokenizer.train(["a large red circle on a white background"], config.text.vocab_size)
    model, size = build.model(config, tokenizer), config.train.batch_size
    params, schedule = jax.jit(model.network.init)(jax.random.key(config.seed)), model.process.schedule
    cond = {name: np.stack([value] * size) for name, value in model.blank_cond.items()}
    x = jax.random.normal(jax.random.key(1), (size, *model.image_shape))

    def guided(params: Any) -> Any:
        denoiser = build.denoiser(model, params)
        return guidance.classifier_free(denoiser, model.null_cond, 2.0) if model.null_cond else denoiser

    def free(x_t: Any, t: Any, cond: Any) -> Prediction:
        return Prediction(x_t / 2, x_t / 4)

    @jax.jit
    def network_alone(params: Any, x: Any, count: Any) -> Any:
        def body(i: Any, x: Any) -> Any:
            return guided(params)(x, START - 0.001 * i, cond).x0

        return jax.lax.fori_loop(0, count, body, x)

    def loop(sampler: Any, steps: int, denoiser_of: Callable[[Any], Any]) -> Callable[..., Any]:
        @jax.jit
        def program(params: Any, x: Any, first: Any, last: Any) -> Any:
            keys = keys_per_example(jax.random.key(0), jnp.arange(size))
            carry, grid = (x, sampler.init(x)), grids.uniform(steps, START)
            return samplers.run(sampler, denoiser_of(params), carry, grid, cond, keys, first, last)[0]

        return program

    rows = []
    print(
        f"{jax.local_devices()[0].device_kind}, jax {jax.__version__}, batch {size}; ms per step, the best of the runs;"
    )
    print("cpu: processor time of all threads, which other work on the machine disturbs least\n")
    print("| sampler | whole | network | whole, cpu | network, cpu | own | own, cpu | own / network | the same, cpu |")
    print("|---|" + "---:|" * 8)
    for name in SAMPLERS.value or build.SAMPLERS:
        sampler = build.SAMPLERS[name](schedule, config)
        count = EVALUATIONS.get(name, lambda n: n)(num_steps)
        whole, own = loop(sampler, num_steps, guided), loop(sampler, own_steps, lambda params: free)
        calls = (
            functools.partial(whole, params, x, 0, num_steps),
            functools.partial(network_alone, params, x, count),
        )
        runs = [[seconds(call) for call in calls] for _ in range(repeats + 1)][1:]
        times, alone = (best(list(column), num_steps) for column in zip(*runs, strict=True))
        own_call = functools.partial(own, params, x, 0, own_steps)
        own_times = best([seconds(own_call) for _ in range(10 * repeats + 1)][1:], own_steps)
        row = {"sampler": name, "evaluations": count, "num_steps": num_steps}
        row |= {"whole_s": times[0], "network_s": alone[0], "whole_cpu_s": times[1], "network_cpu_s": alone[1]}
        row |= {"own_s": own_times[0], "own_cpu_s": own_times[1]}
        row |= {"share": own_times[0] / alone[0], "share_cpu": own_times[1] / alone[1]}
        rows.append(row)
        cells = [f"{row[key] * 1e3:.1f}" for key in ("whole_s", "network_s", "whole_cpu_s", "network_cpu_s")]
        cells += [f"{row[key] * 1e3:.2f}" for key in ("own_s", "own_cpu_s")]
        cells += [f"{row[key]:.2%}" for key in ("share", "share_cpu")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if JSON.value:
        record = {"jax": jax.__version__, "batch_size": size, "rows": rows}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
