"""A training run from its config: build, resume, train. What train.py calls."""

import contextlib
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from configs.default import get_config as default_config
from diffusion_jax import build, processes
from diffusion_jax.data import bpe
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.data.pipeline import Source, captions_of, train_batches
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.training import checkpoint, loop, samples, warm_start
from diffusion_jax.training.hooks import MetricWriter
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
RESHAPED = ("refuse", "new")  # values of config.train.init_reshaped
INIT_REPORT = "init_from.txt"
# Fields of the group diffusion that decide what a network is told and what it gives.
LEARNED_FIELDS = ("schedule", "schedule_shift", "num_table_steps", "rescale_times", "parameterization", "variance")
TOKENIZERS = ("trained", "gpt2", "clip")  # the last for model.kind = clip alone
TOKENIZER_CAPTIONS = 20_000


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
    resume_step, tokenizer = _resume(config, workdir)
    begin = _begin(config) if config.train.init_from and resume_step is None else None
    source = processes.first_then_others(lambda: build.source(config))
    if len(source) < config.train.batch_size:
        raise UserError(
            f"the data set has {len(source)} examples, less than one batch of config.train.batch_size={config.train.batch_size}. "
            "Use a smaller batch or more examples."
        )
    reads_captions = config.model.condition == "text" or config.model.kind == "clip"
    if begin and reads_captions:
        tokenizer = begin.tokenizer
    if tokenizer is None and reads_captions:
        tokenizer = _make_tokenizer(config, source)
    model = build.model(config, tokenizer)
    optimizer = build.optimizer(config)
    step = place.train(build.train_step(model, optimizer))
    found = _match(begin, model) if begin else None
    checkpoints = _open(workdir, config)
    state = _initial_state(model, optimizer, config.seed, checkpoints, resume_step, place)
    if begin and found:
        state = _begun(state, begin, found, config, place, workdir)
    show = samples.sample_grid(model, place, workdir, source) if config.train.sample_every_steps > 0 else None
    _announce(config, workdir, state, place.num_devices, bool(show))

    plain, text = config.to_dict(), tokenizer.to_json() if tokenizer else None
    stds = tuple(config.ema.posthoc_stds)
    cadence = loop.Cadence(
        config.train.num_steps,
        config.train.log_every_steps,
        config.train.sample_every_steps,
        config.train.checkpoint_every_steps,
        config.ema.snapshot_every_steps if stds else 0,
        config.train.max_skipped_steps,
        config.train.evaluate_every_steps,
    )
    evaluate = None
    if config.train.evaluate_every_steps:
        from diffusion_jax.scores.training import while_training  # here, since it brings all that evaluation needs

        evaluate = while_training(model, place)

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
        names = loop.METRICS + build.figures(model) + (evaluate.names if evaluate else ())
        with contextlib.closing(MetricWriter(workdir, names, int(state.step))) as metrics:
            hooks = loop.Hooks(
                lambda state: checkpoints.save(state, plain, text),
                checkpoints.wait,
                metrics,
                show,
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
        shown = f", samples in {workdir / 'samples'}" if show else ""
        print(f"trained to step {int(state.step)}; checkpoint in {checkpoints.folder}{shown}.")
        guide = f"BASE --classifier={workdir}" if config.model.kind in samples.GUIDES else workdir
        print(f"next: python sample.py --checkpoint={guide}")
    return signal_name


def _make_tokenizer(config: ConfigDict, source: Source) -> Any:
    """GLIDE's, CLIP's, or one learned from the captions of the data set."""
    name, known = config.text.tokenizer, TOKENIZERS if config.model.kind == "clip" else TOKENIZERS[:-1]
    if name not in known:
        raise unknown_name("config.text.tokenizer", name, known)
    if name != "trained":
        return (bpe.load_clip if name == "clip" else bpe.load_glide)(config.text.vocabulary)
    captions = captions_of(source, TOKENIZER_CAPTIONS, config.data.caption_field)
    return CaptionTokenizer.train(captions, config.text.vocab_size)


def _resume(config: ConfigDict, workdir: pathlib.Path) -> tuple[int | None, Any]:
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
    return step, build.tokenizer(config.model.kind, text)


class _Begin(NamedTuple):
    """The checkpoint that a run begins at: config.train.init_from's newest."""

    workdir: pathlib.Path
    step: int
    config: ConfigDict
    tokenizer: Any  # None where it is of another kind of network than the config's


def _begin(config: ConfigDict) -> _Begin:
    path = config.train.init_from
    if config.train.init_reshaped not in RESHAPED:
        raise unknown_name("config.train.init_reshaped", config.train.init_reshaped, RESHAPED)
    if not pathlib.Path(path).exists():
        raise UserError(
            f"config.train.init_from={path}: no such directory. Train that stage first (docs/glide.md), or name another run or "
            "converted checkpoint; empty begins untrained."
        )
    workdir, step, (saved, text) = checkpoint.read_newest(
        path, lambda workdir, step: (workdir, step, checkpoint.read_texts(workdir, step))
    )
    theirs = ConfigDict(_filled(saved, default_config().to_dict()))
    alike = (theirs.model.kind == "clip") == (config.model.kind == "clip")
    return _Begin(workdir, step, theirs, build.tokenizer(theirs.model.kind, text) if alike else None)


def _match(begin: _Begin, model: build.Model) -> warm_start.Match:
    """What the model takes of the checkpoint, by shapes alone."""
    config, shapes = model.config, checkpoint.ema_shapes(begin.workdir, begin.step)
    wanted = jax.eval_shape(model.network.init, jax.random.key(0))
    there, here = (warm_start.Inputs(*build.input_parts(c)) for c in (begin.config, config))
    try:
        return warm_start.match(shapes, wanted, there, here, config.train.init_reshaped)
    except UserError as error:
        raise UserError(f"config.train.init_from={config.train.init_from}: {error}") from error


def _begun(
    state: TrainState,
    begin: _Begin,
    found: warm_start.Match,
    config: ConfigDict,
    place: Placement,
    workdir: pathlib.Path,
) -> TrainState:
    """The untrained state with the checkpoint's parameters in it; tells which, on the terminal and in WORKDIR/init_from.txt."""
    shapes = checkpoint.ema_shapes(begin.workdir, begin.step)
    saved = checkpoint.read_ema(begin.workdir, begin.step, shapes, place.shardings(shapes))
    if processes.first():
        source = [f"begins at the averaged parameters of {config.train.init_from}, step {begin.step}"]
        changed = changed_fields(begin.config.diffusion.to_dict(), config.diffusion.to_dict(), "diffusion.")
        if changed := [change for change in changed if change.split(" ")[0].partition(".")[2] in LEARNED_FIELDS]:
            source.append(f"note: {'; '.join(changed)}: the network knows the former, and must learn this anew")
        (workdir / INIT_REPORT).write_text("\n".join([*source, *warm_start.report(found, most=None)]) + "\n")
        print("\n".join([*source, *warm_start.report(found), f"all names: {workdir / INIT_REPORT}"]))
    return warm_start.begin(state, saved, found)


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


def _announce(config: ConfigDict, workdir: pathlib.Path, state: TrainState, num_devices: int, shows: bool) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kind = jax.local_devices()[0].device_kind
    begin = f"continues from step {int(state.step)}" if int(state.step) else "starts"
    print(
        f"{count / 1e6:.2f} million parameters on {num_devices} x {kind}, placement {config.parallel.placement}; the run {begin}"
    )
    print(f"writes to {workdir}: checkpoints/, {'samples/, ' if shows else ''}metrics.csv, tensorboard/")
