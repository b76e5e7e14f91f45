"""The train step and the sampler's step of an ADM-shaped U-Net, against the product's peak and against PyTorch's best.

    python benchmarks/unet_step.py --torch_python=/path/to/venv/bin/python --json=unet.json
    python benchmarks/unet_step.py --torch_python=/path/to/venv/bin/python --one_core --networks=adm
    python benchmarks/unet_step.py --torch_python=/path/to/venv/bin/python --size=large --dtype=bfloat16      # fills a GPU

A train step is forward, backward, AdamW and EMA of a squared error; a sampler's step is DDIM's. Random weights; float32 is
TensorFloat-32 on a GPU, on both sides. PyTorch runs the same shapes (--networks): "adm", its equal to the last parameter, and
"diffusers", UNet2DModel with the same widths, blocks, attention and resampling. Each eager and by torch.compile, in both of its
layouts (--modes, --layouts). Everything is timed in turn, round after round, and the best counts; --one_core counts one core's
processor time, for a machine that is busy.

The peak is the best rate of a large product (2048 wide, 8192 on a GPU) in the same type, of either library; operations are
XLA's count of our program. Memory is a step's peak: ours by the compiler (arguments, temporaries and results), PyTorch's as its
GPU's allocator saw it, without what other networks hold; on a CPU it does not tell.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import torch_peer
from peak import as_commands_do, one_core, product, seconds
from shapes import SIZES, SIZES_HELP

from diffusion_jax import cli

SIZE = flags.DEFINE_enum("size", "small", list(SIZES), SIZES_HELP)
BATCH = flags.DEFINE_integer("batch", None, "Instead of the size's own.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the blocks' arithmetic.")
REPEATS = flags.DEFINE_integer("repeats", 8, "Rounds; the best time of each counts.", lower_bound=1)
NETWORKS = flags.DEFINE_multi_enum("networks", ["adm", "diffusers"], ["adm", "diffusers"], "PyTorch's.")
MODES = flags.DEFINE_multi_enum("modes", ["eager", "compile"], ["eager", "compile"], "How PyTorch runs.")
LAYOUTS = flags.DEFINE_multi_enum(
    "layouts", ["contiguous", "channels_last"], ["contiguous", "channels_last"], "How PyTorch lays out images."
)
ONE_CORE = flags.DEFINE_bool("one_core", False, "Compute on one core and count the time that it computes for us.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
flags.adopt_module_key_flags(torch_peer)
STEPS = ("train", "sampler")


class Ours(NamedTuple):
    """Our network: parameters in number, and for each step a call, its operations and the bytes at its peak."""

    parameters: int
    steps: dict[str, Callable[[], Any]]
    flops: dict[str, float]
    memory: dict[str, int]


def ours(shape: dict[str, Any]) -> Ours:
    """The two steps, compiled."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from diffusion_jax.models import attention
    from diffusion_jax.models.unet import UNet, make_network

    image = (shape["image"], shape["image"], 3)
    trunk = (3, shape["channels"], tuple(shape["mults"]), shape["blocks"], tuple(shape["attention_factors"]))
    kernel = attention.choose("auto", jax.default_backend(), partitioned=False)
    module = UNet(*trunk, num_head_channels=shape["head"], attention=kernel, dtype=jnp.dtype(DTYPE.value))
    network = make_network(module, image)
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
    programs = {
        "train": jax.jit(train, donate_argnums=0).lower(state[0], x).compile(),
        "sampler": jax.jit(sampler).lower(params, x).compile(),
    }
    params = jax.tree.map(jnp.copy, params)  # the first step donates the others

    def train_once() -> Any:
        state[0] = programs["train"](state[0], x)
        return state[0]

    return Ours(
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        {"train": train_once, "sampler": lambda: programs["sampler"](params, x)},
        {name: program.cost_analysis()["flops"] for name, program in programs.items()},
        {name: program.memory_analysis().peak_memory_in_bytes for name, program in programs.items()},
    )


class Timers(NamedTuple):
    """Calls that return seconds, by "STEP WHAT" or "product ..."; what PyTorch's steps took of memory fills `memory`."""

    each: dict[str, Callable[[], float]]
    memory: dict[str, int | None]
    parameters: dict[str, int]


def peers(settings: dict[str, Any], product_request: str) -> Timers:
    """PyTorch's timers."""
    ask, memory = torch_peer.ask_of("unet_step_torch.py", settings), {}
    parameters = {network: ask(f"{network} parameters") for network in NETWORKS.value}

    def timer(name: str, request: str) -> Callable[[], float]:
        def ask_once() -> float:
            took, memory[name] = ask(request)
            return took

        return ask_once

    each = {"product PyTorch": lambda: min(ask(product_request) for _ in range(3))}
    for how in [f"{mode} {layout}" for mode in MODES.value for layout in LAYOUTS.value]:
        for network in NETWORKS.value:
            for step in STEPS:
                name = f"{step} PyTorch {network}, {how}"
                each[name] = timer(name, f"{network} {step} {how}")
    return Timers(each, memory, parameters)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    shape = SIZES[SIZE.value] | ({"batch": BATCH.value} if BATCH.value else {})
    clock = one_core() if ONE_CORE.value else time.perf_counter
    as_commands_do()
    import jax

    own, multiply = ours(shape), product(DTYPE.value)
    timers = {"product diffusion_jax": lambda: seconds(multiply.run, 3, clock)[0]}
    timers |= {f"{name} diffusion_jax": lambda fn=fn: seconds(fn, 1, clock)[0] for name, fn in own.steps.items()}
    memory: dict[str, int | None] = {f"{name} diffusion_jax": size for name, size in own.memory.items()}
    parameters, torch_memory = {"diffusion_jax": own.parameters}, {}
    if torch_peer.PYTHON.value:
        settings = shape | {"processor": ONE_CORE.value, "dtype": DTYPE.value}
        others, torch_memory, counts = peers(settings, multiply.request)
        assert counts.get("adm", own.parameters) == own.parameters, "the two networks differ"
        parameters |= {f"PyTorch {network}": count for network, count in counts.items()}
        timers |= others

    rounds = [{name: timer() for name, timer in timers.items()} for _ in range(REPEATS.value)]
    best, memory = {name: min(times[name] for times in rounds) for name in timers}, memory | torch_memory
    peak = multiply.flops / min(best.pop(name) for name in list(best) if name.startswith("product "))
    counted = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    print(f"{jax.local_devices()[0].device_kind}, {DTYPE.value}, batch {shape['batch']}; parameters: {counted}")
    print(f"product peak {peak / 1e9:.0f} GFLOP/s, best of {REPEATS.value} rounds")
    print(f"{'step':9}{'':42}{'ms':>10}{'images/s':>10}{'of peak':>10}{'GB':>8}")
    rows = []
    for name in sorted(best):
        step, what = name.split(" ", 1)
        row = {"step": step, "what": what, "seconds": best[name], "images_per_s": shape["batch"] / best[name]}
        row |= {"flops": own.flops[step], "share_of_peak": own.flops[step] / best[name] / peak, "bytes": memory[name]}
        rows.append(row)
        size = f"{row['bytes'] / 1e9:.3f}" if row["bytes"] else "-"
        print(
            f"{step:9}{what:42}{1e3 * best[name]:10.1f}{row['images_per_s']:10.1f}{row['share_of_peak']:10.1%}{size:>8}"
        )
    device = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    if "peak_bytes_in_use" in device:
        print(f"at the peak of all our steps {device['peak_bytes_in_use'] / 1e9:.2f} GB were in use on the device")
    if JSON.value:
        record = {"jax": jax.__version__, "shape": shape, "dtype": DTYPE.value, "parameters": parameters}
        record |= {"peak_flops_per_s": peak, "rows": rows, "rounds": rounds, "device_memory": device}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
