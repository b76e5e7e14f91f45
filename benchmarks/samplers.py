"""Which sampler for how many network evaluations: on data with an exact denoiser, and on a trained checkpoint.

    python benchmarks/samplers.py --problem=mixture --json=mixture.json
    python benchmarks/samplers.py --problem=checkpoint --checkpoint=runs/scenes --json=checkpoint.json
    python benchmarks/samplers.py --problem=mixture --redraw=mixture.json          # the plot and the table again

Draws docs/images/samplers_PROBLEM.png and prints the tables of docs/samplers.md. Evaluations of the denoiser are counted, not
taken from a formula. All samplers begin from the same noise.

mixture: five Gaussians in the plane, deviation about 0.5 as images have. Left, the root-mean-square distance of a deterministic
sampler's result from the solution of the probability-flow ODE from the same start (1,000 steps of UniPC); right, for every
sampler, the sliced Wasserstein distance from the data: over 32 directions, the mean distance of the sorted samples from the exact
quantiles. Each sampler is shown on the grid of GRIDS that gives it the lowest such error, in the geometric mean over the budgets.

checkpoint: a text-conditional model of captioned scenes, guided. The caption checker's scores, and a Frechet distance on 16 fixed
random-convolution features (not FID): two layers of random 3 x 3 convolutions, their mean and deviation over the picture, on the 16
principal axes of real renders, each scaled to unit variance. It is taken from other real renders of the same captions, and depends
on the number of samples: compare within one run.
"""

import json
import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import sampler_checkpoint
import sampler_mixture
import sampler_plots

from diffusion_jax import cli
from diffusion_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
PROBLEM = flags.DEFINE_enum("problem", None, ["mixture", "checkpoint"], "What is sampled.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A training run of captioned scenes, for --problem=checkpoint.")
BUDGETS = flags.DEFINE_list("budgets", None, "Network evaluations at most. [mixture: 6 to 64, checkpoint: 6,10,20]")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", None, "Samples. [mixture: 20000, checkpoint: 128]", lower_bound=2)
GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", 1.5, "Of --problem=checkpoint.")
SAMPLERS = flags.DEFINE_list("samplers", None, "Only these. [all]")
SEED = flags.DEFINE_integer("seed", 0, "Of all noise.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
REDRAW = flags.DEFINE_string("redraw", None, "A file of --json: draws and prints it, without measuring.")
OUT = flags.DEFINE_string("out", str(ROOT / "docs" / "images"), "A folder for the plot.")
flags.adopt_module_key_flags(cli)

MIXTURE_BUDGETS = (6, 8, 12, 16, 24, 32, 48, 64)
CHECKPOINT_BUDGETS = (6, 10, 20)


def chosen() -> list[str]:
    """The names of --samplers, or of all."""
    from diffusion_jax import build

    return SAMPLERS.value or list(build.SAMPLERS)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.use_compilation_cache()
    budgets = [int(text) for text in BUDGETS.value or ()]
    if REDRAW.value:
        record = json.loads(pathlib.Path(REDRAW.value).read_text())
    elif PROBLEM.value == "mixture":
        count = NUM_SAMPLES.value or 20000
        record = sampler_mixture.measure(chosen(), budgets or list(MIXTURE_BUDGETS), count, SEED.value)
    elif CHECKPOINT.value:
        of, count = (CHECKPOINT.value, GUIDANCE_SCALE.value), NUM_SAMPLES.value or 128
        record = sampler_checkpoint.measure(*of, chosen(), budgets or list(CHECKPOINT_BUDGETS), count, SEED.value)
    else:
        raise UserError("--problem=checkpoint needs --checkpoint=RUN, a training run of captioned scenes.")
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    draw = sampler_plots.draw_mixture if record["problem"] == "mixture" else sampler_plots.draw_checkpoint
    draw(record, out / f"samplers_{record['problem']}.png")


if __name__ == "__main__":
    flags.mark_flag_as_required("problem")
    cli.run(main)
