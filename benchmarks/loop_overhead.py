"""What the training loop adds to the compiled train step, and what several steps per dispatch would save.

    python benchmarks/loop_overhead.py --config=configs/scenes.py
    python benchmarks/loop_overhead.py --config=configs/heartbeat.py --steps=200

In turn and in the same run: the compiled step called in a loop; the training loop (`training/loop.train`: batches, metrics to
CSV and TensorBoard, no checkpoints); and --scan steps as one program. Then the loop around a step that does nothing, by the
processor time of its thread, which a busy machine does not disturb: what the loop itself does per step, its log included.
"""

import functools
import itertools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags
from peak import as_commands_do

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of a round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of each, in turn.", lower_bound=1)
SCAN = flags.DEFINE_integer("scan", 5, "Steps of one program, a divisor of --steps.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
EMPTY_STEPS = 2000


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    as_commands_do()
    import jax
    import numpy as np

    from diffusion_jax import build
    from diffusion_jax.data.captions import CaptionTokenizer
    from diffusion_jax.training import loop
    from diffusion_jax.training.hooks import MetricWriter
    from diffusion_jax.training.step import init_state

    config, count, chunk = CONFIG.value, STEPS.value, SCAN.value
    tokenizer = CaptionTokenizer.train(["a large red circle on a white background"], config.text.vocab_size)
    model, optimizer, size = build.model(config, tokenizer), build.optimizer(config), config.train.batch_size
    place, step = build.placement(config), build.train_step(model, optimizer)
    cond = {name: np.stack([value] * size) for name, value in model.blank_cond.items()}
    image = np.zeros((size, *model.image_shape), np.uint8 if len(model.image_shape) == 3 else np.int32)
    batch = {"image": image, **cond}
    placed = place.train(step)
    bare = jax.jit(functools.partial(step, axis_name=None), donate_argnums=0)

    @functools.partial(jax.jit, donate_argnums=0)
    def several(state: Any, batches: Any) -> Any:
        return jax.lax.scan(lambda state, batch: step(state, batch, None), state, batches)

    def start() -> Any:
        make = functools.partial(init_state, model.network.init, optimizer, config.seed)
        return make(build.loss_history(model), len(build.averages(config)), shardings=place.shardings)

    on_device, stacked = jax.device_put(batch), jax.device_put(jax.tree.map(lambda x: np.stack([x] * chunk), batch))

    def run_bare() -> float:
        state, values = bare(start(), on_device)
        jax.block_until_ready(values)
        since = time.perf_counter()
        for _ in range(count):
            state, values = bare(state, on_device)
        jax.block_until_ready((state, values))
        return (time.perf_counter() - since) / count

    def run_scan() -> float:
        state, values = several(start(), stacked)
        jax.block_until_ready(values)
        since = time.perf_counter()
        for _ in range(count // chunk):
            state, values = several(state, stacked)
        jax.block_until_ready((state, values))
        return (time.perf_counter() - since) / (count // chunk * chunk)

    def looped(step: Callable[..., Any], steps: int, clock: Callable[[], float]) -> float:
        """Per step, from the second step to the last one's metrics."""
        began = []

        def timed(state: Any, batch: Any) -> Any:
            began.append(clock())
            return step(state, batch)

        cadence = loop.Cadence(steps + 1, config.train.log_every_steps, steps + 2, steps + 2)
        with tempfile.TemporaryDirectory() as folder:
            metrics = MetricWriter(pathlib.Path(folder), loop.METRICS, 0)
            ended = []
            hooks = loop.Hooks(lambda state: ended.append(clock()), lambda: None, metrics)
            loop.train(start(), timed, itertools.repeat(batch), cadence, hooks, time.monotonic())
            metrics.close()
        return (ended[0] - began[1]) / steps

    def run_loop() -> float:
        return looped(placed, count, time.perf_counter)

    runs = {"compiled step": run_bare, "training loop": run_loop, f"{chunk} steps per dispatch": run_scan}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS.value):
        for name, run in runs.items():
            times[name].append(run())
    ready = placed(start(), batch)
    empty = looped(lambda state, batch: (state, ready[1]), EMPTY_STEPS, time.thread_time)

    base = min(times["compiled step"])
    print(f"{jax.local_devices()[0].device_kind}, batch {size}, {ROUNDS.value} rounds of {count} steps in turn")
    print(f"{'':24}{'least ms':>10}{'median ms':>11}{'least, of the step':>20}")
    for name, each in times.items():
        each.sort()
        print(f"{name:24}{each[0] * 1e3:10.3f}{each[len(each) // 2] * 1e3:11.3f}{each[0] / base:20.3f}")
    print(f"{'the loop itself':24}{empty * 1e3:10.3f}{'':11}{empty / base:20.2%}")
    if JSON.value:
        record = {"jax": jax.__version__, "batch_size": size, "seconds": times, "loop_itself_s": empty}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
