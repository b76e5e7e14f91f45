"""The train step and the sampler's step of an ADM-shaped U-Net, against the product's peak and against PyTorch's best.

    python benchmarks/unet_step.py --torch_python=/path/to/venv/bin/python --json=unet.json
    python benchmarks/unet_step.py --torch_python=/path/to/venv/bin/python --one_core
    python benchmarks/unet_step.py --torch_python=/path/to/venv/bin/python --size=large      # fills a GPU

A train step is forward, backward, AdamW and EMA of a squared error; a sampler's step is DDIM's. float32, random weights.
PyTorch runs the same shapes, eager and by torch.compile, in both of its layouts (--modes, --layouts). Everything is timed in
turn, round after round, and the best counts; --one_core counts one core's processor time, for a machine that is busy.
The peak is the best rate of a 2048-wide product, of either library; operations are XLA's count of our program.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from peak import PRODUCT_FLOPS, product, seconds

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli

SIZES = {
    "small": {
        "image": 32,
        "batch": 16,
        "channels": 64,
        "mults": [1, 2, 2],
        "blocks": 2,
        "attention_factors": [2, 4],
        "head": 32,
    },
    "large": {
        "image": 64,
        "batch": 64,
        "channels": 192,
        "mults": [1, 2, 3, 4],
        "blocks": 3,
        "attention_factors": [2, 4, 8],
        "head": 64,
    },
}
SIZE = flags.DEFINE_enum(
    "size", "small", list(SIZES), "small: two cores can do it; large: ADM at 64 pixels, for a GPU."
)
REPEATS = flags.DEFINE_integer("repeats", 8, "Rounds; the best time of each counts.", lower_bound=1)
TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "A Python that has PyTorch, to be timed beside.")
MODES = flags.DEFINE_multi_enum("modes", ["eager", "compile"], ["eager", "compile"], "How PyTorch runs.")
LAYOUTS = flags.DEFINE_multi_enum(
    "layouts", ["contiguous", "channels_last"], ["contiguous", "channels_last"], "How PyTorch lays out images."
)
ONE_CORE = flags.DEFINE_bool("one_core", False, "Compute on one core and count the time that it computes for us.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")


def our_steps(shape: dict[str, Any]) -> tuple[int, dict[str, Callable[[], Any]], dict[str, float]]:
    """The number of parameters, and the two steps with their operations."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from diffusion_jax.models.unet import UNet, make_network

    image = (shape["image"], shape["image"], 3)
    trunk = (3, shape["channels"], tuple(shape["mults"]), shape["blocks"], tuple(shape["attention_factors"]))
    network = make_network(UNet(*trunk, num_head_channels=shape["head"]), image)
    template, rng = jax.eval_shape(network.init, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), template)
    x = jnp.asarray(rng.standard_normal((shape["batch"], *image), np.float32))
    time, optimizer = jnp.full(len(x), 500.0), optax.adamw(1e-4)

    def train(state: Any, x: Any) -> Any:
        params, opt_state, average = state
        grads = jax.grad(lambda p: jnp.mean(jnp.square(network.apply(p, x, time, {}) - x)))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, jax.tree.map(lambda a, p: 0.999 * a + 0.001 * p, average, params)

    def sampler(params: Any, x: Any) -> Any:
        eps = network.apply(params, x, time, {})
        return 0.6 * (x - 0.8 * eps) / 0.6 + 0.7 * eps

    state = [(params, optimizer.init(params), jax.tree.map(jnp.copy, params))]
    trained = jax.jit(train, donate_argnums=0).lower(state[0], x).compile()
    sampled = jax.jit(sampler).lower(params, x).compile()
    params = jax.tree.map(jnp.copy, params)  # the first step donates the others

    def train_once() -> Any:
        state[0] = trained(state[0], x)
        return state[0]

    steps = {"train": train_once, "sampler": lambda: sampled(params, x)}
    flops = {"train": trained.cost_analysis()["flops"], "sampler": sampled.cost_analysis()["flops"]}
    return sum(leaf.size for leaf in jax.tree.leaves(params)), steps, flops


def torch_answers(shape: dict[str, Any]) -> Callable[[str], float]:
    """A function from a request to its answer by unet_step_torch.py, which runs as a process of its own."""
    script = pathlib.Path(__file__).with_name("unet_step_torch.py")
    command = [TORCH_PYTHON.value, str(script), json.dumps(shape), *(["processor"] if ONE_CORE.value else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(request: str) -> float:
        print(request, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    return ask


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    clock, shape = time.perf_counter, SIZES[SIZE.value]
    if ONE_CORE.value:
        clock = time.process_time
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before jax counts the cores; PyTorch inherits it
    import jax

    parameters, steps, flops = our_steps(shape)
    multiply = product()
    timers = {"product": lambda: seconds(multiply, 3, clock)[0]}
    timers |= {f"{name} diffusion_jax": lambda fn=fn: seconds(fn, 1, clock)[0] for name, fn in steps.items()}
    if TORCH_PYTHON.value:
        ask = torch_answers(shape)
        assert ask("parameters") == parameters, "the two networks differ"
        timers["torch product"] = lambda: min(ask("product") for _ in range(3))
        hows = [f"{mode} {layout}" for mode in MODES.value for layout in LAYOUTS.value]
        timers |= {f"{s} PyTorch {how}": lambda s=s, how=how: ask(f"{s} {how}") for s in steps for how in hows}

    rounds = [{name: timer() for name, timer in timers.items()} for _ in range(REPEATS.value)]
    best = {name: min(times[name] for times in rounds) for name in timers}
    peak = PRODUCT_FLOPS / min(best.pop("product"), best.pop("torch product", float("inf")))
    print(f"{jax.local_devices()[0].device_kind}, {parameters:,} parameters, float32, batch {shape['batch']}")
    print(f"product peak {peak / 1e9:.0f} GFLOP/s, best of {REPEATS.value} rounds")
    print(f"{'step':9}{'':30}{'ms':>10}{'images/s':>10}{'of peak':>10}")
    rows = []
    for name in sorted(best):
        step, what = name.split(" ", 1)
        row = {"step": step, "what": what, "seconds": best[name], "images_per_s": shape["batch"] / best[name]}
        rows.append(row | {"flops": flops[step], "share_of_peak": flops[step] / best[name] / peak})
        print(f"{step:9}{what:30}{1e3 * best[name]:10.1f}{row['images_per_s']:10.1f}{rows[-1]['share_of_peak']:10.1%}")
    if JSON.value:
        record = {"jax": jax.__version__, "shape": shape, "peak_flops_per_s": peak, "rows": rows, "rounds": rounds}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
