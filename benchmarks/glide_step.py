"""One evaluation of a network of GLIDE's base size, against this machine's matrix-product peak and against PyTorch.

    python benchmarks/glide_step.py
    python benchmarks/glide_step.py --torch_python=/path/to/venv/bin/python --repeats=5 --json=glide.json
    python benchmarks/glide_step.py --torch_python=/path/to/venv/bin/python --one_core

385 million parameters, text (128 tokens) included, 64 x 64 pixels, float32, random weights; batch 2 is what
classifier-free guidance of one image takes. Everything is timed in turn, round after round, and the best counts. Where others
compute all the time even the best tells little, most of all of PyTorch, whose threads wait for one another: --one_core
counts one core's processor time instead. The peak is the best rate of a large product (2048 wide, 8192 on a GPU), of
either library; float32 is TensorFloat-32 on a GPU, on both sides.

Operations are XLA's own count for the compiled program; PyTorch does the same work, eager, in both of its layouts, and its
share is of the same operations (its own count is printed beside them).
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import torch_peer
from peak import as_commands_do, one_core, product, seconds

from diffusion_jax import cli

BATCHES = flags.DEFINE_list("batches", ["1", "2"], "Batch sizes.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; the best time of each counts.", lower_bound=1)
ONE_CORE = flags.DEFINE_bool("one_core", False, "Compute on one core and count the time that it computes for us.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
flags.adopt_module_key_flags(torch_peer)


def our_programs(batches: list[int]) -> tuple[int, dict[str, Callable[[], Any]], dict[int, float]]:
    """The number of parameters, a program to time per batch, and its operations."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax.models.text import TextTransformer
    from diffusion_jax.models.unet import UNet, make_network

    text = TextTransformer(vocab_size=50257, context_length=128, width=512, num_layers=16, num_heads=8)
    network = make_network(UNet(6, 192, (1, 2, 3, 4), 3, (2, 4, 8), num_head_channels=64, text=text), (64, 64, 3))
    template, rng = jax.eval_shape(network.init, jax.random.key(0)), np.random.default_rng(0)
    # Drawn rather than initialised: compiling that takes longer than all that is timed.
    params = jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), template)
    programs, flops = {}, {}
    for batch in batches:
        tokens = jnp.arange(batch * 128).reshape(batch, 128)
        inputs = (jnp.ones((batch, 64, 64, 3)), jnp.full(batch, 500.0), {"tokens": tokens, "mask": tokens % 128 < 20})
        program = jax.jit(network.apply).lower(params, *inputs).compile()
        programs[f"{batch} diffusion_jax"] = lambda program=program, inputs=inputs: program(params, *inputs)
        flops[batch] = program.cost_analysis()["flops"]
    return sum(leaf.size for leaf in jax.tree.leaves(params)), programs, flops


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    clock = one_core() if ONE_CORE.value else time.perf_counter
    as_commands_do()
    import jax

    batches = [int(batch) for batch in BATCHES.value]
    parameters, programs, flops = our_programs(batches)
    timers = {name: lambda fn=fn: seconds(fn, 1, clock)[0] for name, fn in programs.items()}
    multiply = product()
    timers["product"] = lambda: seconds(multiply.run, 3, clock)[0]
    print(f"{jax.local_devices()[0].device_kind}, {parameters:,} parameters, float32")
    if torch_peer.PYTHON.value:
        ask = torch_peer.ask_of("glide_step_torch.py", {"processor": ONE_CORE.value})
        assert ask("parameters") == parameters, "the two networks differ"
        for batch in batches:
            print(f"batch {batch}: {flops[batch] / 1e9:.0f} GFLOP by XLA, {ask(f'flops {batch}') / 1e9:.0f} by PyTorch")
        timers["torch product"] = lambda: min(ask(multiply.request) for _ in range(3))
        for layout in ("contiguous", "channels_last"):
            timers |= {f"{n} PyTorch, {layout}": lambda n=n, how=layout: ask(f"{n} {how}") for n in batches}

    rounds = [{name: timer() for name, timer in timers.items()} for _ in range(REPEATS.value)]
    best = {name: min(times[name] for times in rounds) for name in timers}
    peak = multiply.flops / min(best.pop("product"), best.pop("torch product", float("inf")))
    print(f"product peak {peak / 1e9:.0f} GFLOP/s, best of {REPEATS.value} rounds")
    print(f"{'batch':7}{'':24}{'seconds':>10}{'GFLOP':>10}{'of peak':>10}")
    rows = []
    for name in sorted(best):
        batch, what = name.split(" ", 1)
        operations = flops[int(batch)]
        row = {"batch": int(batch), "what": what, "seconds": best[name], "flops": operations}
        rows.append(row | {"share_of_peak": operations / best[name] / peak})
        print(f"{batch:7}{what:24}{best[name]:10.2f}{operations / 1e9:10.0f}{rows[-1]['share_of_peak']:10.1%}")
    if JSON.value:
        record = {"jax": jax.__version__, "peak_flops_per_s": peak, "rows": rows, "rounds": rounds}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
