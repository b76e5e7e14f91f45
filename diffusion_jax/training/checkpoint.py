"""Checkpoints by Orbax: asynchronous, atomic, and whole: state, EMA, config and tokenizer in each, and the checksums of all.

Orbax itself restores nine in ten altered files without a word. Here whatever differs from what was saved is `Damaged`, and
whoever wants the newest checkpoint gets the newest that is not.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from diffusion_jax import processes
from diffusion_jax.errors import UserError
from diffusion_jax.models import Params
from diffusion_jax.training.fingerprint import fingerprint, named_leaves
from diffusion_jax.training.step import TrainState

FOLDER = "checkpoints"
_ITEMS = ("state", "ema", "config", "tokenizer", "checksums")
_SEAL = "seal"  # among the checksums: of all the others

T = TypeVar("T")


class Damaged(UserError):
    """A checkpoint that cannot be read, or whose contents are not those that were saved; `reason` says what is wrong."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class Checkpoints:
    """The checkpoints of a work directory.

    A step is saved as five items: "state" (all of the train state but the EMA), "ema" (so that sampling reads nothing
    else), "config", "tokenizer" and "checksums" (JSON). Saving copies to the host and returns; files are written in the
    background and the step appears by a rename, whole or not at all. The next save waits for that, so that a killed run
    loses at most the steps since the last save but one; what failed is raised then. With several processes, each calls
    every method; each writes and reads its own part of the arrays, and process 0 alone the rest.
    """

    def __init__(self, workdir: pathlib.Path, max_to_keep: int = 3):
        """Opens (and for writing creates) WORKDIR/checkpoints.

        Args:
          workdir: the run's directory.
          max_to_keep: older checkpoints beyond this many are deleted.
        """
        self.folder = workdir.absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written = concurrent.futures.Future[None]()
        self._written.set_result(None)

    def save(self, state: TrainState, config: dict[str, Any], tokenizer_json: str | None) -> None:
        """Begins to write a checkpoint of the state's step; a step that is there already is left."""
        step = int(state.step)
        self._join()
        if step in self._manager.all_steps():
            return
        arrays = {"state": _without_ema(state), "ema": state.ema_params}

        def hand_over(arrays: dict[str, Any]) -> None:
            self._manager.save(step, args=_items(arrays, config, tokenizer_json), force=True)

        def write(arrays: dict[str, Any]) -> None:
            hand_over(arrays)
            self._manager.wait_until_finished()

        if jax.process_count() == 1:
            # Checksums, and what Orbax does for each array before it writes, are too long to wait for. The copy is of whole
            # arrays, however they are sharded.
            self._written = self._thread.submit(write, jax.device_get(arrays))
        else:  # each writes its own part, and they meet at barriers, which only the main thread may; Orbax waits itself
            hand_over(arrays)

    def _join(self) -> None:
        """Waits until the thread has written what `save` began, and raises what went wrong with it, once."""
        last, self._written = self._written, concurrent.futures.Future[None]()
        self._written.set_result(None)
        last.result()

    def wait(self) -> None:
        """Blocks until what `save` began is on disk."""
        self._join()
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The last whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def preempted(self, step: int) -> bool:
        """Whether the cluster is about to end this run, so that this step should be saved: on every process at the same
        step. Only under `jax.distributed`, which then takes SIGTERM for itself."""
        return self._manager.reached_preemption(step)

    def restore(self, step: int, template: TrainState, shardings: TrainState | None = None) -> TrainState:
        """The train state of a step, from whatever number of devices it was saved.

        Args:
          step: one that exists.
          template: the shapes and types wanted (arrays or ShapeDtypeStruct).
          shardings: where each array goes, a tree like the template; None is the first local device.

        Raises:
          Damaged: the checkpoint is not what was saved.
          UserError: it is of other shapes.
        """
        wanted = _abstract(template, shardings)
        fields, saved = _without_ema(wanted), _saved_shapes(self.folder, step, "state")
        later = {}  # fields that came after this checkpoint begin at their defaults
        for name, default in TrainState._field_defaults.items():
            if default != () and not any(key.startswith(f"{name}/") for key in saved):
                later[name] = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), default, fields.pop(name))
        restored = _restore(self.folder, step, {"state": fields, "ema": wanted.ema_params})
        return TrainState(ema_params=restored["ema"], **restored["state"], **later)

    def restore_newest(self, newest: int, template: TrainState, shardings: TrainState | None = None) -> TrainState:
        """The train state of the newest checkpoint up to `newest` that is not damaged.

        Those that came after it are set aside as STEP.damaged, each with a line on stderr, so that their steps can be saved
        again.

        Args:
          newest: the step from which to look.
          template, shardings: see `restore`.

        Raises:
          UserError: all are damaged (and stay where they are), or of other shapes.
        """
        steps = [step for step in _steps(self.folder) if step <= newest]
        state = _first_good(self.folder, steps, lambda step: self.restore(step, template, shardings))
        if jax.process_index() == 0:
            for step in _steps(self.folder):
                if step > int(state.step):
                    _set_aside(self.folder / str(step))
        processes.wait_for_all()
        self._manager.reload()
        return state

    def close(self) -> None:
        """Waits for writes and releases the threads."""
        try:
            self._join()
        finally:
            self._thread.shutdown()
            self._manager.close()

    @contextlib.contextmanager
    def full_disk_told(self) -> Generator[None]:
        """Within it, any write that fails for want of space becomes a UserError that says what is safe."""
        try:
            yield
        except Exception as error:
            if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
                raise
            raise UserError(
                f"the disk of {self.folder} is full; the last whole checkpoint is step {self.latest()}. Free some space and "
                "run the same command again: it continues from there."
            ) from error


def refuse_old(workdir: pathlib.Path) -> None:
    """Raises UserError where a folder holds a checkpoint already."""
    folder = workdir / FOLDER
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{workdir} holds a checkpoint already. Choose another folder.")


def write_weights(workdir: pathlib.Path, params: Params, config: dict[str, Any], tokenizer_json: str | None) -> None:
    """A checkpoint to sample from, of weights that were trained elsewhere: step 0, without a train state.

    Raises:
      UserError: there is a checkpoint already, or the disk is full.
    """
    refuse_old(workdir)
    folder = workdir.absolute() / FOLDER
    try:
        with ocp.CheckpointManager(folder, item_names=_ITEMS) as manager:
            manager.save(0, args=_items({"ema": params}, config, tokenizer_json))
            manager.wait_until_finished()
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror or error}. Choose another place.") from error


def find(path: str) -> tuple[pathlib.Path, int]:
    """The work directory and step that a user's --checkpoint means.

    Args:
      path: a work directory, its checkpoints/ folder, or one step in it.

    Returns:
      (work directory, step); the latest step unless the path names one.

    Raises:
      UserError: nothing is there; it says what is.
    """
    workdir, steps = _find_all(path)
    return workdir, steps[0]


def read_newest(path: str, read: Callable[[pathlib.Path, int], T]) -> T:
    """What `read(workdir, step)` makes of the newest checkpoint that is not damaged.

    Args:
      path: as for `find`; one that names a step means this step alone.
      read: raises Damaged for a checkpoint to skip; each that is skipped is told in a line on stderr.

    Raises:
      UserError: nothing is there, or all are damaged.
    """
    workdir, steps = _find_all(path)
    return _first_good(workdir / FOLDER, steps, lambda step: read(workdir, step))


def read_texts(workdir: pathlib.Path, step: int) -> tuple[dict[str, Any], str | None]:
    """The config and the tokenizer's JSON (None without text) inside a checkpoint.

    Raises:
      Damaged: they are missing or not what was saved.
    """
    folder = workdir / FOLDER
    checksums = _read_checksums(folder, step)
    texts = {}
    for item in ("config", "tokenizer"):
        try:
            texts[item] = _read_json(folder, step, item)
        except (OSError, ValueError) as error:
            raise _damaged(folder, step, _line(error)) from error
        if checksums and checksums.get(item) != _digest(texts[item]):
            raise _damaged(folder, step, f"{item} is not what was saved")
    return texts["config"], texts["tokenizer"]["json"]


def ema_shapes(workdir: pathlib.Path, step: int) -> Params:
    """Shapes and types of a checkpoint's EMA parameters, of whatever network they are; a `template` for `read_ema`.

    Raises:
      Damaged: their list cannot be read.
    """
    saved = _saved_tree(workdir / FOLDER, step, "ema")
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), saved, is_leaf=lambda x: hasattr(x, "shape")
    )


def read_ema(workdir: pathlib.Path, step: int, template: Params, shardings: Any = None) -> Params:
    """The EMA parameters of a checkpoint, and nothing else of it.

    Args:
      workdir, step: from `find` or `read_newest`.
      template: shapes and types wanted, as from `jax.eval_shape`.
      shardings: where each array goes, a tree like the template; None is the first local device.

    Raises:
      Damaged: they are not what was saved.
      UserError: they are of other shapes.
    """
    return _restore(workdir / FOLDER, step, {"ema": _abstract(template, shardings)})["ema"]


def read_average(workdir: pathlib.Path, step: int, template: Params, index: int, count: int) -> Params:
    """One of the `count` further averages of a checkpoint (`TrainState.more_ema`), on the first local device.

    Raises: as `read_ema`.
    """
    folder, averages = workdir / FOLDER, {"more_ema": (_abstract(template),) * count}
    saved = {
        name: shape for name, shape in _saved_shapes(folder, step, "state").items() if name.startswith("more_ema/")
    }
    if saved != _shapes(averages):
        raise UserError(f"checkpoint {folder}/{step} holds other averages than its config says, or of another network.")
    options = {"restore_args": ocp.checkpoint_utils.construct_restore_args(averages), "partial_restore": True}
    try:
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            args = ocp.args.PyTreeRestore(item=averages, **options)
            restored = handler.restore(folder / str(step) / "state", args=args)
    except Exception as error:  # as in `_restore`
        raise _damaged(folder, step, _line(error)) from error
    checksums = (_read_checksums(folder, step) or {}).get("state", {})
    for name, found in fingerprint(restored).items():
        if checksums.get(name, found) != found:
            raise _damaged(folder, step, f"state/{name} is not what was saved")
    return restored["more_ema"][index]


def _items(arrays: dict[str, Any], config: dict[str, Any], tokenizer_json: str | None) -> ocp.args.Composite:
    """What one checkpoint consists of."""
    texts = {"config": config, "tokenizer": {"json": tokenizer_json}}
    checksums: dict[str, Any] = {item: fingerprint(tree) for item, tree in arrays.items()}
    checksums |= {item: _digest(text) for item, text in texts.items()}
    checksums |= {f"shapes of {item}": _digest(_shapes(tree)) for item, tree in arrays.items()}
    checksums[_SEAL] = _digest(checksums)
    return ocp.args.Composite(
        **{item: ocp.args.StandardSave(tree) for item, tree in arrays.items()},
        **{item: ocp.args.JsonSave(text) for item, text in (texts | {"checksums": checksums}).items()},
    )


def _restore(folder: pathlib.Path, step: int, trees: dict[str, Any]) -> dict[str, Any]:
    """The items of a step, like trees of ShapeDtypeStruct with shardings, after a check that they are what was saved."""
    checksums = _read_checksums(folder, step)
    restored, failure = {}, None
    for item, tree in trees.items():
        _check_shapes(folder, step, item, tree, (checksums or {}).get(f"shapes of {item}"))
        try:  # the handler alone: the manager's restore has barriers, where a process that fails leaves the others waiting
            with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                restored[item] = handler.restore(folder / str(step) / item, args=ocp.args.StandardRestore(tree))
        except Exception as error:  # Orbax and tensorstore raise many kinds for a damaged file
            failure = error
            break
    if not _all_agree(failure is None):
        reason = _line(failure) if failure else "another process could not read its part"
        raise _damaged(folder, step, reason) from failure
    if checksums:
        saved = {f"{item}/{name}": value for item in trees for name, value in checksums.get(item, {}).items()}
        found = fingerprint(restored)
        altered = sorted(name for name in saved.keys() | found.keys() if saved.get(name) != found.get(name))
        if altered:
            more = f" and {len(altered) - 1} more arrays are" if len(altered) > 1 else " is"
            raise _damaged(folder, step, f"{altered[0]}{more} not what was saved")
    return restored


def _check_shapes(folder: pathlib.Path, step: int, item: str, template: Any, digest: str | None) -> None:
    """Compares names and shapes first: Orbax's own message for a mismatch is hundreds of lines."""
    found = _saved_shapes(folder, step, item)
    if digest not in (None, _digest(found)):
        raise _damaged(folder, step, f"the list of arrays in {item} is not what was saved")
    wanted = _shapes(template)
    problems = [f"missing {key} {wanted[key]}" for key in sorted(wanted.keys() - found.keys())]
    problems += [f"left over {key} {found[key]}" for key in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{key} is {found[key]} but {wanted[key]} is wanted"
        for key in sorted(found.keys() & wanted.keys())
        if found[key] != wanted[key]
    ]
    if problems:
        more = f", and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise UserError(
            f"checkpoint {folder}/{step} does not fit this model: {'; '.join(problems[:6])}{more}. "
            "Use the config that it was trained with, or another --workdir."
        )


def _saved_shapes(folder: pathlib.Path, step: int, item: str) -> dict[str, tuple[int, ...]]:
    return _shapes(_saved_tree(folder, step, item))


def _saved_tree(folder: pathlib.Path, step: int, item: str) -> Any:
    """What Orbax says of each array of an item, as the tree that was saved."""
    try:
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return handler.metadata(folder / str(step) / item).tree
    except Exception as error:
        raise _damaged(folder, step, _line(error)) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _read_checksums(folder: pathlib.Path, step: int) -> dict[str, Any] | None:
    """Those of a step; None for a checkpoint from before there were any."""
    if not (folder / str(step) / "checksums").exists():
        return None
    try:
        checksums = _read_json(folder, step, "checksums")
        seal = checksums.pop(_SEAL)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(folder, step, _line(error)) from error
    if seal != _digest(checksums):
        raise _damaged(folder, step, "its checksums are not what was saved")
    return checksums


def _read_json(folder: pathlib.Path, step: int, item: str) -> Any:
    return json.loads((folder / str(step) / item / "metadata").read_text())


def _digest(value: Any) -> str:
    """Of what JSON keeps of a value, so that it does not depend on how that was laid out."""
    kept = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(kept.encode()).hexdigest()[:16]


def _without_ema(state: TrainState) -> dict[str, Any]:
    """The fields of "state". One that is () is left out, so that a checkpoint from before that field has the same tree."""
    empty = {name for name in TrainState._field_defaults if getattr(state, name) == ()}
    return {name: value for name, value in state._asdict().items() if name not in {"ema_params", *empty}}


def _abstract(tree: Any, shardings: Any = None) -> Any:
    """Shapes, types and a sharding: with one given, a checkpoint restores on any number of devices."""
    if shardings is None:
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda x: first, tree)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)


def _find_all(path: str) -> tuple[pathlib.Path, list[int]]:
    """The work directory and the steps that a path means, the newest first."""
    given = pathlib.Path(path).absolute()
    if not given.exists():
        raise UserError(f"no such directory: {path}. --checkpoint takes the --workdir of a training run.")
    if given.name.isdigit() and given.parent.name == FOLDER:
        if not given.is_dir():
            raise UserError(f"no such checkpoint: {given}.")
        return given.parent.parent, [int(given.name)]
    folder = given if given.name == FOLDER else given / FOLDER
    steps = _steps(folder)
    if not steps:
        raise UserError(
            f"{path} holds no checkpoint. Train one first: python train.py --config=configs/scenes.py --workdir={path}"
        )
    return folder.parent, steps


def _steps(folder: pathlib.Path) -> list[int]:
    """The steps in a folder of checkpoints, the newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(path.name) for path in found if path.name.isdigit()), reverse=True)


def _first_good(folder: pathlib.Path, steps: list[int], read: Callable[[int], T]) -> T:
    """`read` of the first step that is not damaged, with a line for each that is skipped."""
    skipped: dict[int, Damaged] = {}
    for step in steps:
        try:
            result = read(step)
        except Damaged as error:
            skipped[step] = error
            continue
        for damaged, error in skipped.items():
            _tell(f"checkpoint {folder / str(damaged)} is damaged ({error.reason}): skipped for step {step}")
        return result
    if len(skipped) == 1:
        raise next(iter(skipped.values()))
    reasons = "; ".join(f"step {step}: {error.reason}" for step, error in skipped.items())
    raise UserError(f"every checkpoint in {folder} is damaged ({reasons}). Delete that folder and train again.")


def _set_aside(checkpoint: pathlib.Path) -> None:
    """Renames a checkpoint to STEP.damaged, or to the first STEP.damaged.N that is free."""
    aside, n = checkpoint.with_name(f"{checkpoint.name}.damaged"), 1
    while aside.exists():
        n += 1
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged.{n}")
    checkpoint.rename(aside)
    _tell(f"{checkpoint} is now {aside.name}; delete it when nobody needs it")


def _tell(line: str) -> None:
    if jax.process_index() == 0:
        print(f"warning: {line}", file=sys.stderr)


def _all_agree(mine: bool) -> bool:
    """Whether it is true on every process."""
    return mine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def _damaged(folder: pathlib.Path, step: int, reason: str) -> Damaged:
    others = [other for other in _steps(folder) if other != step]
    way_out = (
        f"Delete that folder to go on from step {others[0]}, or sample with --checkpoint={folder / str(others[0])}."
        if others
        else "There is no other checkpoint in that folder: delete it and train again."
    )
    return Damaged(f"checkpoint {folder / str(step)} is damaged and cannot be read ({reason}). {way_out}", reason)


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
