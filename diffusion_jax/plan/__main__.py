"""Does a recipe fit on these chips, and how long does its step take? Without an accelerator, and without data.

    python -m diffusion_jax.plan --config=configs/glide_paper_base.py --topology=v5e:16x16 --placement=pmap,sharded
    python -m diffusion_jax.plan --config=configs/adm_64_cond.py --topology=v4:4x4x8 --nocompile
    python -m diffusion_jax.plan --config=configs/scenes.py:debug --topology=local

First by arithmetic, in seconds: the train state against a chip's memory. What passes that is compiled, the very step that
train.py runs, by the TPU's own compiler (pip install -e '.[plan]'), which takes minutes for a large network. Fields of
the recipe are set as for train.py: --config.parallel.mesh=1,64,1 --config.train.batch_size=512. docs/plan.md explains the figures.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from diffusion_jax import cli
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.plan import chips

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, as configs/NAME.py or configs/NAME.py:VARIANT.")
TOPOLOGY = flags.DEFINE_string("topology", None, f"Chips to plan for, such as {chips.EXAMPLES}.")
PLACEMENT = flags.DEFINE_list("placement", None, "Placements to compare: pmap, sharded, single. [the config's]")
COMPILE = flags.DEFINE_bool("compile", True, "--nocompile stops at the size of the state.")
MEMORY_ONLY = flags.DEFINE_bool(
    "memory_only",
    False,
    "Stops the TPU's compiler when each array has its place: minutes instead of an hour for a huge network.",
)
JSON = flags.DEFINE_string("json", None, "A file for all figures.")
flags.mark_flags_as_required(["config", "topology"])


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    topology = str(TOPOLOGY.value)
    chip, count = chips.parse(topology)
    chips.prepare_environment(topology)
    from diffusion_jax.plan import estimate, layout, recipe, report  # JAX reads the environment when it is imported
    from diffusion_jax.training.placement import PLACEMENTS

    if MEMORY_ONLY.value and (chip is None or not COMPILE.value):
        raise UserError("--memory_only is about compiling for a TPU's --topology; leave it out.")
    config = CONFIG.value
    placements = PLACEMENT.value or [config.parallel.placement]
    for placement in placements:
        if placement not in PLACEMENTS:
            raise unknown_name("--placement", placement, PLACEMENTS)
    devices = chips.devices(topology) if COMPILE.value or chip is None else ()
    plan = recipe.recipe(config)
    meshes = {placement: estimate.mesh(plan, placement, count or len(devices)) for placement in placements}
    work, found = report.Work(recipe.image_flops(plan), 0), []
    name = str(config_flags.get_config_filename(flags.FLAGS["config"]))
    print(report.head(plan, name, topology, chip, count or len(devices), work), flush=True)
    for placement, mesh in meshes.items():
        program = None
        if COMPILE.value and (chip is None or sum(estimate.state_bytes(plan, mesh).values()) <= chip.hbm):
            work = work._replace(step_flops=work.step_flops or recipe.step_flops(plan))
            if MEMORY_ONLY.value:
                program = layout.lay_out(config, topology, placement, mesh)
            else:
                program = estimate.compile_step(plan, placement, mesh, devices)
        found.append(report.of(plan, chip, placement, mesh, program, work))
        print(report.text(found[-1], config), flush=True)
    if JSON.value:
        _write(pathlib.Path(JSON.value), {"config": name, "topology": topology, "placements": found})


def _write(path: pathlib.Path, figures: dict) -> None:
    try:
        path.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write --json={path}: {error.strerror}.") from error


if __name__ == "__main__":
    cli.run(main)
