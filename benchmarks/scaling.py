"""Weak scaling over simulated devices: what a train step's devices send each other, and what a step costs each of them.

    python benchmarks/scaling.py --json=scaling.json
    python benchmarks/scaling.py --configs=configs/scenes.py:debug --devices=1,2 --steps=0       # only what is sent
    python benchmarks/scaling.py --configs=configs/adm_64_cond.py --devices=8 --steps=0

Every device has the same number of examples, whatever their number. Placements: pmap (lowered as on several processes), sharded
over data alone (mesh N,1,1) and over fsdp alone (1,N,1). Each number of devices is a process of its own, whose host simulates them.

Calls and bytes are read from the compiled step (`plan/hlo.py`): exact, and the same on a busy machine. MB is of the whole arrays
that are summed, gathered or scattered; "received" is what must arrive at each device for that. The least, of n devices that
share a batch, is 2 (n - 1) / n of the parameters' bytes, in float32: one all-reduce of all gradients, or over fsdp one gathering
of the parameters and one scattering of the gradients. A step that lets the gathered parameters go after the forward pass, as
fsdp is meant to where memory is short, gathers twice: 1.5 times the least. The CPU's compiler leaves calls apart that a TPU's or
GPU's combines.

"cpu" is a step's processor time for each example over that of one device: simulated devices share the cores, so that wall time
grows with their number even if nothing is sent. It holds the exchanges' copies and the waiting of those that spin, and tells
nothing of a real link.
"""

import json
import os
import pathlib
import runpy
import sys
import time
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from simulated import run_apart

from diffusion_jax import cli
from diffusion_jax.errors import UserError

CONFIGS = flags.DEFINE_list(
    "configs", ["configs/scenes.py:debug", "configs/scenes.py"], "Recipes, as PATH or PATH:VARIANT."
)
DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of simulated devices.")
EXAMPLES = flags.DEFINE_integer("examples", 4, "Of each device.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 5, "Timed steps, of which the median counts; 0 times none.", lower_bound=0)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
ONE = flags.DEFINE_string("one", None, "Measures one recipe on all devices of this process, for itself.")
flags.adopt_module_key_flags(cli)

# A program that is only read needs no fast instructions: minutes less for a compilation, the same exchanges.
UNTIMED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
PLACEMENTS = {"pmap": ("pmap", (1, -1, 1)), "data": ("sharded", (-1, 1, 1)), "fsdp": ("sharded", (1, -1, 1))}


def load(recipe: str) -> Any:
    """The config of PATH or PATH:VARIANT."""
    path, _, variant = recipe.partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--configs={recipe}: no such file. Recipes are in configs/.")
    return runpy.run_path(path)["get_config"](*([variant] if variant else []))


def seconds_per_example(compiled: Any, plan: Any, num_steps: int) -> float:
    """The median processor time of a step from a state of zeros, for each example."""
    import jax
    import numpy as np

    def zeros(shapes: Any, places: Any) -> Any:
        return jax.tree.map(lambda x, place: jax.device_put(np.zeros(x.shape, x.dtype), place), shapes, places)

    state, batch = map(zeros, (plan.state, plan.batch), compiled.input_shardings[0])
    times = []
    for _ in range(num_steps + 1):
        jax.block_until_ready((state, batch))
        since = time.process_time()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.process_time() - since)
    return sorted(times[1:])[num_steps // 2] / len(batch["image"])


def measure(recipe: str) -> list[dict[str, Any]]:
    """A row for each placement on all devices there are."""
    import jax

    from diffusion_jax import build
    from diffusion_jax.plan import hlo
    from diffusion_jax.plan import recipe as recipes

    rows, count = [], len(jax.devices())
    for name, (placement, mesh) in PLACEMENTS.items():
        config = load(recipe)
        config.train.batch_size = EXAMPLES.value * count * config.train.accumulation
        config.parallel.update(placement=placement, mesh=mesh)
        plan = recipes.recipe(config)
        lowered = build.placement(config).lower_train(plan.step, plan.state, plan.batch)
        compiled = lowered.compile(None if STEPS.value else UNTIMED)
        exchanges = {kind: found._asdict() for kind, found in hlo.collectives(compiled.as_text()).items()}
        row = {"recipe": recipe, "devices": count, "placement": name, "exchanges": exchanges}
        for total in ("calls", "bytes", "received"):
            row[total] = sum(found[total] for found in exchanges.values())
        row["least_received"] = 2 * (count - 1) / count * sum(x.size * 4 for x in jax.tree.leaves(plan.state.params))
        if STEPS.value:
            row["cpu_s_per_example"] = seconds_per_example(compiled, plan, STEPS.value)
        rows.append(row)
    return rows


def cells(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """A line of the table; base is the same recipe's and placement's row of the fewest devices."""
    kinds = ", ".join(f"{found['calls']} {kind}" for kind, found in row["exchanges"].items()) or "none"
    least, ratio = row["least_received"], "-"
    if least:
        ratio = f"{row['received'] / least:.3f}"
    cpu = f"{row['cpu_s_per_example'] / base['cpu_s_per_example']:.2f}" if STEPS.value else "-"
    sizes = [f"{size / 1e6:.2f}" for size in (row["bytes"], row["received"], least)]
    return [row["recipe"], row["placement"], str(row["devices"]), kinds, *sizes, ratio, cpu]


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if ONE.value:
        cli.use_compilation_cache()
        print(json.dumps(measure(ONE.value)))
        return
    for recipe in CONFIGS.value:
        load(recipe)  # what is wrong with a name, before anything slow
    print(f"{EXAMPLES.value} examples of each device; MB are 1e6 bytes\n")
    print("| recipe | placement | devices | calls | MB | received | least | of the least | cpu |")
    print("|---|---|---:|---|" + "---:|" * 5, flush=True)
    rows: list[dict[str, Any]] = []
    for recipe in CONFIGS.value:
        first: dict[str, dict[str, Any]] = {}
        for num_devices in sorted(map(int, DEVICES.value)):
            words = [f"--one={recipe}", f"--examples={EXAMPLES.value}", f"--steps={STEPS.value}"]
            for row in run_apart(__file__, words, num_devices):
                rows.append(row)
                print(f"| {' | '.join(cells(row, first.setdefault(row['placement'], row)))} |", flush=True)
    if JSON.value:
        record = {"examples_per_device": EXAMPLES.value, "cores": os.cpu_count(), "rows": rows}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
