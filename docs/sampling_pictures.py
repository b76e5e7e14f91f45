"""The pictures of docs/sampling.md and docs/glide.md, made by sample.py from the runs that docs/glide.md trains.

    python docs/sampling_pictures.py --runs=runs --out=docs/images

Prints each command that it runs; on two cores a command takes half a minute.
"""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli
from diffusion_jax.data.scenes import SHAPES
from diffusion_jax.errors import unknown_name
from diffusion_jax.images import labelled_grid, save_png

ROOT = pathlib.Path(__file__).parents[1]
INPUTS = ROOT / "docs" / "inputs"
RUNS = flags.DEFINE_string("runs", "runs", "The folder of the recipes' work directories.")
OUT = flags.DEFINE_string("out", "docs/images", "Where the pictures go.")
ONLY = flags.DEFINE_list("only", [], "Names of pictures, such as guidance,rerank. [all]")

STAR, RING = "a large red star on a black background", "a small blue ring on a black background"
GUIDED = ("a large green heart on a white background", "a small orange ring on a white background")
# Each subject is in the training pictures of at least four styles, never in this one.
EMOJI = (
    ("in the style of Firefox", "a grinning face", "a crying face", "a purple heart", "a pizza"),
    ("in the style of Firefox", "a neutral face", "a pig face", "an owl", "a carrot"),
    ("in the old style of EmojiOne", "a thinking face", "a lion", "an owl", "a butterfly"),
    ("in the old style of EmojiOne", "a carrot", "a kiwi fruit", "an avocado", "a hot dog"),
    ("in the style of EmojiOne", "a crying cat", "a grinning cat", "a kissing cat", "a pouting cat"),
)


def sample(folder: pathlib.Path, run: str, *flags_given: str, prompts: tuple[str, ...] = ()) -> pathlib.Path:
    """Runs sample.py and shows its command; returns its --out."""
    told = [f"--prompt={text}" for text in prompts]
    arguments = [f"--checkpoint={RUNS.value}/{run}", *told, *flags_given]
    print("python sample.py " + shlex.join(arguments), flush=True)
    subprocess.run(
        [sys.executable, ROOT / "sample.py", *arguments, f"--out={folder}"], check=True, stdout=subprocess.DEVNULL
    )
    return folder


def pictures(folder: pathlib.Path) -> np.ndarray:
    """What sample.py drew, uint8 [N, H, W, 3]."""
    with np.load(folder / "samples.npz") as file:
        return file["arr_0"]


def guidance(folder: pathlib.Path) -> Image.Image:
    """The same noise under two kinds of guidance and none."""
    clip = ("--guidance=none", f"--classifier={RUNS.value}/scenes_clip", "--guidance_interval=0,0.9")
    ways = {
        "no guidance": ("scenes_base", "--guidance=none"),
        "classifier-free guidance, 2": ("scenes_finetune_cfg", "--guidance_scale=2"),
        "classifier-free guidance, 4": ("scenes_finetune_cfg", "--guidance_scale=4"),
        "CLIP guidance, 3": ("scenes_base", *clip, "--classifier_scale=3"),
        "CLIP guidance, 30": ("scenes_base", *clip, "--classifier_scale=30"),
    }
    rows = []
    for i, (name, (run, *given)) in enumerate(ways.items()):
        made = pictures(sample(folder / str(i), run, *given, "--num_samples=4", prompts=GUIDED))
        rows.append((name, np.concatenate([made[0::2], made[1::2]])))
    return labelled_grid(rows, cell_pixels=64)


def classes(folder: pathlib.Path) -> Image.Image:
    """A model that is told nothing, pulled by a classifier: the same noise at each scale, four classes."""
    names, rows = ("circle", "square", "triangle", "star"), []
    labels = [f"--label={SHAPES.index(name)}" for name in names]
    classifier = (f"--classifier={RUNS.value}/scenes_classifier", "--guidance_interval=0,0.9")
    for scale in (0, 1, 4, 16):
        given = (*classifier, f"--classifier_scale={scale}", *labels, "--num_samples=3")
        made = pictures(sample(folder / str(scale), "scenes_unconditional", *given))
        shown = np.concatenate([made[i :: len(names)] for i in range(len(names))])
        rows.append((f"scale {scale}: {', '.join(f'3 to be a {name}' for name in names)}", shown))
    return labelled_grid(rows, cell_pixels=64)


def _star(folder: pathlib.Path) -> pathlib.Path:
    """A picture to edit."""
    return sample(folder / "star", "scenes_finetune_cfg", "--num_samples=1", prompts=(STAR,)) / "000000.png"


def inpainting(folder: pathlib.Path) -> Image.Image:
    """A part drawn anew by another caption."""
    given = (f"--init_image={_star(folder)}", f"--mask={INPUTS / 'mask.png'}")
    return _grid(sample(folder / "made", "scenes_inpaint", *given, "--num_samples=6", prompts=(RING,)))


def outpainting(folder: pathlib.Path) -> Image.Image:
    """A border around a picture."""
    given = (f"--init_image={_star(folder)}", "--outpaint=16,0,16,0")
    return _grid(sample(folder / "made", "scenes_inpaint", *given, "--num_samples=3", prompts=(STAR,)))


def drawing(folder: pathlib.Path) -> Image.Image:
    """A drawing and a text."""
    given = (f"--init_image={INPUTS / 'drawing.png'}", "--strength=0.8")
    return _grid(sample(folder / "made", "scenes_finetune_cfg", *given, "--num_samples=6", prompts=(STAR,)))


def edits(folder: pathlib.Path) -> Image.Image:
    """Each edit repaints what the one before made."""
    then, rows = [], []
    for i, caption in enumerate((STAR, RING, "a large green cross on a black background")):
        if i:
            then += [f"--then_prompt={caption}", f"--then_mask={INPUTS / 'mask.png'}"]
        made = pictures(sample(folder / str(i), "scenes_inpaint", *then, "--num_samples=6", prompts=(STAR,)))
        rows.append((("" if not i else "then ") + caption, made))
    return labelled_grid(rows)


def upsampling(folder: pathlib.Path) -> Image.Image:
    """Both stages."""
    prompts = ("a small cyan ring on a white background", "a large yellow star on a grey background")
    made = sample(
        folder / "made",
        "scenes_finetune_cfg",
        f"--upsampler={RUNS.value}/scenes_upsample",
        "--num_samples=3",
        prompts=prompts,
    )
    with np.load(made / "base_samples.npz") as file:
        small = file["arr_0"]
    enlarged = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)
    return labelled_grid([("base, 32 pixels", enlarged), ("upsampler, 64 pixels", pictures(made))], cell_pixels=128)


def between(folder: pathlib.Path) -> Image.Image:
    """From one caption to another, with one noise."""
    captions = (STAR, "a large blue circle on a white background")
    return _grid(
        sample(folder / "made", "scenes_finetune_cfg", "--interpolate_prompts", "--num_samples=8", prompts=captions)
    )


def rerank(folder: pathlib.Path) -> Image.Image:
    """The best four of 32 by a CLIP, and the first four."""
    caption = ("a small purple star on a grey background",)
    clip = f"--rerank={RUNS.value}/scenes_clip"
    every = sample(folder / "all", "scenes_finetune_cfg", "--guidance_scale=1", "--num_samples=32", prompts=caption)
    ranked = sample(
        folder / "best",
        "scenes_finetune_cfg",
        "--guidance_scale=1",
        "--num_samples=32",
        clip,
        "--best=32",
        prompts=caption,
    )
    scores = [image["clip_score"] for image in json.loads((ranked / "samples.json").read_text())["images"]]
    best = pictures(ranked)
    return labelled_grid(
        [
            ("the first eight of 32", pictures(every)[:8]),
            (f"the best eight by CLIP, scores {scores[0]:.2f} to {scores[7]:.2f}", best[:8]),
            (f"the worst eight, {scores[-8]:.2f} to {scores[-1]:.2f}", best[-8:]),
        ],
        cell_pixels=64,
    )


def variations(folder: pathlib.Path) -> Image.Image:
    """From a picture's own noise."""
    given = (f"--init_image={_star(folder)}", "--invert", "--eta=0.5")
    return _grid(sample(folder / "made", "scenes_finetune_cfg", *given, "--num_samples=6", prompts=(STAR,)))


def animation(folder: pathlib.Path) -> pathlib.Path:
    """The denoising, as a GIF."""
    prompts = (STAR, "a small cyan ring on a white background")
    made = sample(folder / "made", "scenes_finetune_cfg", "--animation", "--num_samples=4", prompts=prompts)
    return made / "animation.gif"


def emoji(folder: pathlib.Path) -> Image.Image:
    """Twenty captions whose subject was never drawn in their style, two pictures each."""
    prompts = [f"{what}, {style}" for style, *subjects in EMOJI for what in subjects]
    made = sample(
        folder / "made", "emoji", f"--upsampler={RUNS.value}/emoji_upsample", "--num_samples=2", prompts=tuple(prompts)
    )
    drawn, rows = pictures(made).reshape(2, len(EMOJI), -1, 64, 64, 3), []
    for (style, *subjects), first, second in zip(EMOJI, *drawn, strict=True):
        both = np.stack([first, second], 1).reshape(-1, 64, 64, 3)
        rows.append((f"{style}: {', '.join(subjects)}", both))
    return labelled_grid(rows, cell_pixels=64)


def emoji_inpainting(folder: pathlib.Path) -> Image.Image:
    """The lower half of an emoji drawn anew."""
    face = "a grinning face, in the style of Noto"
    given = sample(folder / "face", "emoji", "--num_samples=1", prompts=(face,)) / "000000.png"
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 16, 32, 32))
    mask.save(folder / "mask.png")
    flags_given = (f"--init_image={given}", f"--mask={folder / 'mask.png'}", "--num_samples=6")
    wanted = ("a crying face, in the style of Noto",)
    return _grid(sample(folder / "made", "emoji_inpaint", *flags_given, prompts=wanted))


def _grid(folder: pathlib.Path) -> Image.Image:
    return Image.open(folder / "grid.png")


PICTURES = (
    guidance,
    classes,
    inpainting,
    outpainting,
    drawing,
    edits,
    upsampling,
    between,
    rerank,
    variations,
    animation,
    emoji,
    emoji_inpainting,
)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    out, known = pathlib.Path(OUT.value), [make.__name__ for make in PICTURES]
    if unknown := [name for name in ONLY.value if name not in known]:
        raise unknown_name("picture", unknown[0], known)
    for make in PICTURES:
        if ONLY.value and make.__name__ not in ONLY.value:
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = make(pathlib.Path(folder))
            if isinstance(made, pathlib.Path):
                shutil.copy(made, out / f"sampling_{make.__name__}{made.suffix}")
            else:
                save_png(made.convert("RGB").quantize(128), out / f"sampling_{make.__name__}.png")


if __name__ == "__main__":
    cli.run(main)
