"""Sampling from a checkpoint to files. What sample.py calls; evaluation shares `load`."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

import diffusion_jax
from diffusion_jax import build, images
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.denoiser import Cond
from diffusion_jax.errors import UserError
from diffusion_jax.models import Params
from diffusion_jax.training import checkpoint

RESULTS = "samples.json"
MAX_GRID_ROWS = 32


class Loaded(NamedTuple):
    """A checkpoint, ready to sample from."""

    workdir: pathlib.Path
    step: int
    model: build.Model
    params: Params  # the EMA


@dataclasses.dataclass(frozen=True)
class Request:
    """What to sample; see sample.py's flags. `overrides` are fields of config.sample, None where the config's hold."""

    checkpoint: str
    prompts: tuple[str, ...]
    labels: tuple[int, ...]
    num_samples: int
    overrides: dict[str, Any]
    seed: int
    batch_size: int
    out: str
    overwrite: bool = False


def load(path: str, overrides: dict[str, Any]) -> Loaded:
    """Reads a checkpoint: config, tokenizer and EMA parameters.

    Args:
      path: a work directory or one of its checkpoints.
      overrides: fields of config.sample to change; None leaves one.

    Raises:
      UserError: it is not there, or damaged, or a value cannot be used.
    """
    workdir, step = checkpoint.find(path)
    saved, text = checkpoint.read_texts(workdir, step)
    config = ConfigDict(_tuples(saved))
    config.sample.update({name: value for name, value in overrides.items() if value is not None})
    model = build.model(config, CaptionTokenizer.from_json(text) if text else None)
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    return Loaded(workdir, step, model, checkpoint.read_ema(workdir, step, template))


def _tuples(value: Any) -> Any:
    """JSON knows no tuples; a config knows no lists."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def run(request: Request) -> None:
    """Samples what a request asks for and writes it: PNG files, a labelled grid, ADM's npz, and a JSON to repeat it.

    Sample number n of condition c is image n x (number of conditions) + c, so that more samples per prompt add to the
    earlier ones.

    Raises:
      UserError: for what the user can mend.
    """
    out = _new_folder(request.out, request.overwrite)
    loaded = load(request.checkpoint, request.overrides)
    model, place = loaded.model, build.placement(loaded.model.config)
    names, cond = _conditions(model, request)
    count, batch_size = len(names) * request.num_samples, request.batch_size
    batch_size = -(-min(batch_size, count) // place.num_devices) * place.num_devices
    config = model.config.sample
    print(
        f"step {loaded.step} of {loaded.workdir}: {count} images of {len(names)} conditions, {config.sampler} with "
        f"{config.num_steps} steps, guidance {config.guidance_scale:g}, seed {request.seed}"
    )
    generate, grid = build.generate(model, place), build.grid(model)
    every = np.arange(count) % len(names)
    cond = jax.tree.map(lambda leaf: np.asarray(leaf)[every], cond)
    steps = -(-count // batch_size) * config.num_steps
    with tqdm.tqdm(total=steps, desc="sample", unit="step", dynamic_ncols=True) as bar:
        made = generate(
            loaded.params, cond, np.arange(count), request.seed, config.guidance_scale, grid, batch_size, bar.update
        )
    _write(out, made, names, every, loaded, request)


def _new_folder(path: str, overwrite: bool) -> pathlib.Path:
    out = pathlib.Path(path)
    try:
        if (out / RESULTS).exists():
            if not overwrite:
                raise UserError(
                    f"{path} holds earlier samples. Choose another --out, or replace them with --overwrite."
                )
            for file in [RESULTS, "grid.png", "samples.npz", *(p.name for p in out.glob("[0-9]" * 6 + ".png"))]:
                (out / file).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out={path}: {error.strerror}.") from error
    return out


def _conditions(model: build.Model, request: Request) -> tuple[tuple[str, ...], Cond]:
    """The conditions' names and arrays, each once."""
    kind = model.config.model.condition
    if request.prompts and kind != "text":
        raise UserError(f"this checkpoint's condition is {kind!r}: it takes no --prompt.")
    if request.labels and kind != "label":
        raise UserError(f"this checkpoint's condition is {kind!r}: it takes no --label.")
    if kind == "none":
        return ("unconditional",), {}
    if kind == "label":
        num_classes = model.config.data.num_classes
        labels = request.labels or tuple(range(num_classes))
        if bad := [label for label in labels if not 0 <= label < num_classes]:
            raise UserError(f"--label={bad[0]} is no class of this checkpoint: it has 0 to {num_classes - 1}.")
        return tuple(f"class {label}" for label in labels), {"label": np.asarray(labels, np.int32)}
    prompts = request.prompts or tuple(model.config.sample.prompts)
    for prompt in prompts:
        _remark(model, prompt)
    return prompts, build.prompt_cond(model, prompts)


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


def _write(
    out: pathlib.Path, made: np.ndarray, names: tuple[str, ...], every: np.ndarray, loaded: Loaded, request: Request
) -> None:
    files = [f"{i:06d}.png" for i in range(len(made))]
    try:
        for file, image in zip(files, made, strict=True):
            images.save_png(images.to_pil(image), out / file)
        rows = [(name, made[every == c]) for c, name in enumerate(names[:MAX_GRID_ROWS])]
        images.save_png(images.labelled_grid(rows), out / "grid.png")
        kind = loaded.model.config.model.condition
        what = {"text": "prompts", "label": "labels"}.get(kind)
        values = np.asarray(request.labels or range(len(names)) if kind == "label" else names)[every]
        np.savez(out / "samples.npz", arr_0=made, **({what: values} if what else {}))
        record = {
            "diffusion_jax": diffusion_jax.__version__,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "checkpoint": str(loaded.workdir),
            "step": loaded.step,
            "seed": request.seed,
            "sample": loaded.model.config.sample.to_dict(),
            "images": [
                {"file": f, "index": i, "condition": names[c]}
                for i, (f, c) in enumerate(zip(files, every, strict=True))
            ],
        }
        (out / RESULTS).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}. Free some space or choose another --out.") from error
    print(f"wrote {len(made)} images, grid.png, samples.npz and {RESULTS} to {out}")
