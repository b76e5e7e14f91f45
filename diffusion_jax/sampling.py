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
from diffusion_jax import build, images, pictures, processes, samplers, schedules, stages, vectors
from diffusion_jax.data.bpe import ClipTokenizer
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Inputs, Knobs
from diffusion_jax.keys import keys_per_example
from diffusion_jax.models import Params
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.training import checkpoint, posthoc
from diffusion_jax.training.placement import Placement

RESULTS = "samples.json"
BASE_SAMPLES = "base_samples.npz"  # of the first of two stages
MAX_GRID_ROWS = 32
BATCH_SIZE = 32  # images at a time, unless the request says


class Loaded(NamedTuple):
    """A checkpoint, ready to sample from."""

    workdir: pathlib.Path
    step: int
    model: build.Model
    params: Params  # an average


class Average(NamedTuple):
    """Which average of the parameters: one that the run kept, by its decay, or one of any relative std, of its snapshots."""

    decay: float | None = None
    std: float | None = None


MAIN_AVERAGE = Average()


@dataclasses.dataclass(frozen=True)
class Request:
    """What to sample; see sample.py's flags. `overrides` are fields of config.sample, None where the config's hold, and
    `upsampler_overrides` those of the upsampler's."""

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
    classifier: str | None = None
    upsampler: str | None = None
    upsampler_overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    base_samples: str | None = None
    average: Average = MAIN_AVERAGE
    edit: pictures.Edit = pictures.Edit()


def load(path: str, overrides: dict[str, Any], average: Average = MAIN_AVERAGE) -> Loaded:
    """Reads a checkpoint: config, tokenizer and EMA parameters; of a work directory, the newest that is not damaged.

    Args:
      path: a work directory or one of its checkpoints.
      overrides: fields of config.sample to change; None leaves one.
      average: the main one by default.

    Raises:
      UserError: it is not there, or damaged, or a value cannot be used.
    """
    return checkpoint.read_newest(path, lambda workdir, step: _load(workdir, step, overrides, average))


def _load(workdir: pathlib.Path, step: int, overrides: dict[str, Any], average: Average) -> Loaded:
    saved, text = checkpoint.read_texts(workdir, step)
    config = default_config()  # fields that came after the checkpoint keep their defaults, which change nothing
    for group, fields in _tuples(saved).items():
        if isinstance(fields, dict):
            known = {name: value for name, value in fields.items() if name in config.get(group, {})}
            if isinstance(known.get("remat"), bool):  # as checkpoints had it before the policies had names
                known["remat"] = "full" if known["remat"] else "none"
            config[group].update(known)
        elif group in config:
            config[group] = fields
    config.sample.update({name: value for name, value in overrides.items() if value is not None})
    model = build.model(config, _tokenizer(config.model.kind, text))
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    if average.std is not None:
        return Loaded(workdir, step, model, posthoc.reconstruct(workdir, step, average.std, template))
    more = config.ema.more_decays
    if average.decay in (None, config.ema.decay):
        return Loaded(workdir, step, model, checkpoint.read_ema(workdir, step, template))
    if average.decay not in more:
        kept = ", ".join(f"{decay:g}" for decay in (config.ema.decay, *more))
        raise UserError(
            f"--ema_decay={average.decay:g}: the run kept averages of decay {kept} (config.ema.more_decays)."
        )
    count = len(build.averages(config))
    return Loaded(
        workdir, step, model, checkpoint.read_average(workdir, step, template, more.index(average.decay), count)
    )


def _tokenizer(kind: str, text: str | None) -> CaptionTokenizer | ClipTokenizer | None:
    if text is None:
        return None
    return ClipTokenizer.from_json(text) if kind == "clip" else CaptionTokenizer.from_json(text)


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
    loaded = load(request.checkpoint, request.overrides, request.average)
    larger = load(request.upsampler, request.upsampler_overrides) if request.upsampler else None
    if vectors.is_vector(loaded.model):
        return _write_vectors(out, loaded, build.placement(loaded.model.config), request)
    if larger and (larger.model.config.model.low_res, larger.model.image_shape[-1]) != loaded.model.image_shape[1:]:
        raise UserError(
            f"--upsampler={request.upsampler} enlarges pictures of {larger.model.config.model.low_res} pixels, and "
            f"--checkpoint makes {loaded.model.image_shape[0]}."
        )
    classifier = _classifier(loaded.model, request)
    base = stages.read_base(request.base_samples, loaded.model)
    asked = stages.conditions(
        classifier.model if classifier and loaded.model.config.model.condition == "none" else loaded.model,
        request.prompts,
        request.labels,
        request.num_samples,
        request.seed,
        base,
    )
    made, given = _sample(loaded, asked, request, classifier, base)
    if larger:
        _save_npz(out / BASE_SAMPLES, made, asked)
        small = stages.Base(made)
        kept = dataclasses.replace(request.edit, strength=None) if request.edit.mask else pictures.Edit()
        enlarging = dataclasses.replace(request, negative_prompt=None, weak_checkpoint=None, edit=kept)
        made, given = _sample(larger, asked, enlarging, None, small)
    _write(out, made, asked, given.rows(), larger or loaded, request)


def _sample(
    loaded: Loaded, asked: stages.Conditions, request: Request, classifier: Loaded | None, base: stages.Base | None
) -> tuple[np.ndarray, pictures.Given]:
    """One stage: its images, uint8, and the pictures that it was given."""
    model, place = loaded.model, build.placement(loaded.model.config)
    count, batch_size = len(asked.every), request.batch_size or BATCH_SIZE
    batch_size = -(-min(batch_size, count) // place.num_devices) * place.num_devices
    given = pictures.read(request.edit, model.image_shape)
    cond = stages.cond_of(model, asked, (classifier.model, classifier.params) if classifier else None)
    cond = stages.with_pictures(cond, count, model, given, base)
    knobs = build.knobs(model)._replace(deviation=request.edit.observation_noise)
    plan = pictures.plan(request.edit, given, build.grid(model), _draw(loaded, place, count, request.seed, knobs))
    inputs = plan.inputs._replace(**_guided_by(request, loaded))
    if classifier:
        inputs = inputs._replace(classifier_params=classifier.params)
    steps, config = len(plan.grid) - 1 - inputs.begin, model.config.sample
    guided = f"guidance {config.guidance_scale:g}" if model.null_cond and config.guidance != "none" else "no guidance"
    if classifier:
        guided += f", classifier {config.classifier_scale:g}"
    print(
        f"step {loaded.step} of {loaded.workdir}: {count} images of {len(asked.names)} conditions, {config.sampler} with "
        f"{steps} steps, {guided}, seed {request.seed}{plan.remark}"
    )
    generate = build.generate(model, place, plan.edit, classifier=classifier.model if classifier else None)
    total = -(-count // batch_size) * steps
    with tqdm.tqdm(total=total, desc="sample", unit="step", dynamic_ncols=True) as bar:
        made = generate(
            loaded.params, cond, np.arange(count), request.seed, knobs, plan.grid, batch_size, bar.update, inputs
        )
    return made, given


def _classifier(model: build.Model, request: Request) -> Loaded | None:
    if request.classifier is None:
        if request.overrides.get("classifier_scale") is not None:
            raise UserError("--classifier_scale is of a --classifier: give one.")
        return None
    classifier = load(request.classifier, {})
    stages.check_classifier(model, classifier.model, request.classifier)
    return classifier


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
    if not processes.first():
        return
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
        if model.blank_cond.keys() != model.null_cond.keys():
            raise UserError("--invert needs a network that can be asked without a condition, as text models can.")
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
    if not processes.first():
        return out
    try:
        if (out / RESULTS).exists():
            if not overwrite:
                raise UserError(
                    f"{path} holds earlier samples. Choose another --out, or replace them with --overwrite."
                )
            for file in [
                RESULTS,
                "grid.png",
                "samples.npz",
                BASE_SAMPLES,
                *(p.name for p in out.glob("[0-9]" * 6 + ".png")),
            ]:
                (out / file).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out={path}: {error.strerror}.") from error
    return out


def _record(loaded: Loaded, request: Request) -> dict[str, Any]:
    return {
        "diffusion_jax": diffusion_jax.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "average": request.average._asdict(),
        "seed": request.seed,
        "sample": loaded.model.config.sample.to_dict(),
    }


def _save_npz(path: pathlib.Path, made: np.ndarray, asked: stages.Conditions) -> None:
    """ADM's format: the pictures as arr_0 and their classes as arr_1; captions go under "prompts"."""
    if not processes.first():
        return
    columns: dict[str, Any] = {"arr_0": made}
    if asked.labels is not None:
        columns["arr_1"] = asked.labels[asked.every]
    if asked.prompts is not None:
        columns["prompts"] = np.asarray(asked.prompts)[asked.every]
    np.savez(path, **columns)


def _write(
    out: pathlib.Path,
    made: np.ndarray,
    asked: stages.Conditions,
    given: list[tuple[str, np.ndarray]],
    loaded: Loaded,
    request: Request,
) -> None:
    if not processes.first():
        return
    files = [f"{i:06d}.png" for i in range(len(made))]
    try:
        for file, image in zip(files, made, strict=True):
            images.save_png(images.to_pil(image), out / file)
        rows = [(name, made[asked.every == c]) for c, name in enumerate(asked.names[:MAX_GRID_ROWS])]
        images.save_png(images.labelled_grid(given + rows), out / "grid.png")
        _save_npz(out / "samples.npz", made, asked)
        record = _record(loaded, request) | {
            "base_checkpoint": request.checkpoint if request.upsampler else None,
            "base_samples": request.base_samples,
            "classifier": request.classifier,
            "negative_prompt": request.negative_prompt,
            "weak_checkpoint": request.weak_checkpoint,
            "edit": dataclasses.asdict(request.edit),
            "images": [
                {"file": f, "index": i, "condition": asked.names[c]}
                for i, (f, c) in enumerate(zip(files, asked.every, strict=True))
            ],
        }
        (out / RESULTS).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}. Free some space or choose another --out.") from error
    print(f"wrote {len(made)} images, grid.png, samples.npz and {RESULTS} to {out}")
