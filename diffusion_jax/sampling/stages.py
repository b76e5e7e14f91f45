"""What a stage of sampling is told: captions or classes, small pictures to enlarge, a picture to repaint."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax import build, images
from diffusion_jax.denoiser import Cond
from diffusion_jax.errors import UserError
from diffusion_jax.models import Params
from diffusion_jax.sampling import pictures

NUM_SAMPLES = 4  # images per condition, unless the request says
MAX_CLASSES = 8  # of a model with more, so many are drawn where none is asked for


class Conditions(NamedTuple):
    """What is asked for: the conditions, each once, and which of them each image has. Captions, classes or neither."""

    names: tuple[str, ...]
    every: np.ndarray  # [number of images], indices of names
    prompts: tuple[str, ...] | None = None
    labels: np.ndarray | None = None


class Base(NamedTuple):
    """Small pictures to enlarge, with the class or the caption of each where the file has them."""

    pictures: UInt8[np.ndarray, "N h w C"]
    labels: np.ndarray | None = None
    prompts: tuple[str, ...] | None = None


def read_base(path: str | None, model: build.Model) -> Base | None:
    """Small pictures from an npz: ADM's (arr_0 pictures, arr_1 classes) or sample.py's own (prompts in place of arr_1).

    Raises:
      UserError: the model enlarges nothing, or must and has no file; or the file is not there, is no such npz, or holds
        pictures of another size.
    """
    side = model.config.model.low_res
    if path is None:
        if not side:
            return None
        raise UserError(
            "this checkpoint is an upsampler: give it small pictures by --base_samples=FILE.npz, or sample a base checkpoint "
            "with --upsampler=DIR."
        )
    if not side:
        raise UserError("--base_samples are pictures to enlarge, and this checkpoint is no upsampler.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no npz file of plain arrays"
        raise UserError(f"--base_samples={path}: {reason}.") from error
    shown = arrays.get("arr_0")
    if (
        shown is None
        or shown.dtype != np.uint8
        or shown.shape[1:] != (side, side, model.image_shape[-1])
        or not len(shown)
    ):
        found = "no arr_0" if shown is None else f"{shown.dtype} {list(shown.shape)}"
        raise UserError(
            f"--base_samples={path} has {found}; this upsampler takes arr_0 of uint8 [N, {side}, {side}, "
            f"{model.image_shape[-1]}], as sample.py writes it."
        )
    prompts = arrays.get("prompts")
    labels = arrays.get("arr_1")
    for name, values in (("prompts", prompts), ("arr_1", labels)):
        if values is not None and len(values) != len(shown):
            raise UserError(f"--base_samples={path}: {name} has {len(values)} rows for {len(shown)} pictures.")
    return Base(shown, labels, None if prompts is None else tuple(map(str, prompts)))


def conditions(
    model: build.Model,
    prompts: tuple[str, ...],
    labels: tuple[int, ...],
    num_samples: int | None,
    seed: int,
    base: Base | None = None,
) -> Conditions:
    """What is asked of the first stage, and how often.

    Args:
      model: who is told; a classifier, where the network itself takes no class.
      prompts, labels: the request's; where it has none, the base samples' or the config's, or a choice of classes.
      num_samples: images per condition.
      seed: of the choice of classes.
      base: small pictures, each enlarged once.

    Raises:
      UserError: the model does not take what is asked.
    """
    kind = "label" if model.config.model.kind == "classifier" else model.config.model.condition
    if prompts and kind != "text":
        raise UserError(f"this checkpoint's condition is {kind!r}: it takes no --prompt.")
    if labels and kind != "label":
        raise UserError(f"this checkpoint's condition is {kind!r}: it takes no --label.")
    if base and num_samples:
        raise UserError("--num_samples is not for --base_samples: each picture there is enlarged once.")
    known = {"text": base and base.prompts, "label": base and base.labels}.get(kind)
    if known is not None and not (prompts or labels):  # of each small picture its own
        values = list(dict.fromkeys(known))
        every = np.array([values.index(value) for value in known])
    else:
        choose = {"text": _prompts, "label": _labels, "none": lambda *_: [""]}[kind]
        values = choose(model, prompts or labels, seed)
        count = len(base.pictures) if base else len(values) * (num_samples or NUM_SAMPLES)
        every = np.arange(count) % len(values)
    if kind == "text":
        return Conditions(tuple(values), every, prompts=tuple(values))
    if kind == "none":
        return Conditions(("unconditional",), every)
    num_classes = model.config.data.num_classes
    if bad := [value for value in values if not 0 <= value < num_classes]:
        raise UserError(f"class {bad[0]} is none of this checkpoint's, which has 0 to {num_classes - 1}.")
    return Conditions(tuple(f"class {value}" for value in values), every, labels=np.asarray(values, np.int32))


def _prompts(model: build.Model, prompts: tuple[str, ...], seed: int) -> list[str]:
    for prompt in prompts:
        _remark(model, prompt)
    return list(prompts or model.config.sample.prompts)


def _labels(model: build.Model, labels: tuple[int, ...], seed: int) -> list[int]:
    num_classes = model.config.data.num_classes
    if labels or num_classes <= MAX_CLASSES:
        return list(labels or range(num_classes))
    return sorted(np.random.default_rng(seed).choice(num_classes, MAX_CLASSES, replace=False).tolist())


def cond_of(model: build.Model, asked: Conditions, classifier: tuple[build.Model, Params] | None = None) -> Cond:
    """The condition of every image, as the network and the classifier or CLIP that guides it take it.

    Raises:
      UserError: the model is told what the base checkpoint does not know.
    """
    kind, cond = model.config.model.condition, {}
    guide = classifier[0].config.model.kind if classifier else None
    if kind == "label" or guide == "classifier":
        if asked.labels is None:
            raise UserError("this checkpoint is told classes, and there are none to tell.")
        cond["label"] = asked.labels[asked.every]
    if kind == "text" or guide == "clip":
        if asked.prompts is None:
            raise UserError("this checkpoint is told captions, and there are none to tell.")
        if kind == "text":
            cond |= jax.tree.map(lambda leaf: leaf[asked.every], build.prompt_cond(model, asked.prompts))
    if classifier and guide == "clip":
        cond["clip_text"] = build.text_features(*classifier, asked.prompts)[asked.every]
    return cond


def with_pictures(cond: Cond, count: int, model: build.Model, given: pictures.Given, base: Base | None) -> Cond:
    """The condition of `count` pictures with what the network is shown: the small pictures, the part that is kept."""
    blank = model.blank_cond
    if "low_res" in blank:
        assert base is not None, "an upsampler is not run without pictures to enlarge"
        cond = cond | {"low_res": images.to_float(base.pictures)}
    if "inpaint_mask" in blank:
        shown = {name: blank[name] for name in ("inpaint_image", "inpaint_mask")}
        if given.pictures is not None and given.mask is not None:
            picture = images.to_float(given.pictures[0])
            shown = {"inpaint_image": picture * given.mask, "inpaint_mask": given.mask.astype(np.float32)}
        cond = cond | {name: np.repeat(value[None], count, axis=0) for name, value in shown.items()}
    return cond


def check_classifier(model: build.Model, classifier: build.Model, path: str) -> None:
    """Raises UserError where a checkpoint is no classifier, or CLIP, of the model's noisy images."""
    kind, condition = classifier.config.model.kind, model.config.model.condition
    if kind not in ("classifier", "clip"):
        raise UserError(f"--classifier={path} is no classifier and no CLIP: its model.kind is {kind}.")
    if (kind == "clip") != (condition == "text"):
        knows = "captions" if kind == "clip" else "classes"
        raise UserError(f"--classifier={path} knows {knows}, and the condition of --checkpoint is {condition!r}.")
    if classifier.image_shape != model.image_shape:
        raise UserError(
            f"--classifier={path} reads images of {classifier.image_shape[0]} pixels, and --checkpoint makes "
            f"{model.image_shape[0]}."
        )
    ours, its = model.config.diffusion, classifier.config.diffusion
    if (ours.schedule, ours.num_table_steps) != (its.schedule, its.num_table_steps):
        raise UserError(
            f"--classifier={path} knows the noise of {its.schedule} ({its.num_table_steps} steps), and --checkpoint has "
            f"{ours.schedule} ({ours.num_table_steps}): they must be trained on the same."
        )


def _remark(model: build.Model, prompt: str) -> None:
    """Says what a prompt will not do as its writer may think."""
    assert model.tokenizer is not None, "only text models have prompts"
    length, count = model.config.text.context_length, model.tokenizer.num_tokens(prompt)
    shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
    if not prompt.strip():
        print("note: an empty prompt gives unconditional samples; write a caption to say what you want.")
    elif count > length:
        print(f"note: {shown!r} has {count} tokens and this model reads {length}; the rest is ignored. Shorten it.")
    if not prompt.isascii():
        print(
            f"note: {shown!r} has characters that are read byte by byte; write it in the language of the training captions."
        )
