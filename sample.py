"""Samples images from a checkpoint.

    python sample.py --checkpoint=runs/scenes
    python sample.py --checkpoint=runs/scenes --prompt="a large red circle on a white background" --num_samples=8
    python sample.py --checkpoint=runs/scenes --prompts_file=prompts.txt --guidance_scale=1.5 --sampler=heun --num_steps=20

Everything else about the model is inside the checkpoint. An image depends on the checkpoint, the seed and its number
alone, not on the batch size or the devices.
"""

from absl import flags

from diffusion_jax import cli

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A training run's --workdir, or one step of it (DIR/checkpoints/STEP)."
)
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "A caption. Give it several times for several captions. [the config's prompts]"
)
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "A text file with one caption per line, added to --prompt.")
LABEL = flags.DEFINE_multi_integer("label", [], "A class, for class-conditional models. Repeatable. [every class]")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Images per prompt or class.", lower_bound=1)
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "Classifier-free guidance; 1 is off. [the config's]", lower_bound=0
)
SAMPLER = flags.DEFINE_string("sampler", None, "ancestral, ddim, euler or heun. [the config's]")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampler steps. [the config's]", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of all noise.", lower_bound=0, upper_bound=2**32 - 1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images sampled at a time, over all devices.", lower_bound=1)
OUT = flags.DEFINE_string("out", "samples", "Folder for the images; a new or empty one.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace earlier samples in --out.")
flags.adopt_module_key_flags(cli)
flags.mark_flag_as_required("checkpoint")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.use_compilation_cache()
    from diffusion_jax import sampling  # after the flags are right: JAX takes seconds to import

    sampling.run(
        sampling.Request(
            checkpoint=str(CHECKPOINT.value),
            prompts=tuple(PROMPT.value) + cli.read_lines(PROMPTS_FILE.value),
            labels=tuple(LABEL.value),
            num_samples=NUM_SAMPLES.value,
            overrides={
                "guidance_scale": GUIDANCE_SCALE.value,
                "sampler": SAMPLER.value,
                "num_steps": NUM_STEPS.value,
            },
            seed=SEED.value,
            batch_size=BATCH_SIZE.value,
            out=OUT.value,
            overwrite=OVERWRITE.value,
        )
    )


if __name__ == "__main__":
    cli.run(main)
