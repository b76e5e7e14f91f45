"""How long the host takes to send one compiled step to the devices, by the number of arrays in its state.

    python benchmarks/dispatch.py --json=dispatch.json
    python benchmarks/dispatch.py --leaves=100,1000 --devices=1,4 --torch_python=/path/to/venv/bin/python

The step adds 1 to a state of N arrays of 8 numbers, through `training/placement.py` as train.py runs its own; pmap and sharded
(over fsdp) on each of --devices simulated devices, single on one. Beside it a bare jax.jit of the same step, that of one array
alone, and PyTorch's fused AdamW step over N tensors of as many numbers (which computes more: its moments).

Milliseconds of processor time for a step, which a busy machine disturbs less than the time that passes; the least of the rounds'
medians: "host" of the calling thread alone, "all" of the process. Where an accelerator works the host's part is what counts: it
hides behind the step before as long as it is shorter. On a CPU the calling thread may run a part of the step itself, so that
host is an upper bound there.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import torch_peer
from costs import costs
from simulated import run_apart

from diffusion_jax import cli

LEAVES = flags.DEFINE_list("leaves", ["100", "1000", "4000"], "Numbers of arrays in the state.")
DEVICES = flags.DEFINE_list("devices", ["1", "4"], "Numbers of simulated devices, for pmap and sharded.")
STEPS = flags.DEFINE_integer("steps", 30, "Steps of a round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
ONE = flags.DEFINE_integer(
    "one", None, "Measures a state of so many arrays on all devices of this process, for itself."
)
flags.adopt_module_key_flags(torch_peer)
WIDTH = 8  # numbers of an array


def measure(num_leaves: int) -> list[dict[str, Any]]:
    """A row for each placement, for jit alone and for jit of one array, on all devices of this process."""
    import jax
    import numpy as np

    from diffusion_jax.training.placement import all_mean, make_placement

    count, rows = len(jax.devices()), []

    def step(state: Any, batch: Any, axis_name: str | None) -> Any:
        return jax.tree.map(lambda x: x + 1, state), {"loss": all_mean(batch["image"].mean(), axis_name)}

    def row(what: str, run: Callable[[Any, Any], Any], state: Any, batch: Any) -> None:
        held = [state]

        def once() -> None:
            held[0] = run(held[0], batch)[0]

        took = costs(once, STEPS.value, ROUNDS.value, lambda: jax.block_until_ready(held[0]))
        rows.append({"what": what, "devices": count, "leaves": len(jax.tree.leaves(state))} | took)

    def state_of(leaves: int) -> Any:
        return {f"layer_{i}": {"kernel": np.ones(WIDTH, np.float32)} for i in range(leaves)}

    batch = {"image": np.ones((count, WIDTH), np.float32)}
    if count == 1:
        bare = jax.jit(functools.partial(step, axis_name=None), donate_argnums=0)
        row("jit", bare, jax.device_put(state_of(num_leaves)), jax.device_put(batch))
        if num_leaves == 1:
            return rows
    for name in ("single", "pmap", "sharded") if count == 1 else ("pmap", "sharded"):
        place = make_placement(name)
        state = state_of(num_leaves)
        row(name, place.train(step), jax.device_put(state, place.shardings(state)), batch)
    return rows


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if ONE.value:
        print(json.dumps(measure(ONE.value)))
        return
    leaves, rows = [int(text) for text in LEAVES.value], []
    for num_devices in map(int, DEVICES.value):
        for count in [1, *leaves] if num_devices == 1 else leaves:
            words = [f"--one={count}", f"--steps={STEPS.value}", f"--rounds={ROUNDS.value}"]
            rows += run_apart(__file__, words, num_devices)
    if torch_peer.PYTHON.value:
        ask = torch_peer.ask_of("dispatch_torch.py", {"processor": True})
        for count in leaves:
            took = ask(f"{count} {WIDTH} {STEPS.value} {ROUNDS.value}")
            rows.append({"what": "PyTorch's fused AdamW", "devices": 1, "leaves": count} | took)
    print("| step | devices | arrays | host, ms | all, ms | host, us an array |")
    print("|---|" + "---:|" * 5)
    for row in sorted(rows, key=lambda row: (row["what"], row["devices"], row["leaves"])):
        each = 1e6 * row["host_s"] / row["leaves"]
        sizes = (
            f"{row['devices']} | {row['leaves']} | {1e3 * row['host_s']:.3f} | {1e3 * row['all_s']:.3f} | {each:.2f}"
        )
        print(f"| {row['what']} | {sizes} |")
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
