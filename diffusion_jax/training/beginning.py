"""Where a run begins: at its own last checkpoint, at another run's or a converted one, or untrained."""

import pathlib
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from configs.default import get_config as default_config
from diffusion_jax import build, processes
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.training import checkpoint, warm_start
from diffusion_jax.training.placement import Placement
from diffusion_jax.training.step import TrainState

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


def resume(config: ConfigDict, workdir: pathlib.Path) -> tuple[int | None, Any]:
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


class Origin(NamedTuple):
    """The checkpoint that a run begins at: config.train.init_from's newest."""

    workdir: pathlib.Path
    step: int
    config: ConfigDict
    tokenizer: Any  # None where it is of another kind of network than the config's


def origin(config: ConfigDict) -> Origin:
    """What config.train.init_from names.

    Raises:
      UserError: there is no such checkpoint, or config.train.init_reshaped is unknown.
    """
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
    return Origin(workdir, step, theirs, build.tokenizer(theirs.model.kind, text) if alike else None)


def match(begin: Origin, model: build.Model) -> warm_start.Match:
    """What the model takes of the checkpoint, by shapes alone."""
    config, shapes = model.config, checkpoint.ema_shapes(begin.workdir, begin.step)
    wanted = jax.eval_shape(model.network.init, jax.random.key(0))
    there, here = (warm_start.Inputs(*build.input_parts(c)) for c in (begin.config, config))
    try:
        return warm_start.match(shapes, wanted, there, here, config.train.init_reshaped)
    except UserError as error:
        raise UserError(f"config.train.init_from={config.train.init_from}: {error}") from error


def begun(
    state: TrainState,
    begin: Origin,
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
