"""Samples images from a checkpoint.

    python sample.py --checkpoint=runs/scenes
    python sample.py --checkpoint=runs/scenes --prompt="a large red circle on a white background" --num_samples=8
    python sample.py --checkpoint=runs/scenes --sampler=dpmpp_2m --num_steps=12 --guidance_scale=1.5 --guidance_interval=0.2,0.9

From a picture: redraw it by a prompt (SDEdit), repaint the white part of a mask, or vary it by its own noise:

    python sample.py --checkpoint=runs/scenes --prompt="..." --init_image=a.png --strength=0.7
    python sample.py --checkpoint=runs/scenes --prompt="..." --init_image=a.png --mask=m.png
    python sample.py --checkpoint=runs/scenes --prompt="..." --init_image=a.png --invert --eta=0.5
    python sample.py --checkpoint=runs/scenes --prompt="..." --init_image=a.png --outpaint=16,0,16,0
    python sample.py --checkpoint=runs/scenes --prompt="..." --then_prompt="..." --then_mask=m.png

From one caption to another, the best of many, and how pictures form:

    python sample.py --checkpoint=runs/scenes --prompt="a red star" --prompt="a blue ring" --interpolate_prompts --num_samples=8
    python sample.py --checkpoint=runs/scenes --prompt="..." --num_samples=64 --rerank=runs/scenes_clip --best=8
    python sample.py --checkpoint=runs/scenes --prompt="..." --animation

In two stages, from text or from a class, and with a classifier of noisy images:

    python sample.py --checkpoint=runs/glide_base --upsampler=runs/glide_upsample --prompt="an oil painting of a corgi"
    python sample.py --checkpoint=runs/adm_64_cond --classifier=runs/adm_classifier_64 --label=207 --classifier_scale=1
    python sample.py --checkpoint=runs/adm_upsampler_64_256 --base_samples=samples/samples.npz

Everything else about the model is inside the checkpoint. An image depends on the checkpoint, the seed and its number
alone, not on the batch size or the devices.
"""

from absl import flags

from diffusion_jax import cli
from diffusion_jax.errors import UserError

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A training run's --workdir, or one step of it (DIR/checkpoints/STEP)."
)
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "A caption. Give it several times for several captions. [the config's prompts]"
)
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "A text file with one caption per line, added to --prompt.")
EMA_DECAY = flags.DEFINE_float(
    "ema_decay", None, "Of the average of the weights: one that the run kept. [config.ema.decay]"
)
EMA_STD = flags.DEFINE_float(
    "ema_std",
    None,
    "Relative length of the average of the weights, such as 0.13, made of config.ema.posthoc_stds' snapshots.",
)
LABEL = flags.DEFINE_multi_integer(
    "label", [], "A class, for models of classes. Repeatable. [every class, or 8 at random]"
)
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    None,
    "Images per prompt or class. [4; of vectors, as many as training's pictures show]",
    lower_bound=1,
)

SAMPLER = flags.DEFINE_string(
    "sampler",
    None,
    "ancestral, ddim, plms, euler, euler_ancestral, heun, midpoint, lms, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde or unipc; "
    "docs/samplers.md compares them. [the config's]",
)
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Sampler steps. [the config's]", lower_bound=1)
GRID = flags.DEFINE_string(
    "grid", None, "The times visited: uniform, quadratic, shifted, karras, logsnr or respaced. [the config's]"
)
SPACING = flags.DEFINE_string(
    "spacing", None, "Steps of a DDPM table for --grid=respaced: 250, ddim25, 10,15,20 or fast27. [the config's]"
)
ETA = flags.DEFINE_float(
    "eta", None, "Noise of ddim, euler_ancestral and the _sde samplers; 0 is none. [each one's own]", lower_bound=0
)
ORDER = flags.DEFINE_integer(
    "order", None, "Order of plms, lms and unipc. [each one's own]", lower_bound=1, upper_bound=4
)
CHURN = flags.DEFINE_float("churn", None, "heun: EDM's S_churn, noise added back on the way. [0]", lower_bound=0)
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "Of the first noise; GLIDE upsamples at 0.997. [1]", lower_bound=0
)

GUIDANCE = flags.DEFINE_string(
    "guidance", None, "classifier_free, autoguidance by --weak_checkpoint, or none. [the config's]"
)
GUIDANCE_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "How much further than the guide to go; 1 is off. [the config's]", lower_bound=0
)
GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval",
    None,
    "LOW,HIGH: guide (a --classifier too) at times between them only, 0 is data and 1 noise. [0,1]",
)
GUIDANCE_COMBINE = flags.DEFINE_string(
    "guidance_combine", None, "plain, rescaled (less over-exposure) or projected (APG: less saturation). [the config's]"
)
GUIDANCE_RESCALE = flags.DEFINE_float(
    "guidance_rescale", None, "rescaled: share of the spread pulled back. [0.7]", lower_bound=0, upper_bound=1
)
NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", None, "A caption to be guided away from. [the empty one]")
WEAK_CHECKPOINT = flags.DEFINE_string("weak_checkpoint", None, "autoguidance: the weaker model, an earlier checkpoint.")
CLASSIFIER = flags.DEFINE_string(
    "classifier",
    None,
    "A checkpoint of a classifier of noisy images, which pulls towards --label, or of a noised CLIP, towards --prompt.",
)
CLASSIFIER_SCALE = flags.DEFINE_float(
    "classifier_scale", None, "How hard --classifier pulls; 0 is off. [the config's]", lower_bound=0
)
THRESHOLD = flags.DEFINE_string(
    "threshold", None, "Of predicted images: clip to the range, dynamic (Imagen's) or none. [the config's]"
)

UPSAMPLER = flags.DEFINE_string(
    "upsampler", None, "A checkpoint that enlarges what --checkpoint makes, told the same captions or classes."
)
UPSAMPLER_SPACING = flags.DEFINE_string("upsampler_spacing", None, "--spacing of --upsampler. [its config's]")
BASE_SAMPLES = flags.DEFINE_string(
    "base_samples", None, "An npz of small pictures, for a --checkpoint that is an upsampler."
)

INIT_IMAGE = flags.DEFINE_multi_string("init_image", [], "A picture to begin from; two with --interpolate --invert.")
MASK = flags.DEFINE_string("mask", None, "A picture of --init_image's shape: white is redrawn, black is kept.")
STRENGTH = flags.DEFINE_float(
    "strength",
    None,
    "How far --init_image goes back to noise: 1 is all the way. [0.7; 1 with --mask, --edit or --invert]",
    lower_bound=0,
    upper_bound=1,
)
EDIT = flags.DEFINE_enum(
    "edit",
    None,
    ["replace", "repaint", "product"],
    "How the kept part is held: replace (GLIDE's), repaint (RePaint: slower, fits better) or product (a noisy picture is "
    "denoised). [replace]",
)
RESAMPLES = flags.DEFINE_integer("resamples", 5, "repaint: how often each part of the way is gone.", lower_bound=1)
OBSERVATION_NOISE = flags.DEFINE_float(
    "observation_noise", 0.1, "product: deviation of the picture's noise, in [-1, 1] units.", lower_bound=0
)
INVERT = flags.DEFINE_bool(
    "invert", False, "Find the noise that makes --init_image (DDIM inversion) and begin from it."
)
INTERPOLATE = flags.DEFINE_bool(
    "interpolate", False, "Go from the first to the last sample's noise; with --invert from picture to picture."
)

INTERPOLATE_PROMPTS = flags.DEFINE_bool(
    "interpolate_prompts", False, "Go from the first to the second --prompt, with one noise, in --num_samples pictures."
)
OUTPAINT = flags.DEFINE_list(
    "outpaint", None, "LEFT,TOP,RIGHT,BOTTOM: pixels of a border to be drawn around --init_image, at the model's size."
)
THEN_PROMPT = flags.DEFINE_multi_string(
    "then_prompt", [], "Repaint what was made by this caption, where --then_mask is white. Repeatable: edit after edit."
)
THEN_MASK = flags.DEFINE_multi_string("then_mask", [], "The mask of each --then_prompt, in order.")

RERANK = flags.DEFINE_string(
    "rerank", None, "A checkpoint of a CLIP, which chooses the --best of each prompt's --num_samples."
)
BEST = flags.DEFINE_integer("best", 1, "Of each prompt, with --rerank; the best comes first.", lower_bound=1)
ANIMATION = flags.DEFINE_bool("animation", False, "Also write animation.gif: the pictures as they form, as foreseen.")

SEED = flags.DEFINE_integer("seed", 0, "Of all noise.", lower_bound=0, upper_bound=2**32 - 1)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images sampled at a time, over all devices. [32; of vectors, all]", lower_bound=1
)
OUT = flags.DEFINE_string("out", "samples", "Folder for the images; a new or empty one.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace earlier samples in --out.")
flags.adopt_module_key_flags(cli)
flags.mark_flag_as_required("checkpoint")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.start()
    low, high = cli.interval("guidance_interval", GUIDANCE_INTERVAL.value)
    if EMA_DECAY.value is not None and EMA_STD.value is not None:
        raise UserError("--ema_decay and --ema_std name two averages: give one.")
    if len(THEN_PROMPT.value) != len(THEN_MASK.value):
        raise UserError("each --then_prompt needs its --then_mask, which is white where it repaints.")
    margins = tuple(cli.floats("outpaint", OUTPAINT.value)) if OUTPAINT.value else None
    from diffusion_jax import sampling  # after the flags are right: JAX takes seconds to import
    from diffusion_jax.sampling import pictures

    sampling.run(
        sampling.Request(
            checkpoint=str(CHECKPOINT.value),
            prompts=tuple(PROMPT.value) + cli.read_lines(PROMPTS_FILE.value),
            labels=tuple(LABEL.value),
            num_samples=NUM_SAMPLES.value,
            overrides={
                "sampler": SAMPLER.value,
                "num_steps": NUM_STEPS.value,
                "grid": GRID.value,
                "spacing": SPACING.value,
                "eta": ETA.value,
                "order": ORDER.value,
                "churn": CHURN.value,
                "temperature": TEMPERATURE.value,
                "guidance": GUIDANCE.value,
                "guidance_scale": GUIDANCE_SCALE.value,
                "guidance_low": low,
                "guidance_high": high,
                "guidance_combine": GUIDANCE_COMBINE.value,
                "guidance_rescale": GUIDANCE_RESCALE.value,
                "threshold": THRESHOLD.value,
                "classifier_scale": CLASSIFIER_SCALE.value,
            },
            seed=SEED.value,
            batch_size=BATCH_SIZE.value,
            out=OUT.value,
            overwrite=OVERWRITE.value,
            negative_prompt=NEGATIVE_PROMPT.value,
            weak_checkpoint=WEAK_CHECKPOINT.value,
            classifier=CLASSIFIER.value,
            upsampler=UPSAMPLER.value,
            upsampler_overrides={"spacing": UPSAMPLER_SPACING.value},
            base_samples=BASE_SAMPLES.value,
            average=sampling.Average(EMA_DECAY.value, EMA_STD.value),
            edit=pictures.Edit(
                init_images=tuple(INIT_IMAGE.value),
                mask=MASK.value,
                strength=STRENGTH.value,
                edit=EDIT.value,
                resamples=RESAMPLES.value,
                observation_noise=OBSERVATION_NOISE.value,
                invert=INVERT.value,
                interpolate=INTERPOLATE.value,
            ),
            interpolate_prompts=INTERPOLATE_PROMPTS.value,
            outpaint=margins,
            rounds=tuple(zip(THEN_PROMPT.value, THEN_MASK.value, strict=True)),
            rerank=RERANK.value,
            best=BEST.value,
            animation=ANIMATION.value,
        )
    )


if __name__ == "__main__":
    cli.run(main)
