"""Sampling from a checkpoint to files. What sample.py calls; evaluation shares `load`."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

import diffusion_jax
from configs.default import get_config as default_config
from diffusion_jax import build, images, pictures, samplers, schedules, vectors
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.denoiser import Cond
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Inputs, Knobs
from diffusion_jax.keys import keys_per_example
from diffusion_jax.models import Params
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.training import checkpoint
from diffusion_jax.training.placement import Placement

RESULTS = "samples.json"
MAX_GRID_ROWS = 32
NUM_SAMPLES, BATCH_SIZE = 4, 32  # images per condition and at a time, unless the request says


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
    num_samples: int | None
    overrides: dict[str, Any]
    seed: int
    batch_size: int | None
    out: str
    overwrite: bool = False
    negative_prompt: str | None = None
    weak_checkpoint: str | None = None
    edit: pictures.Edit = pictures.Edit()


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
    config = default_config()  # fields that came after the checkpoint keep their defaults, which change nothing
    for group, fields in _tuples(saved).items():
        if isinstance(fields, dict):
            known = {name: value for name, value in fields.items() if name in config.get(group, {})}
            config[group].update(known)
        elif group in config:
            config[group] = fields
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
    pictures.check(request.edit)
    out = _new_folder(request.out, request.overwrite)
    loaded = load(request.checkpoint, request.overrides)
    model, place = loaded.model, build.placement(loaded.model.config)
    names, cond = _conditions(model, request)
    if vectors.is_vector(model):
        return _write_vectors(out, loaded, place, request)
    count, batch_size = len(names) * (request.num_samples or NUM_SAMPLES), request.batch_size or BATCH_SIZE
    batch_size = -(-min(batch_size, count) // place.num_devices) * place.num_devices
    every = np.arange(count) % len(names)
    cond = jax.tree.map(lambda leaf: np.asarray(leaf)[every], cond)
    given = pictures.read(request.edit, model.image_shape)
    knobs = build.knobs(model)._replace(deviation=request.edit.observation_noise)
    plan = pictures.plan(request.edit, given, build.grid(model), _draw(loaded, place, count, request.seed, knobs))
    inputs = plan.inputs._replace(**_guided_by(request, loaded))
    steps = len(plan.grid) - 1 - inputs.begin
    config = model.config.sample
    print(
        f"step {loaded.step} of {loaded.workdir}: {count} images of {len(names)} conditions, {config.sampler} with "
        f"{steps} steps, guidance {config.guidance_scale:g}, seed {request.seed}{plan.remark}"
    )
    generate = build.generate(model, place, plan.edit)
    total = -(-count // batch_size) * steps
    with tqdm.tqdm(total=total, desc="sample", unit="step", dynamic_ncols=True) as bar:
        made = generate(
            loaded.params, cond, np.arange(count), request.seed, knobs, plan.grid, batch_size, bar.update, inputs
        )
    _write(out, made, names, every, given.rows(), loaded, request)


def _write_vectors(out: pathlib.Path, loaded: Loaded, place: Placement, request: Request) -> None:
    """Samples of a model whose data are vectors."""
    if request.edit != pictures.Edit():
        raise UserError("this checkpoint's samples are vectors: there is no picture to edit.")
    config = loaded.model.config
    count = request.num_samples or config.sample.samples_per_prompt
    unused = {"guidance", "guidance_scale", "guidance_low", "guidance_combine", "guidance_rescale", "threshold"}
    if loaded.model.transition is not None:  # categories have the one sampler of `discrete.sample`
        unused |= {"sampler", "num_steps", "grid", "spacing", "eta", "order", "churn", "temperature"}
    if given := sorted(name for name in unused if request.overrides.get(name) is not None):
        flag = "guidance_interval" if given[0] == "guidance_low" else given[0]
        raise UserError(f"--{flag} changes nothing about this checkpoint's samples, which are vectors: leave it out.")
    samples = vectors.make_draw(loaded.model, place)(loaded.params, count, request.seed, request.batch_size)
    record = _record(loaded, request) | {"num_samples": count}
    try:
        vectors.write_samples(out, config.data.name, samples, record)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}. Free some space or choose another --out.") from error
    print(f"wrote {count} samples of step {loaded.step}: samples.npz, grid.png and {RESULTS} to {out}")


def _draw(loaded: Loaded, place: Placement, count: int, seed: int, knobs: Knobs) -> pictures.Draw:
    """The model's part in an edit."""
    model = loaded.model
    schedule, shape = model.process.schedule, model.image_shape

    def noise(indices: np.ndarray) -> np.ndarray:
        level = schedules.level_like(schedule, build.grid(model)[0], np.zeros((1, *shape), np.float32))
        keys = keys_per_example(jax.random.key(seed), indices)
        return knobs.temperature * np.asarray(samplers.initial_noise(keys, shape, level))

    def invert(given: np.ndarray, grid: np.ndarray) -> np.ndarray:
        if len(grid) < 3:
            raise UserError("--invert needs at least two steps: raise --num_steps or --strength.")
        generate = build.generate(model, place, method=ddim(schedule))
        size = -(-len(given) // place.num_devices) * place.num_devices
        nothing = jax.tree.map(lambda leaf: np.stack([leaf] * len(given)), model.null_cond)
        up, unguided = grid[:-1][::-1], knobs._replace(guidance_scale=1.0)
        inputs = Inputs(latents=given)
        return generate(
            loaded.params, nothing, np.arange(len(given)), seed, unguided, up, size, inputs=inputs, raw=True
        )

    return pictures.Draw(count, noise, invert)


def _guided_by(request: Request, loaded: Loaded) -> dict[str, Any]:
    """What guidance turns away from: a negative prompt, a weaker checkpoint."""
    model, guided_by = loaded.model, {}
    weak = model.config.sample.guidance == "autoguidance"
    if weak != (request.weak_checkpoint is not None):
        raise UserError(
            "--guidance=autoguidance and --weak_checkpoint=DIR/checkpoints/STEP go together: it is guided away from that "
            "weaker model, usually an earlier checkpoint of the same run."
        )
    if request.weak_checkpoint:
        other = load(request.weak_checkpoint, {})
        shapes, wanted = (jax.tree.map(np.shape, params) for params in (other.params, loaded.params))
        if shapes != wanted:
            raise UserError(f"--weak_checkpoint={request.weak_checkpoint} is of another network than --checkpoint.")
        guided_by["weak_params"] = other.params
    if request.negative_prompt is not None:
        if weak or model.config.model.condition != "text":
            raise UserError("--negative_prompt needs a text model and --guidance=classifier_free.")
        guided_by["null_cond"] = jax.tree.map(lambda leaf: leaf[0], build.prompt_cond(model, [request.negative_prompt]))
    return guided_by


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


def _record(loaded: Loaded, request: Request) -> dict[str, Any]:
    return {
        "diffusion_jax": diffusion_jax.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "seed": request.seed,
        "sample": loaded.model.config.sample.to_dict(),
    }


def _write(
    out: pathlib.Path,
    made: np.ndarray,
    names: tuple[str, ...],
    every: np.ndarray,
    given: list[tuple[str, np.ndarray]],
    loaded: Loaded,
    request: Request,
) -> None:
    files = [f"{i:06d}.png" for i in range(len(made))]
    try:
        for file, image in zip(files, made, strict=True):
            images.save_png(images.to_pil(image), out / file)
        rows = [(name, made[every == c]) for c, name in enumerate(names[:MAX_GRID_ROWS])]
        images.save_png(images.labelled_grid(given + rows), out / "grid.png")
        kind = loaded.model.config.model.condition
        what = {"text": "prompts", "label": "labels"}.get(kind)
        values = np.asarray(request.labels or range(len(names)) if kind == "label" else names)[every]
        np.savez(out / "samples.npz", arr_0=made, **({what: values} if what else {}))
        record = _record(loaded, request) | {
            "negative_prompt": request.negative_prompt,
            "weak_checkpoint": request.weak_checkpoint,
            "edit": dataclasses.asdict(request.edit),
            "images": [
                {"file": f, "index": i, "condition": names[c]}
                for i, (f, c) in enumerate(zip(files, every, strict=True))
            ],
        }
        (out / RESULTS).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}. Free some space or choose another --out.") from error
    print(f"wrote {len(made)} images, grid.png, samples.npz and {RESULTS} to {out}")
