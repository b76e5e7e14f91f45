"""A training run from its config: build, resume, train. What train.py calls."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_jax import build, processes
from diffusion_jax.data import bpe
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.data.pipeline import Source, captions_of, train_batches
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.training import beginning, checkpoint, loop, samples
from diffusion_jax.training.hooks import MetricWriter
from diffusion_jax.training.placement import Placement
from diffusion_jax.training.posthoc import Snapshots
from diffusion_jax.training.rollback import go_back
from diffusion_jax.training.step import TrainState, init_state

TOKENIZERS = ("trained", "gpt2", "clip")  # the last for model.kind = clip alone
TOKENIZER_CAPTIONS = 20_000


class _Run(NamedTuple):
    """What a run is made of."""

    config: ConfigDict
    workdir: pathlib.Path
    place: Placement
    source: Source
    model: build.Model
    step: Callable[..., tuple[TrainState, Any]]
    checkpoints: checkpoint.Checkpoints
    show: Callable[..., Any] | None  # the pictures of the averages; None where there is nothing to show
    evaluate: Any  # scores.training's metrics of the averages, or None


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
    place = _placement(config)
    resume_step, tokenizer = beginning.resume(config, workdir)
    origin = beginning.origin(config) if config.train.init_from and resume_step is None else None
    source = _source(config)
    model = build.model(config, _tokenizer(config, source, origin.tokenizer if origin else tokenizer))
    optimizer = build.optimizer(config)
    step = place.train(build.train_step(model, optimizer))
    found = beginning.match(origin, model) if origin else None
    checkpoints = _open(workdir, config)
    state = _initial_state(model, optimizer, config.seed, checkpoints, resume_step, place)
    if origin and found:
        state = beginning.begun(state, origin, found, config, place, workdir)
    show = samples.sample_grid(model, place, workdir, source) if config.train.sample_every_steps > 0 else None
    _announce(config, workdir, state, place.num_devices, bool(show))
    run = _Run(config, workdir, place, source, model, step, checkpoints, show, _evaluate(model, place))
    with checkpoints.full_disk_told(), contextlib.closing(checkpoints):
        state, signal_name = _train_and_go_back(run, state, started)
    _tell_end(run, int(state.step), signal_name)
    return signal_name


def _train_and_go_back(run: _Run, state: TrainState, started: float) -> tuple[TrainState, str | None]:
    """The last state and what ended the run; from the last checkpoint again as often as the config lets a diverged run."""
    template = jax.eval_shape(lambda: state)
    places = run.place.shardings(template)
    while True:
        try:
            return _train_from(run, state, started)
        except loop.Diverged as failure:
            started = time.monotonic()
            state = go_back(failure, run.config.train.rollbacks, run.checkpoints, template, places)


def _train_from(run: _Run, state: TrainState, started: float) -> tuple[TrainState, str | None]:
    """The loop from a state on, with its batches and its hooks."""
    config, model, checkpoints = run.config, run.model, run.checkpoints
    batches = train_batches(
        run.source,
        build.encode_example(model),
        config.train.batch_size,
        config.seed,
        int(state.next_batch),
        run.place.rows(config.train.batch_size),
        on_error=config.data.on_error,
        workers=config.data.workers,
    )
    plain, text = config.to_dict(), model.tokenizer.to_json() if model.tokenizer else None
    snapshots = Snapshots(run.workdir, tuple(config.ema.posthoc_stds), int(state.step))
    names = loop.METRICS + build.figures(model) + (run.evaluate.names if run.evaluate else ())
    with contextlib.closing(MetricWriter(run.workdir, names, int(state.step))) as metrics:
        hooks = loop.Hooks(
            lambda state: checkpoints.save(state, plain, text),
            checkpoints.wait,
            metrics,
            run.show,
            lambda state: snapshots.write(int(state.step), state.more_ema[len(config.ema.more_decays) :]),
            checkpoints.preempted,
            lambda: batches.skipped,
            run.evaluate and run.evaluate.figures,
        )
        return loop.train(state, run.step, batches, _cadence(config), hooks, started)


def _cadence(config: ConfigDict) -> loop.Cadence:
    return loop.Cadence(
        config.train.num_steps,
        config.train.log_every_steps,
        config.train.sample_every_steps,
        config.train.checkpoint_every_steps,
        config.ema.snapshot_every_steps if config.ema.posthoc_stds else 0,
        config.train.max_skipped_steps,
        config.train.evaluate_every_steps,
    )


def _placement(config: ConfigDict) -> Placement:
    """Where the run computes, after a check that its batch can be shared there."""
    for name in ("batch_size", "accumulation"):
        if config.train[name] < 1:
            raise UserError(f"config.train.{name}={config.train[name]} must be at least 1.")
    place = build.placement(config)
    if config.train.batch_size % (parts := place.num_devices * config.train.accumulation):
        pieces = f" in {config.train.accumulation} accumulated pieces" if config.train.accumulation > 1 else ""
        raise UserError(
            f"config.train.batch_size is {config.train.batch_size}, which {place.num_devices} devices cannot share evenly{pieces}. "
            f"Use a multiple of {parts}, or --config.parallel.placement=single."
        )
    return place


def _source(config: ConfigDict) -> Source:
    source = processes.first_then_others(lambda: build.source(config))
    if len(source) < config.train.batch_size:
        raise UserError(
            f"the data set has {len(source)} examples, less than one batch of config.train.batch_size={config.train.batch_size}. "
            "Use a smaller batch or more examples."
        )
    return source


def _tokenizer(config: ConfigDict, source: Source, kept: Any) -> Any:
    """The one that was kept with the checkpoint where the run begins; else a new one, if captions are read at all."""
    if config.model.condition != "text" and config.model.kind != "clip":
        return None
    return kept or _make_tokenizer(config, source)


def _evaluate(model: build.Model, place: Placement) -> Any:
    if not model.config.train.evaluate_every_steps:
        return None
    from diffusion_jax.scores.training import while_training  # here, since it brings all that evaluation needs

    return while_training(model, place)


def _tell_end(run: _Run, step: int, signal_name: str | None) -> None:
    folder = run.checkpoints.folder
    if signal_name:
        print(
            f"{signal_name}: saved step {run.checkpoints.latest()} in {folder}. The same command continues from there."
        )
        return
    shown = f", samples in {run.workdir / 'samples'}" if run.show else ""
    print(f"trained to step {step}; checkpoint in {folder}{shown}.")
    guide = f"BASE --classifier={run.workdir}" if run.config.model.kind in samples.GUIDES else run.workdir
    print(f"next: python sample.py --checkpoint={guide}")


def _make_tokenizer(config: ConfigDict, source: Source) -> Any:
    """GLIDE's, CLIP's, or one learned from the captions of the data set."""
    name, known = config.text.tokenizer, TOKENIZERS if config.model.kind == "clip" else TOKENIZERS[:-1]
    if name not in known:
        raise unknown_name("config.text.tokenizer", name, known)
    if name != "trained":
        return (bpe.load_clip if name == "clip" else bpe.load_glide)(config.text.vocabulary)
    captions = captions_of(source, TOKENIZER_CAPTIONS, config.data.caption_field)
    return CaptionTokenizer.train(captions, config.text.vocab_size)


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


def _announce(config: ConfigDict, workdir: pathlib.Path, state: TrainState, num_devices: int, shows: bool) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kind = jax.local_devices()[0].device_kind
    begin = f"continues from step {int(state.step)}" if int(state.step) else "starts"
    print(
        f"{count / 1e6:.2f} million parameters on {num_devices} x {kind}, placement {config.parallel.placement}; the run {begin}"
    )
    print(f"writes to {workdir}: checkpoints/, {'samples/, ' if shows else ''}metrics.csv, tensorboard/")
