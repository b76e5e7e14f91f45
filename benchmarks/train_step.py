"""Speed of the train step and of the sampler's step, against this machine's own matrix-product peak.

    python benchmarks/train_step.py --config=configs/scenes.py
    python benchmarks/train_step.py --config=configs/scenes.py --config.train.batch_size=128 --json=out.json

Operations are XLA's own count for the compiled program, GB the memory at its peak by the compiler; the machine's peak is the best
rate of a large square float32 product, measured before and after in the same run. Machines are noisy: compare shares and ratios
of one run.
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags
from peak import as_commands_do, product, seconds

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.")
REPEATS = flags.DEFINE_integer("repeats", 15, "Timed runs of each program.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    as_commands_do()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import build, guidance, samplers
    from diffusion_jax.data.captions import CaptionTokenizer
    from diffusion_jax.keys import keys_per_example
    from diffusion_jax.training.step import init_state, make_train_step

    config, repeats = CONFIG.value, REPEATS.value
    tokenizer = CaptionTokenizer.train(["a large red circle on a white background"], config.text.vocab_size)
    model, optimizer, size = build.model(config, tokenizer), build.optimizer(config), config.train.batch_size
    state = init_state(model.network.init, optimizer, config.seed)
    cond = {name: np.stack([value] * size) for name, value in model.blank_cond.items()}
    batch = {"image": np.zeros((size, *model.image_shape), np.uint8), **cond}
    step = make_train_step(build.loss_per_example(model), optimizer, config.ema.decay, config.seed)
    train = jax.jit(lambda state, batch: step(state, batch, None)).lower(state, batch).compile()
    sampler = build.SAMPLERS[config.sample.sampler](model.process.schedule, config)

    def sampler_step(params: Any, x: Any, scale: Any) -> Any:
        denoiser = build.denoiser(model, params)
        if model.null_cond:
            denoiser = guidance.classifier_free(denoiser, model.null_cond, scale)
        keys = keys_per_example(jax.random.key(0), jnp.arange(size))
        return samplers.run(sampler, denoiser, (x, sampler.init(x)), jnp.array([0.6, 0.5]), cond, keys, 0, 1)[0]

    x, scale = jnp.zeros((size, *model.image_shape)), jnp.float32(3)
    sample = jax.jit(sampler_step).lower(state.params, x, scale).compile()
    multiply = product()

    best = seconds(multiply.run, repeats)[0]
    rows = []
    for name, program, args in (
        ("train step", train, (state, batch)),
        ("sampler step", sample, (state.params, x, scale)),
    ):
        times = seconds(lambda program=program, args=args: program(*args), repeats)
        best = min(best, seconds(multiply.run, repeats)[0])
        row = {"program": name, "median_s": times[len(times) // 2], "flops": program.cost_analysis()["flops"]}
        rows.append(row | {"bytes": program.memory_analysis().peak_memory_in_bytes})
    peak = multiply.flops / best
    print(f"{jax.local_devices()[0].device_kind}, batch {size}, float32 product peak {peak / 1e9:.0f} GFLOP/s")
    print(f"{'':14}{'ms/step':>10}{'images/s':>10}{'GFLOP':>10}{'of peak':>10}{'GB':>8}")
    for row in rows:
        row |= {"images_per_s": size / row["median_s"], "share_of_peak": row["flops"] / row["median_s"] / peak}
        print(
            f"{row['program']:14}{row['median_s'] * 1e3:10.1f}{row['images_per_s']:10.1f}{row['flops'] / 1e9:10.2f}"
            f"{row['share_of_peak']:10.1%}{row['bytes'] / 1e9:8.3f}"
        )
    if JSON.value:
        record = {"jax": jax.__version__, "batch_size": size, "peak_flops_per_s": peak, "rows": rows}
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
