"""GLIDE's stages on captioned scenes, by the caption checker: guidance of two kinds, repainting by caption, enlarging.

    python benchmarks/glide_stages.py --runs=runs                    # docs/glide.md trains scenes_base and the others there

Four tables. Guidance: the same captions and noise without guidance, with classifier-free guidance (scenes_finetune_cfg) and
with CLIP's (scenes_base and scenes_clip), as GLIDE's comparison of the two. Unseen: captions whose colour and shape training
never showed together, beside new captions of known pairs. Repainting: the box around a scene's object is drawn anew by another
caption of the same background and size, by the network that was fine-tuned for it and by editing.py's methods with one that was
not; `untouched` is the share of known pixels that are equal to the last bit. Enlarging: means over 2 x 2 pixels of real scenes,
by scenes_upsample and by Pillow's bicubic; then the base's own pictures.
"""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli
from diffusion_jax.errors import unknown_name

RUNS = flags.DEFINE_string("runs", "runs", "The folder of the recipes' work directories.")
COUNT = flags.DEFINE_integer("num_samples", 256, "Captions.", lower_bound=1)
SCALES = flags.DEFINE_list("guidance_scales", ["0", "1", "2", "4", "8"], "Of classifier-free guidance; 1 is off.")
CLIP_SCALES = flags.DEFINE_list("clip_scales", ["1", "3", "10", "30"], "Of CLIP's gradient; 0 is off.")
CLIP_HIGH = flags.DEFINE_float("clip_high", 0.9, "The time above which CLIP does not guide.", 0, 1)
BATCH = flags.DEFINE_integer("batch_size", 64, "Pictures at a time.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of all noise.")
TABLES = flags.DEFINE_list("tables", ["guidance", "unseen", "repainting", "enlarging"], "Which of them.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
COLUMNS = ("colour", "size", "shape", "background", "count", "all")
flags.adopt_module_key_flags(cli)


def load(name: str, **overrides: Any) -> Any:
    """A recipe's run, with fields of config.sample changed."""
    from diffusion_jax import sampling

    return sampling.load(str(pathlib.Path(RUNS.value) / name), overrides)


def sampler(loaded: Any, guide: Any = None, edit: str = "none") -> Callable[..., np.ndarray]:
    """A stage: (captions, scale of its guidance, shown conditions, inputs) -> uint8 [N, H, W, 3]; picture i has noise i."""
    from diffusion_jax import build
    from diffusion_jax.generate import Inputs

    model = loaded.model
    place = build.placement(model.config)
    generate = build.generate(model, place, edit, classifier=guide.model if guide else None)
    grid = build.grid(model)

    def sample(captions: list[str], scale: float, shown: dict | None = None, inputs: Any = None) -> np.ndarray:
        cond, knobs, inputs = build.prompt_cond(model, captions) | (shown or {}), build.knobs(model), inputs or Inputs()
        if guide:
            cond["clip_text"] = build.text_features(guide.model, guide.params, captions)
            knobs, inputs = knobs._replace(classifier_scale=scale), inputs._replace(classifier_params=guide.params)
        else:
            knobs = knobs._replace(guidance_scale=scale)
        batch_size = -(-min(BATCH.value, len(captions)) // place.num_devices) * place.num_devices
        return generate(
            loaded.params, cond, np.arange(len(captions)), SEED.value, knobs, grid, batch_size, inputs=inputs
        )

    return sample


def scenes(model: Any, split: str) -> tuple[np.ndarray, list[str]]:
    """The first pictures of a split of the model's data set, and their captions."""
    from diffusion_jax.data.pipeline import as_text
    from diffusion_jax.scores import samples

    source = samples.source(model, split)
    examples = [source[i] for i in range(min(COUNT.value, len(source)))]
    return np.stack([example["image"] for example in examples]), [as_text(example["caption"]) for example in examples]


def checked(pictures: np.ndarray, captions: list[str]) -> dict[str, float]:
    """The caption checker's shares."""
    from diffusion_jax.metrics import caption_checker

    found = caption_checker.score(pictures, captions)
    return {name: found[name] for name in COLUMNS}


def guidance() -> dict[str, dict[str, float]]:
    """Two kinds of guidance on the same captions and noise."""
    base, tuned, clip = (load(f"scenes_{name}") for name in ("base", "finetune_cfg", "clip"))
    real, captions = scenes(base.model, "validation")
    rows = {"real renders": checked(real, captions)}
    plain, by_text = sampler(base), sampler(tuned)
    by_clip = sampler(load("scenes_base", guidance_high=CLIP_HIGH.value), clip)
    rows["base, no guidance"] = checked(plain(captions, 1.0), captions)
    for scale in cli.floats("guidance_scales", SCALES.value):
        rows[f"classifier-free {scale:g}"] = checked(by_text(captions, scale), captions)
    for scale in cli.floats("clip_scales", CLIP_SCALES.value):
        rows[f"CLIP {scale:g}"] = checked(by_clip(captions, scale), captions)
    return rows


def unseen() -> dict[str, dict[str, float]]:
    """Pairs of colour and shape that training never showed together, beside those that it did."""
    tuned = load("scenes_finetune_cfg")
    sample, rows = sampler(tuned), {}
    for name, split in (("known pairs", "validation"), ("unseen pairs", "test")):
        captions = scenes(tuned.model, split)[1]
        for scale in (1.0, 2.0):
            rows[f"{name}, guidance {scale:g}"] = checked(sample(captions, scale), captions)
    return rows


def box_around(picture: np.ndarray, margin: int = 2) -> np.ndarray:
    """True in the box around what is not background, and so many pixels more: bool [H, W, 1]."""
    differs = np.abs(picture.astype(int) - picture[0, 0]).sum(-1) > 60
    inside = np.zeros((*differs.shape, 1), bool)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    inside[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1] = True
    return inside


def other_captions(captions: list[str], pool: list[str]) -> list[str]:
    """For each, one of the pool of the same background and size that names another colour and another shape, in turn."""
    from diffusion_jax.data.scenes import parse_caption

    read = [parse_caption(text) for text in pool]
    found, place = [], 0
    for old in map(parse_caption, captions):
        order = [(place + i) % len(pool) for i in range(len(pool))]
        place = next(
            i
            for i in order
            if read[i].background == old.background
            and read[i].objects[0].size == old.objects[0].size
            and read[i].objects[0].colour != old.objects[0].colour
            and read[i].objects[0].shape != old.objects[0].shape
        )
        found.append(pool[place])
        place += 1
    return found


def repainting() -> dict[str, dict[str, float]]:
    """An object of a real scene becomes another, by a caption."""
    from diffusion_jax import images
    from diffusion_jax.generate import Inputs

    painter, tuned = load("scenes_inpaint"), load("scenes_finetune_cfg")
    given, captions = scenes(painter.model, "validation")
    captions = other_captions(captions, scenes(painter.model, "train")[1])
    kept = ~np.stack([box_around(picture) for picture in given])
    picture = images.to_float(given)
    shown = {"inpaint_image": picture * kept, "inpaint_mask": kept.astype(np.float32)}
    rows = {"given pictures": checked(given, captions)}
    for name, loaded, edit in (
        ("fine-tuned", painter, "replace"),
        ("not, edit=replace", tuned, "replace"),
        ("not, edit=repaint", tuned, "repaint"),
    ):
        sample = sampler(loaded, edit=edit)
        for scale in (1.0, 2.0):
            inputs = Inputs(picture=picture, mask=kept)
            made = sample(captions, scale, shown if loaded is painter else None, inputs)
            untouched = (made == given)[np.broadcast_to(kept, given.shape)].mean()
            rows[f"{name}, guidance {scale:g}"] = checked(made, captions) | {"untouched": float(untouched)}
    return rows


def enlarging() -> dict[str, dict[str, float]]:
    """From 32 to 64 pixels."""
    from PIL import Image

    from diffusion_jax import images
    from diffusion_jax.metrics.pixels import psnr, ssim

    larger, tuned = load("scenes_upsample"), load("scenes_finetune_cfg")
    real, captions = scenes(larger.model, "validation")
    count, side = len(real), larger.model.config.model.low_res
    means = real.reshape(count, side, real.shape[1] // side, side, -1, 3).mean((2, 4))
    small = np.round(means).astype(np.uint8)

    def bicubic(pictures: np.ndarray) -> np.ndarray:
        size = (real.shape[2], real.shape[1])
        return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures])

    sample = sampler(larger)

    def ours(pictures: np.ndarray) -> np.ndarray:
        return sample(captions, 1.0, {"low_res": images.to_float(pictures)})

    def beside_real(made: np.ndarray) -> dict[str, float]:
        distances = {"psnr": float(np.mean(psnr(made, real))), "ssim": float(np.mean(ssim(made, real)))}
        return checked(made, captions) | distances

    drawn = sampler(tuned)(captions, 2.0)
    return {
        "real, 64 pixels": checked(real, captions),
        "real small ones, bicubic": beside_real(bicubic(small)),
        "real small ones, upsampler": beside_real(ours(small)),
        "the base's, 32 pixels": checked(drawn, captions),
        "the base's, bicubic": checked(bicubic(drawn), captions),
        "the base's, upsampler": checked(ours(drawn), captions),
    }


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.start()
    from diffusion_jax.scores import score_table

    found, tables = {}, {table.__name__: table for table in (guidance, unseen, repainting, enlarging)}
    if unknown := [name for name in TABLES.value if name not in tables]:
        raise unknown_name("table", unknown[0], tables)
    for table in (tables[name] for name in TABLES.value):
        found[table.__name__] = table()
        print(f"\n{table.__name__}, {COUNT.value} captions:\n{score_table(found[table.__name__])}", flush=True)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
