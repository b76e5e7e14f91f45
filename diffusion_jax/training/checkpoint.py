"""Checkpoints by Orbax: asynchronous, atomic, and whole: state, EMA, config and tokenizer in each."""

import contextlib
import errno
import json
import pathlib
from collections.abc import Generator
from typing import Any

import jax
import orbax.checkpoint as ocp

from diffusion_jax.errors import UserError
from diffusion_jax.models import Params
from diffusion_jax.training.step import TrainState

FOLDER = "checkpoints"
_ITEMS = ("state", "ema", "config", "tokenizer")


class Checkpoints:
    """The checkpoints of a work directory.

    A step is saved as four items: "state" (all of the train state but the EMA), "ema" (so that sampling reads nothing
    else), "config" and "tokenizer" (JSON). Saving copies to the host and returns; files are written in the background
    and the step appears by a rename, whole or not at all.
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

    def save(self, state: TrainState, config: dict[str, Any], tokenizer_json: str | None) -> None:
        """Begins to write a checkpoint of the state's step; a step that is there already is left."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {
            "state": ocp.args.StandardSave(_without_ema(state)),
            "ema": ocp.args.StandardSave(state.ema_params),
            "config": ocp.args.JsonSave(config),
            "tokenizer": ocp.args.JsonSave({"json": tokenizer_json}),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Blocks until what `save` began is on disk."""
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The last whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, template: TrainState) -> TrainState:
        """The train state of a step.

        Args:
          step: one that exists.
          template: the shapes and types wanted (arrays or ShapeDtypeStruct).

        Raises:
          UserError: the checkpoint is damaged or of other shapes.
        """
        items = {
            "state": ocp.args.StandardRestore(_abstract(_without_ema(template))),
            "ema": ocp.args.StandardRestore(_abstract(template.ema_params)),
        }
        restored = _restore(self._manager, self.folder, step, items)
        return TrainState(ema_params=restored["ema"], **restored["state"])

    def close(self) -> None:
        """Waits for writes and releases Orbax's threads."""
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
    items = {
        "ema": ocp.args.StandardSave(params),
        "config": ocp.args.JsonSave(config),
        "tokenizer": ocp.args.JsonSave({"json": tokenizer_json}),
    }
    try:
        with ocp.CheckpointManager(folder, item_names=_ITEMS) as manager:
            manager.save(0, args=ocp.args.Composite(**items))
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
    given = pathlib.Path(path).absolute()
    if not given.exists():
        raise UserError(f"no such directory: {path}. --checkpoint takes the --workdir of a training run.")
    if given.name.isdigit() and given.parent.name == FOLDER:
        _check_step(given)
        return given.parent.parent, int(given.name)
    folder = given if given.name == FOLDER else given / FOLDER
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise UserError(
            f"{path} holds no checkpoint. Train one first: python train.py --config=configs/scenes.py --workdir={path}"
        )
    return folder.parent, steps[-1]


def read_texts(workdir: pathlib.Path, step: int) -> tuple[dict[str, Any], str | None]:
    """The config and the tokenizer's JSON (None without text) inside a checkpoint.

    Raises:
      UserError: they are missing or damaged.
    """
    folder = workdir / FOLDER / str(step)
    try:
        config = json.loads((folder / "config" / "metadata").read_text())
        tokenizer = json.loads((folder / "tokenizer" / "metadata").read_text())["json"]
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(workdir / FOLDER, step, error) from error
    return config, tokenizer


def read_ema(workdir: pathlib.Path, step: int, template: Params) -> Params:
    """The EMA parameters of a checkpoint, and nothing else of it.

    Args:
      workdir, step: from `find`.
      template: shapes and types wanted, as from `jax.eval_shape`.

    Raises:
      UserError: they are damaged or of other shapes.
    """
    with ocp.CheckpointManager(workdir / FOLDER, item_names=_ITEMS) as manager:
        items = {"ema": ocp.args.StandardRestore(_abstract(template))}
        return _restore(manager, workdir / FOLDER, step, items)["ema"]


def _restore(manager: ocp.CheckpointManager, folder: pathlib.Path, step: int, items: dict[str, Any]) -> Any:
    for name, arg in items.items():
        _check_shapes(folder, step, name, arg.item)
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and tensorstore raise many kinds for a damaged file
        raise _damaged(folder, step, error) from error


def _check_shapes(folder: pathlib.Path, step: int, item: str, template: Any) -> None:
    """Compares names and shapes first: Orbax's own message for a mismatch is hundreds of lines."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(folder / str(step) / item).item_metadata.tree
    except Exception as error:
        raise _damaged(folder, step, error) from error
    found, wanted = _shapes(saved), _shapes(template)
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


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): tuple(x.shape)
        for path, x in leaves
    }


def _without_ema(state: TrainState) -> dict[str, Any]:
    items = {name: value for name, value in state._asdict().items() if name != "ema_params"}
    if items["loss_history"] == ():  # left out, so that a checkpoint from before that field has the same tree
        del items["loss_history"]
    return items


def _abstract(tree: Any) -> Any:
    """Shapes, types and a sharding: with one given, a checkpoint restores on any number of devices."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _check_step(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        raise UserError(f"no such checkpoint: {folder}.")


def _damaged(folder: pathlib.Path, step: int, error: Exception) -> UserError:
    others = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and int(p.name) != step)
    way_out = (
        f"Delete that folder to go on from step {others[-1]}, or sample with --checkpoint={folder / str(others[-1])}."
        if others
        else "There is no other checkpoint in that folder: delete it and train again."
    )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"checkpoint {folder / str(step)} is damaged and cannot be read ({reason}). {way_out}")
