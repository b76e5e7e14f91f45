"""Sampling from a checkpoint to files: what sample.py calls."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

import diffusion_jax
from diffusion_jax import build, processes, samplers, schedules, vectors
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Inputs, Knobs, Watch
from diffusion_jax.keys import keys_per_example
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.sampling import files, pictures, reranking, rounds, stages
from diffusion_jax.sampling.loading import Loaded, load
from diffusion_jax.sampling.request import Request, check
from diffusion_jax.training.placement import Placement

BATCH_SIZE = 32  # images at a time, unless the request says
FRAMES = 24  # most of an animation


class Stage(NamedTuple):
    """A checkpoint that samples, who guides it, and its programs by the edit that each holds: a round compiles nothing anew."""

    loaded: Loaded
    classifier: Loaded | None
    programs: dict[str, Callable[..., np.ndarray]]


def run(request: Request) -> None:
    """Samples what a request asks for and writes it: PNG files, a labelled grid, ADM's npz, and a JSON to repeat it.

    Sample number n of condition c is image n x (number of conditions) + c, so that more samples per prompt add to the
    earlier ones.

    Raises:
      UserError: for what the user can mend.
    """
    check(request)
    out = files.new_folder(request.out, request.overwrite)
    loaded = load(request.checkpoint, request.overrides, request.average)
    larger = load(request.upsampler, request.upsampler_overrides) if request.upsampler else None
    if vectors.is_vector(loaded.model):
        return _write_vectors(out, loaded, build.placement(loaded.model.config), request)
    if larger:
        check_upsampler(loaded.model, larger.model, str(request.upsampler))
    classifier = _classifier(loaded.model, request)
    clip = _reranker(loaded.model, request)
    if request.rounds and loaded.model.config.model.condition != "text":
        raise UserError("--then_prompt needs a checkpoint of captions.")
    size = loaded.model.image_shape[:2]
    kept = [pictures.read_mask(mask, "--then_mask", size) for _, mask in request.rounds]
    base = stages.read_base(request.base_samples, loaded.model)
    told = classifier.model if classifier and loaded.model.config.model.condition == "none" else loaded.model
    asked = stages.conditions(told, request.prompts, request.labels, request.num_samples, request.seed, base)
    if request.interpolate_prompts:  # one row of pictures, of which `_sample` knows where it goes
        every = np.zeros(request.num_samples or stages.NUM_SAMPLES, int)
        asked = stages.Conditions((" to ".join(request.prompts),), every, prompts=request.prompts[:1])
    frames: list[np.ndarray] = []
    stage = Stage(loaded, classifier, {})
    if request.outpaint:
        made, given = _outpaint(stage, asked, request)
    else:
        made, given = _sample(stage, asked, request, base=base, frames=frames if request.animation else None)
    made = _repaint(stage, made, kept, request)
    notes = None
    if clip:
        found = reranking.scores(clip.model, clip.params, made, asked)
        chosen = reranking.best(found, asked.every, request.best)
        made, asked, frames = made[chosen], asked._replace(every=asked.every[chosen]), [f[chosen] for f in frames]
        notes = [{"index": int(i), "clip_score": round(float(found[i]), 3)} for i in chosen]
    named = asked._replace(prompts=asked.names) if request.interpolate_prompts else asked
    if larger:
        files.save_npz(out / files.BASE_SAMPLES, made, named)
        edit = dataclasses.replace(request.edit, strength=None) if request.edit.mask else pictures.Edit()
        enlarging = dataclasses.replace(request, negative_prompt=None, weak_checkpoint=None, edit=edit)
        made, given = _sample(Stage(larger, None, {}), asked, enlarging, base=stages.Base(made))
    record = _record(larger or loaded, request)
    files.write(out, made, named, given.rows(), record, notes, frames)


def check_upsampler(model: build.Model, larger: build.Model, path: str) -> None:
    """Raises UserError where a checkpoint does not enlarge what the model makes."""
    if (larger.config.model.low_res, larger.image_shape[-1]) != model.image_shape[1:]:
        raise UserError(
            f"--upsampler={path} enlarges pictures of {larger.config.model.low_res} pixels, and "
            f"--checkpoint makes {model.image_shape[0]}."
        )


def _sample(
    stage: Stage,
    asked: stages.Conditions,
    request: Request,
    base: stages.Base | None = None,
    this: rounds.Round | None = None,
    frames: list[np.ndarray] | None = None,
) -> tuple[np.ndarray, pictures.Given]:
    """A stage's images, or those of one round of repainting: uint8, and the pictures that it was given; fills `frames`."""
    loaded, classifier, programs = stage
    model, place = loaded.model, build.placement(loaded.model.config)
    count, batch_size = len(asked.every), request.batch_size or BATCH_SIZE
    batch_size = -(-min(batch_size, count) // place.num_devices) * place.num_devices
    given = pictures.read(request.edit, model.image_shape)
    cond = stages.cond_of(model, asked, (classifier.model, classifier.params) if classifier else None)
    cond = stages.with_pictures(cond, count, model, given, base)
    knobs = build.knobs(model)._replace(deviation=request.edit.observation_noise)
    if this:
        cond, plan = rounds.shown(cond, model, this), rounds.plan(this, build.grid(model))
    else:
        plan = pictures.plan(request.edit, given, build.grid(model), _draw(loaded, place, count, request.seed, knobs))
    inputs = plan.inputs._replace(**_guided_by(request, loaded))
    indices, seed = np.arange(count), (request.seed + (this.number if this else 0)) % 2**32
    if request.interpolate_prompts:  # of one noise, from the first caption to the second
        other = stages.cond_of(model, asked._replace(prompts=request.prompts[1:]))
        inputs = inputs._replace(other_cond=cond | other, fraction=np.linspace(0, 1, count))
        indices = np.zeros(count, int)
    if classifier:
        inputs = inputs._replace(classifier_params=classifier.params)
    steps = len(plan.grid) - 1 - inputs.begin
    print(_summary(loaded, asked, steps, seed, classifier) + plan.remark)
    if plan.edit not in programs:
        guide = classifier.model if classifier else None
        programs[plan.edit] = build.generate(model, place, plan.edit, classifier=guide)
    watch = None if frames is None else Watch(_filming(frames, (count, *model.image_shape)), min(steps, FRAMES))
    total = -(-count // batch_size) * steps
    with tqdm.tqdm(total=total, desc="sample", unit="step", dynamic_ncols=True) as bar:
        made = programs[plan.edit](
            loaded.params, cond, indices, seed, knobs, plan.grid, batch_size, bar.update, inputs, watch=watch
        )
    return made, given


def _summary(loaded: Loaded, asked: stages.Conditions, steps: int, seed: int, classifier: Loaded | None) -> str:
    """What is about to be sampled."""
    model, config = loaded.model, loaded.model.config.sample
    guided = f"guidance {config.guidance_scale:g}" if model.null_cond and config.guidance != "none" else "no guidance"
    if classifier:
        guided += f", classifier {config.classifier_scale:g}"
    return (
        f"step {loaded.step} of {loaded.workdir}: {len(asked.every)} images of {len(asked.names)} conditions, "
        f"{config.sampler} with {steps} steps, {guided}, seed {seed}"
    )


def _filming(frames: list[np.ndarray], shape: tuple[int, ...]) -> Callable[[int, int, np.ndarray], None]:
    """A Watch's `show` that puts what it sees into frames, each of all pictures; batches come one after the other."""
    places: dict[int, int] = {}

    def show(first: int, step: int, shown: np.ndarray) -> None:
        place = places.setdefault(step, len(places))
        if place == len(frames):
            frames.append(np.full(shape, 127, np.uint8))
        frames[place][first : first + len(shown)] = shown

    return show


def _repaint(stage: Stage, made: np.ndarray, kept: list[np.ndarray], request: Request) -> np.ndarray:
    """The pictures after the request's rounds of editing, of which each keeps [H, W, 1]."""
    for number, ((caption, _), known) in enumerate(zip(request.rounds, kept, strict=True), 1):
        asked = stages.Conditions((caption,), np.zeros(len(made), int), prompts=(caption,))
        this = rounds.Round(made, np.broadcast_to(known, (*made.shape[:3], 1)), number)
        made, _ = _sample(stage, asked, _unedited(request), this=this)
    return made


def _outpaint(stage: Stage, asked: stages.Conditions, request: Request) -> tuple[np.ndarray, pictures.Given]:
    """The given picture with a border drawn around it, window by window."""
    shape, read = stage.loaded.model.image_shape, pictures.read(request.edit, stage.loaded.model.image_shape)
    assert request.outpaint is not None and read.pictures is not None, "check has seen to it"
    border = rounds.margins(request.outpaint)
    made, known = rounds.canvas(read.pictures[0], border, len(asked.every))
    shown = pictures.Given(made[:1].copy(), None)
    for number, (top, left) in enumerate(rounds.windows(shape[:2], border), 1):
        window = (slice(top, top + shape[0]), slice(left, left + shape[1]))
        kept = np.broadcast_to(known[window][None, ..., None], (len(made), *shape[:2], 1))
        this = rounds.Round(made[:, *window], kept, number)
        made[:, *window] = _sample(stage, asked, _unedited(request), this=this)[0]
        known[window] = True
    return made, shown


def _unedited(request: Request) -> Request:
    """The request of a round, which has its own pictures."""
    return dataclasses.replace(request, edit=pictures.Edit(), interpolate_prompts=False)


def _reranker(model: build.Model, request: Request) -> Loaded | None:
    if request.rerank is None:
        return None
    clip = load(request.rerank, {})
    reranking.check(clip.model, model, request.rerank)
    return clip


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
    if request.edit != pictures.Edit() or request.animation or request.rounds:
        raise UserError("this checkpoint's samples are vectors: there is no picture to edit or to show as it forms.")
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
    print(f"wrote {count} samples of step {loaded.step}: samples.npz, grid.png and {files.RESULTS} to {out}")


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
        "base_checkpoint": request.checkpoint if request.upsampler else None,
        "base_samples": request.base_samples,
        "classifier": request.classifier,
        "negative_prompt": request.negative_prompt,
        "weak_checkpoint": request.weak_checkpoint,
        "edit": dataclasses.asdict(request.edit),
        "interpolate_prompts": request.interpolate_prompts,
        "outpaint": request.outpaint,
        "rounds": request.rounds,
        "rerank": request.rerank,
    }
