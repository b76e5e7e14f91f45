"""Scores a checkpoint: do its pictures show what their captions say?

    python -m diffusion_jax.evaluate --checkpoint=runs/scenes
    python -m diffusion_jax.evaluate --checkpoint=runs/scenes --guidance_scales=1,2,4 --num_samples=256 --split=test

For captioned scenes: samples the captions of a split that training never saw ("validation": new captions of known
colour-shape pairs; "test": colour-shape pairs never seen together), reads the pictures back with the caption checker,
and prints each attribute's score beside its score on real renders of the same captions.

For swiss_roll and heartbeat: the variational bound on the log2-likelihood of held-out data, beside the true likelihood and
the figures of Sohl-Dickstein et al. 2015.
"""

import json
import pathlib
from typing import Any

from absl import flags

from diffusion_jax import cli, processes

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A training run's --workdir, or one step of it (DIR/checkpoints/STEP)."
)
GUIDANCE_SCALES = flags.DEFINE_list("guidance_scales", ["1", "2", "4"], "Guidance scales to compare; 1 is off.")
VECTORS = 4096  # held-out examples of a bound, where --num_samples is not given
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 256, "Images per guidance scale; examples of a bound (4096 where it is not given).", lower_bound=1
)
SPLIT = flags.DEFINE_enum("split", "validation", ["train", "validation", "test"], "Whose captions to sample.")
SAMPLER = flags.DEFINE_string("sampler", None, "A sampler's name, as sample.py's --sampler. [the config's]")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampler steps. [the config's]", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of all noise.", lower_bound=0, upper_bound=2**32 - 1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images sampled at a time, over all devices.", lower_bound=1)
OUT = flags.DEFINE_string(
    "out", None, "A JSON file for the scores and their protocol. [CHECKPOINT's workdir/scores_SPLIT.json]"
)
flags.adopt_module_key_flags(cli)


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Rows of scores by attribute, as text; a dash where an attribute has no score."""
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    width = max(map(len, scores)) + 2
    lines = [" " * width + "".join(f"{name.replace('_and_', '+'):>14}" for name in names)]
    for label, row in scores.items():
        lines.append(
            f"{label:{width}}" + "".join(f"{row[name]:14.3f}" if name in row else f"{'-':>14}" for name in names)
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.start()
    scales = cli.floats("guidance_scales", GUIDANCE_SCALES.value)
    import jax
    import numpy as np
    import tqdm

    from diffusion_jax import build, sampling, vectors
    from diffusion_jax.data.pipeline import as_text
    from diffusion_jax.errors import UserError
    from diffusion_jax.metrics import caption_checker

    loaded = sampling.load(str(CHECKPOINT.value), {"sampler": SAMPLER.value, "num_steps": NUM_STEPS.value})
    model, config = loaded.model, loaded.model.config
    out = pathlib.Path(OUT.value) if OUT.value else loaded.workdir / f"scores_{SPLIT.value}.json"
    if vectors.is_vector(model):
        source = processes.first_then_others(lambda: build.source(config, SPLIT.value))
        count = min(NUM_SAMPLES.value if NUM_SAMPLES.present else VECTORS, len(source))
        x0 = np.stack([source[i]["image"] for i in range(count)])
        scores = vectors.score(model, loaded.params, x0, SEED.value)
        steps = config.diffusion.num_table_steps
        print(
            f"{config.data.name}, {count} of the {SPLIT.value} split, all {steps} steps; log2-likelihood in bits per example:"
        )
        print(vectors.score_text(scores))
        record = {"checkpoint": str(loaded.workdir), "step": loaded.step, "split": SPLIT.value, "num_samples": count}
        record |= {"seed": SEED.value, "jax": jax.__version__, "scores": scores}
        return _write(out, record)
    if config.data.name != "captioned_scenes" or config.model.condition != "text":
        raise UserError(
            "the caption checker reads text-conditional models of captioned_scenes; this checkpoint is another."
        )
    source = processes.first_then_others(lambda: build.source(config, SPLIT.value))
    count = min(NUM_SAMPLES.value, len(source))
    examples = [source[i] for i in range(count)]
    captions = [as_text(example["caption"]) for example in examples]
    place = build.placement(config)
    batch_size = -(-min(BATCH_SIZE.value, count) // place.num_devices) * place.num_devices
    generate, grid, cond = build.generate(model, place), build.grid(model), build.prompt_cond(model, captions)
    knobs = build.knobs(model)
    scores = {"real renders": caption_checker.score(np.stack([example["image"] for example in examples]), captions)}
    total = len(scales) * -(-count // batch_size) * config.sample.num_steps
    with tqdm.tqdm(total=total, desc="sample", unit="step", dynamic_ncols=True) as bar:
        for scale in scales:
            scaled = knobs._replace(guidance_scale=scale)
            made = generate(loaded.params, cond, np.arange(count), SEED.value, scaled, grid, batch_size, bar.update)
            scores[f"guidance {scale:g}"] = caption_checker.score(made, captions)
    print(f"{count} captions of the {SPLIT.value} split, {config.sample.sampler} with {config.sample.num_steps} steps:")
    print(score_table(scores))
    record = {
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "split": SPLIT.value,
        "num_samples": count,
        "seed": SEED.value,
        "sample": config.sample.to_dict(),
        "jax": jax.__version__,
        "scores": scores,
    }
    _write(out, record)


def _write(out: pathlib.Path, record: dict[str, Any]) -> None:
    if processes.first():
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    flags.mark_flag_as_required("checkpoint")
    cli.run(main)
