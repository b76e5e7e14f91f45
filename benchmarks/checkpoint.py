"""How long a save keeps the training loop from its next step, and what the checksums cost, beside Orbax alone.

    python benchmarks/checkpoint.py --json=checkpoint.json
    python benchmarks/checkpoint.py --megabytes=600 --arrays=500 --repeats=5
    python benchmarks/checkpoint.py --devices=4 --json=sharded.json

The state is parameters, Adam's two moments and an EMA of random float32 in --arrays equal parts: many small ones are a U-Net, few
large ones a transformer whose blocks are scanned. With --devices it lies in shards, as the placement "sharded" has it, on as many
simulated devices where the backend is CPU, and comes back so. In turn, and in a process of their own: "ours" is
`training.checkpoint`, whose saves carry a checksum per array, and "orbax" is its CheckpointManager with StandardSave of the same
state. Columns, in milliseconds and for 100 MB of state but for the last:

  save      how long the call to save takes, the step before it done; and its thread's processor time, which other work on the
            machine disturbs least
  step      how much longer the next step takes than a usual one (where a copy of donated buffers would show)
  blocked   both: what the loop loses
  written   from the call until all is on disk, in the background
  restore   from disk into the device's memory; ours verifies each array
  checksum  the fingerprints of all arrays alone, which are part of our save and of our restore
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli

MEGABYTES = flags.DEFINE_integer("megabytes", 400, "Of the whole state.", lower_bound=1)
ARRAYS = flags.DEFINE_list("arrays", ["500", "40"], "Numbers of arrays of parameters, each measured.")
DEVICES = flags.DEFINE_integer("devices", 1, "Over which the state is sharded.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Saves and restores of each kind; the medians count.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
ONE = flags.DEFINE_enum("one", None, ["ours", "orbax"], "Measures one kind once, for itself.")
KINDS = ("ours", "orbax")
COLUMNS = ("save", "save, cpu", "step", "blocked", "written", "restore", "checksum")


class Ours:
    """`training.checkpoint` as a run uses it."""

    def __init__(self, workdir: pathlib.Path):
        import jax

        from diffusion_jax.training.checkpoint import Checkpoints

        self._jax = jax
        self._checkpoints = Checkpoints(workdir, max_to_keep=1)
        self.wait, self.close = self._checkpoints.wait, self._checkpoints.close

    def save(self, step: int, state: Any) -> None:
        self._checkpoints.save(state, {}, None)

    def restore(self, step: int, template: Any) -> Any:
        return self._checkpoints.restore(step, template, self._jax.tree.map(lambda x: x.sharding, template))


class Orbax:
    """The peer: one item, no checksums."""

    def __init__(self, workdir: pathlib.Path):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._manager = ocp.CheckpointManager(workdir, options=ocp.CheckpointManagerOptions(max_to_keep=1))
        self.wait, self.close = self._manager.wait_until_finished, self._manager.close

    def save(self, step: int, state: Any) -> None:
        self._manager.save(step, args=self._ocp.args.StandardSave(state))

    def restore(self, step: int, template: Any) -> Any:
        return self._manager.restore(step, args=self._ocp.args.StandardRestore(template))


def make_state(num_arrays: int) -> Any:
    """A train state of random numbers, which compress no better than a trained one's."""
    import jax
    import numpy as np
    import optax

    from diffusion_jax.training.placement import make_placement
    from diffusion_jax.training.step import TrainState

    rows = max(MEGABYTES.value * 1_000_000 // 16 // num_arrays // 512, 1)
    rng = np.random.default_rng(0)
    params, mu, nu, ema = (
        {f"layer_{i}": {"kernel": rng.standard_normal((rows, 512), np.float32)} for i in range(num_arrays)}
        for _ in range(4)
    )
    adam = optax.ScaleByAdamState(np.int32(0), mu, nu)
    state = TrainState(np.int32(0), params, (adam, optax.EmptyState()), ema)
    place = make_placement("sharded", jax.devices()[: DEVICES.value])
    return jax.block_until_ready(jax.device_put(state, place.shardings(state)))


def measure(kind: str, num_arrays: int, folder: str) -> dict[str, float]:
    """Milliseconds of one save and one restore, after one of each that does not count."""
    import jax

    from diffusion_jax.training.fingerprint import fingerprint

    change = jax.jit(lambda x: x * 2 if x.ndim else x + 1, donate_argnums=0)

    def step(state: Any) -> tuple[Any, float]:
        """As a step does: every array is replaced by another, in its own memory where that is free."""
        start = time.perf_counter()
        state = jax.block_until_ready(jax.tree.map(change, state))
        return state, time.perf_counter() - start

    state = make_state(num_arrays)
    saver, took = {"ours": Ours, "orbax": Orbax}[kind](pathlib.Path(folder)), {}
    for _ in range(2):
        usual = []
        for _ in range(5):
            state, seconds = step(state)
            usual.append(seconds)
        saved, start, busy = int(state.step), time.perf_counter(), time.thread_time()
        saver.save(saved, state)
        took["save"], took["save, cpu"] = time.perf_counter() - start, time.thread_time() - busy
        state, seconds = step(state)
        took["step"] = seconds - sorted(usual)[len(usual) // 2]
        took["blocked"] = took["save"] + took["step"]
        saver.wait()
        took["written"] = time.perf_counter() - start
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        start = time.perf_counter()
        jax.block_until_ready(saver.restore(saved, template))
        took["restore"] = time.perf_counter() - start
        start = time.perf_counter()
        fingerprint(state)
        took["checksum"] = time.perf_counter() - start
    saver.close()
    return {name: took[name] * 1000 for name in COLUMNS} | {"bytes": sum(x.nbytes for x in jax.tree.leaves(state))}


def apart(kind: str, num_arrays: int) -> dict[str, float]:
    """`measure` in a process of its own, so that neither kind finds the other's memory."""
    words = [f"--one={kind}", f"--megabytes={MEGABYTES.value}", f"--arrays={num_arrays}", f"--devices={DEVICES.value}"]
    simulated = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES.value}"
    env = os.environ | {"XLA_FLAGS": simulated.strip()}
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if ONE.value:
        cli.use_compilation_cache()
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(ONE.value, int(ARRAYS.value[0]), folder)))
        return
    rows = []
    print("| arrays of parameters | kind | " + " | ".join(COLUMNS) + " | blocked, whole state |")
    print("|---:|---|" + "---:|" * (len(COLUMNS) + 1))
    for num_arrays in map(int, ARRAYS.value):
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(REPEATS.value):  # in turn, so that what else the machine does falls on both
            for kind in KINDS:
                runs[kind].append(apart(kind, num_arrays))
        for kind in KINDS:
            middle = {name: sorted(run[name] for run in runs[kind])[REPEATS.value // 2] for name in (*COLUMNS, "bytes")}
            rows.append({"kind": kind, "arrays": num_arrays, "milliseconds": middle, "runs": runs[kind]})
            cells = [f"{middle[name] / middle['bytes'] * 1e8:.0f}" for name in COLUMNS] + [f"{middle['blocked']:.0f}"]
            print(f"| {num_arrays} | {kind} | " + " | ".join(cells) + " |", flush=True)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(
            json.dumps({"megabytes": MEGABYTES.value, "devices": DEVICES.value, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    cli.run(main)
