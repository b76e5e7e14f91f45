"""A training run from its config: build, resume, train. What train.py calls."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.default import get_config as default_config
from diffusion_jax import build, processes, vectors
from diffusion_jax.data import bpe
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.data.pipeline import Source, captions_of, train_batches
from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint, loop
from diffusion_jax.training.hooks import MetricWriter, SampleGrid
from diffusion_jax.training.placement import Placement
from diffusion_jax.training.posthoc import Snapshots
from diffusion_jax.training.rollback import go_back
from diffusion_jax.training.step import TrainState, init_state

# Fields that may change when a run is continued: they decide when it stops and what it shows, not what it learns.
FREE_FIELDS = (
    *("train.num_steps", "train.log_every_steps", "train.sample_every_steps", "train.checkpoint_every_steps"),
    *("train.evaluate_every_steps", "train.checkpoints_to_keep"),
    *("train.accumulation", "train.max_skipped_steps", "train.rollbacks"),
    *("ema.snapshot_every_steps", "data.dir", "data.on_error", "data.workers", "model.remat", "model.attention"),
)
FREE_GROUPS = ("sample.", "evaluate.", "parallel.")
TOKENIZER_CAPTIONS = 20_000
EVALUATED_AT_A_TIME = 64  # pictures, over all devices
MAX_CLASSES = 16  # rows of the pictures that training shows


def train(config: ConfigDict, workdir: pathlib.Path, started: float) -> str | None:
    """Trains the config in workdir, from its last checkpoint if there is one.

    Args:
      config: a whole config.
      workdir: made if it is not there.
      started: `time.monotonic()` when the program began.

    Returns:
      None where the run came to its end, and otherwise what ended it: "SIGINT", "SIGTERM" or "preemption".

    Raises:
      UserError: for what the user can mend.
    """
    place = build.placement(config)
    if config.train.batch_size % (parts := place.num_devices * config.train.accumulation):
        pieces = f" in {config.train.accumulation} accumulated pieces" if config.train.accumulation > 1 else ""
        raise UserError(
            f"config.train.batch_size is {config.train.batch_size}, which {place.num_devices} devices cannot share evenly{pieces}. "
            f"Use a multiple of {parts}, or --config.parallel.placement=single."
        )
    resume_step, tokenizer = _resume(config, workdir)
    source = processes.first_then_others(lambda: build.source(config))
    if len(source) < config.train.batch_size:
        raise UserError(
            f"the data set has {len(source)} examples, less than one batch of config.train.batch_size={config.train.batch_size}. "
            "Use a smaller batch or more examples."
        )
    if tokenizer is None and config.model.condition == "text":
        tokenizer = _make_tokenizer(config, source)
    model = build.model(config, tokenizer)
    optimizer = build.optimizer(config)
    step = place.train(build.train_step(model, optimizer))
    checkpoints = _open(workdir, config)
    state = _initial_state(model, optimizer, config.seed, checkpoints, resume_step, place)
    _announce(config, workdir, state, place.num_devices)

    plain, text = config.to_dict(), tokenizer.to_json() if tokenizer else None
    stds = tuple(config.ema.posthoc_stds)
    cadence = loop.Cadence(
        config.train.num_steps,
        config.train.log_every_steps,
        config.train.sample_every_steps,
        config.train.checkpoint_every_steps,
        config.ema.snapshot_every_steps if stds else 0,
        config.train.max_skipped_steps,
        config.train.evaluate_every_steps,  # 0 has no hook
    )
    evaluate = _evaluate(model, place) if config.train.evaluate_every_steps else None
    sample_grid = _sample_grid(model, place, workdir)

    def train_from(state: TrainState, started: float) -> tuple[TrainState, str | None]:
        batches = train_batches(
            source,
            build.encode_example(model),
            config.train.batch_size,
            config.seed,
            int(state.next_batch),
            place.rows(config.train.batch_size),
            on_error=config.data.on_error,
            workers=config.data.workers,
        )
        snapshots = Snapshots(workdir, stds, int(state.step))
        names = loop.METRICS + (evaluate.names if evaluate else ())
        with contextlib.closing(MetricWriter(workdir, names, int(state.step))) as metrics:
            hooks = loop.Hooks(
                lambda state: checkpoints.save(state, plain, text),
                checkpoints.wait,
                metrics,
                sample_grid,
                lambda state: snapshots.write(int(state.step), state.more_ema[len(config.ema.more_decays) :]),
                checkpoints.preempted,
                lambda: batches.skipped,
                evaluate and evaluate.figures,
            )
            return loop.train(state, step, batches, cadence, hooks, started)

    with checkpoints.full_disk_told(), contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        template = jax.eval_shape(lambda: state)
        places = place.shardings(template)
        while True:
            try:
                state, signal_name = train_from(state, started)
                break
            except loop.Diverged as failure:
                started = time.monotonic()
                state = go_back(failure, config.train.rollbacks, checkpoints, template, places)
    if signal_name:
        print(
            f"{signal_name}: saved step {checkpoints.latest()} in {checkpoints.folder}. The same command continues from there."
        )
    else:
        shown = f", samples in {workdir / 'samples'}" if sample_grid else ""
        print(f"trained to step {int(state.step)}; checkpoint in {checkpoints.folder}{shown}.")
        guide = f"BASE --classifier={workdir}" if config.model.kind == "classifier" else workdir
        print(f"next: python sample.py --checkpoint={guide}")
    return signal_name


def _make_tokenizer(config: ConfigDict, source: Source) -> Any:
    """GLIDE's, or one learned from the captions of the data set."""
    if config.text.tokenizer == "gpt2":
        return bpe.load_glide(config.text.vocabulary)
    captions = captions_of(source, TOKENIZER_CAPTIONS, config.data.caption_field)
    return CaptionTokenizer.train(captions, config.text.vocab_size)


def _resume(config: ConfigDict, workdir: pathlib.Path) -> tuple[int | None, CaptionTokenizer | None]:
    """The step to continue from and its tokenizer, after a check that the run there is of this config."""
    try:
        checkpoint.find(str(workdir))
    except UserError:  # nothing, or only the leavings of a write that was interrupted
        return None, None
    step, (saved, text) = checkpoint.read_newest(str(workdir), lambda w, step: (step, checkpoint.read_texts(w, step)))
    # Fields that came after that run keep their defaults, which change nothing.
    saved = _filled(saved, default_config().to_dict())
    changes = [change for change in changed_fields(saved, config.to_dict()) if not _free(change.split(" ")[0])]
    if changes:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(changes)}. Choose another --workdir, or give the config of "
            f"that run (only {', '.join(FREE_FIELDS)} and the groups sample, evaluate, parallel may change)."
        )
    return step, CaptionTokenizer.from_json(text) if text else None


def _filled(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    merged = defaults | saved
    return {
        name: _filled(value, defaults[name]) if isinstance(value, dict) and name in defaults else value
        for name, value in merged.items()
    }


def changed_fields(saved: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two configs differ, as "group.field was A, now B"."""
    changes = []
    for name in sorted(saved.keys() | given.keys()):
        old, new = saved.get(name, "absent"), given.get(name, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            changes += changed_fields(old, new, f"{prefix}{name}.")
        elif (list(old) if isinstance(old, tuple) else old) != (list(new) if isinstance(new, tuple) else new):
            changes.append(f"{prefix}{name} was {old}, now {new}")
    return changes


def _free(field: str) -> bool:
    return field in FREE_FIELDS or field.startswith(FREE_GROUPS)


def _open(workdir: pathlib.Path, config: ConfigDict) -> checkpoint.Checkpoints:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return checkpoint.Checkpoints(workdir, config.train.checkpoints_to_keep)
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir} ({error.strerror}). Choose another place or free some space."
        ) from error


def _initial_state(
    model: build.Model,
    optimizer: Any,
    seed: int,
    checkpoints: checkpoint.Checkpoints,
    resume_step: int | None,
    place: Placement,
) -> TrainState:
    make = functools.partial(
        init_state, model.network.init, optimizer, seed, build.loss_history(model), len(build.averages(model.config))
    )
    if resume_step is None:
        return make(shardings=place.shardings)
    template = jax.eval_shape(make)
    return checkpoints.restore_newest(resume_step, template, place.shardings(template))


def _sample_grid(
    model: build.Model, place: Placement, workdir: pathlib.Path
) -> SampleGrid | vectors.SamplePicture | None:
    """Samples of config.sample.prompts, of classes or of no condition by the EMA parameters.

    None for a classifier, which makes no pictures, and for a network that must be given one to enlarge or to repaint.
    """
    if vectors.is_vector(model):
        return vectors.SamplePicture(model, place, workdir)
    config = model.config
    if config.model.kind == "classifier" or model.blank_cond.keys() & {"low_res", "inpaint_mask"}:
        return None
    per_prompt = config.sample.samples_per_prompt
    if config.model.condition == "text":
        labels = tuple(config.sample.prompts)
        cond = build.prompt_cond(model, labels)
    elif config.model.condition == "label":
        count = min(config.data.num_classes, MAX_CLASSES)
        labels = tuple(f"class {i}" for i in range(count))
        cond = {"label": np.arange(count, dtype=np.int32)}
    else:
        labels, cond = ("unconditional",), {}
    count = len(labels) * per_prompt
    size = -(-count // place.num_devices) * place.num_devices
    generate, grid, knobs = build.generate(model, place), build.grid(model), build.knobs(model)
    cond = jax.tree.map(lambda leaf: np.repeat(leaf, per_prompt, axis=0), cond)

    def sample(ema_params: Any) -> np.ndarray:
        made = generate(ema_params, cond, np.arange(count), config.seed, knobs, grid, size)
        return made.reshape(len(labels), per_prompt, *made.shape[1:])

    return SampleGrid(workdir, labels, sample)


class _Evaluation(NamedTuple):
    """The metrics that `figures`, of EMA parameters, has; or some of them."""

    names: tuple[str, ...]
    figures: Callable[[Any], dict[str, float]]


def _evaluate(model: build.Model, place: Placement) -> _Evaluation:
    """What samples of a few captions of config.evaluate.split show of them."""
    from diffusion_jax import scores  # here, since it brings all that evaluation needs
    from diffusion_jax.metrics.caption_checker import MIN_IMAGE_SIZE, Scores

    config = model.config
    if not scores.captions_can_be_read(model) or model.image_shape[0] < MIN_IMAGE_SIZE:
        raise UserError(
            "config.train.evaluate_every_steps is for text-conditional models of captioned_scenes of at least "
            f"{MIN_IMAGE_SIZE} pixels. Set it to 0, and score checkpoints by python -m diffusion_jax.evaluate."
        )
    if config.evaluate.split not in ("validation", "test") or config.evaluate.num_samples < 1:
        raise UserError("config.evaluate.split is validation or test, and config.evaluate.num_samples at least 1.")
    source = processes.first_then_others(lambda: build.source(config, config.evaluate.split))
    examples = [source[i] for i in range(min(config.evaluate.num_samples, len(source)))]
    size = -(-min(EVALUATED_AT_A_TIME, len(examples)) // place.num_devices) * place.num_devices
    score = scores.caption_scorer(model, place, examples, size)

    def figures(ema_params: Any) -> dict[str, float]:
        found = score(ema_params, config.sample.guidance_scale, config.seed)
        return {f"score_{name}": value for name, value in found.items()}

    return _Evaluation(tuple(f"score_{name}" for name in Scores._fields), figures)


def _announce(config: ConfigDict, workdir: pathlib.Path, state: TrainState, num_devices: int) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kind = jax.local_devices()[0].device_kind
    begin = f"continues from step {int(state.step)}" if int(state.step) else "starts"
    print(
        f"{count / 1e6:.2f} million parameters on {num_devices} x {kind}, placement {config.parallel.placement}; the run {begin}"
    )
    print(f"writes to {workdir}: checkpoints/, samples/, metrics.csv, tensorboard/")
