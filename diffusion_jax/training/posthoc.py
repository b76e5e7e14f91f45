"""Averages of any length, made after training from snapshots of two (post-hoc EMA).

Training keeps power-function averages of two lengths (see `ema.power_share`) and writes them now and then to
WORKDIR/ema_snapshots. Each is a weighted mean of all parameters until then; a mix of them comes as near as can be to the
weights that another length would have had.

Source: Karras et al. 2024 (arXiv 2312.02696), section 3 and appendix C; its time is continuous, as is ours.
"""

import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from diffusion_jax.errors import UserError
from diffusion_jax.interop import files
from diffusion_jax.models import Params
from diffusion_jax.training.ema import power_gamma

FOLDER = "ema_snapshots"
_SUFFIX = ".safetensors"


def overlaps(
    t_a: Float[np.ndarray, "..."],
    gamma_a: Float[np.ndarray, "..."],
    t_b: Float[np.ndarray, "..."],
    gamma_b: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """Inner products of weight functions p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t], for arguments that broadcast.

        (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) * r^gamma / max(t_a, t_b),   r = min / max of the times,

    where gamma is the one of the longer function: the shorter ends at its own t and weighs 1 there.

    Source: the integral of the product from 0 to min(t_a, t_b).
    """
    shorter, longer = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma = np.where(t_a > t_b, gamma_a, gamma_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (shorter / longer) ** gamma / longer


def mixture(times: Sequence[float], stds: Sequence[float], time: float, std: float) -> Float[np.ndarray, "N"]:
    """Coefficients of N snapshots whose mix has weights as near as can be, in the mean square, to those of (time, std).

    The paper's least squares, and one condition more: the coefficients sum to 1, so that parameters which stand still are
    given back, however few the snapshots.

    Args:
      times: steps at which the snapshots were taken, each at most `time`.
      stds: their relative standard deviations, in training lengths.
      time: the step at which the average wanted would have been taken.
      std: its relative standard deviation.
    """
    t, gamma = np.asarray(times, float) / time, np.array([power_gamma(s) for s in stds])
    wanted = overlaps(t, gamma, np.float64(1), np.float64(power_gamma(std)))
    gram = overlaps(t[:, None], gamma[:, None], t, gamma)
    scale = 1 / np.sqrt(np.diag(gram))
    system = np.block([[scale[:, None] * gram * scale, scale[:, None]], [scale, 0]])
    # Neighbouring snapshots are nearly the same function: what double precision cannot tell apart is left alone.
    solution = np.linalg.lstsq(system, np.append(scale * wanted, 1), rcond=1e-12)[0]
    return scale * solution[:-1]


class Snapshots:
    """Writes averages to WORKDIR/ema_snapshots, a file per step, which appears when it is whole."""

    def __init__(self, workdir: pathlib.Path, stds: Sequence[float], first_step: int):
        """Opens the folder; snapshots beyond the step that a resumed run starts from are dropped, as it writes them anew.

        Args:
          workdir: the run's directory.
          stds: of the averages that `write` is given.
          first_step: where the run starts.
        """
        self._folder, self._stds = workdir / FOLDER, stds
        if jax.process_index() == 0:
            for step in steps_of(workdir):
                if step > first_step:
                    _path(self._folder, step).unlink(missing_ok=True)

    def write(self, step: int, averages: Sequence[Params]) -> None:
        """Writes the averages of a step, one of each std; with several processes, all of them call it.

        Raises:
          UserError: the file cannot be written.
        """
        arrays = {}
        for std, params in zip(self._stds, averages, strict=True):
            for name, leaf in _named(params):
                if not leaf.is_fully_replicated and jax.process_count() > 1:
                    leaf = multihost_utils.process_allgather(leaf, tiled=True)
                if jax.process_index() == 0:
                    arrays[f"{std:g}/{name}"] = np.asarray(leaf)
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            files.write_safetensors(arrays, _path(self._folder, step))


def steps_of(workdir: pathlib.Path) -> list[int]:
    """The steps that there are snapshots of, in order."""
    return sorted(int(path.stem) for path in (workdir / FOLDER).glob(f"*{_SUFFIX}") if path.stem.isdigit())


def reconstruct(workdir: pathlib.Path, last_step: int, std: float, template: Params) -> Params:
    """The parameters' power-function average of any length, at the last snapshot up to a step, which is told in a line.

    Args:
      workdir: of the run.
      last_step: snapshots after it are not used.
      std: the average's relative standard deviation, in training lengths.
      template: shapes and types wanted.

    Raises:
      UserError: there is no snapshot, one is damaged or of another network, or there is no average of that std.
    """
    steps = [step for step in steps_of(workdir) if step <= last_step]
    if not steps:
        raise UserError(
            f"{workdir / FOLDER} has no snapshot up to step {last_step}: an average of any length needs a run that was trained "
            "with config.ema.posthoc_stds=(0.05,0.1)."
        )
    read = {step: files.read(_path(workdir / FOLDER, step)) for step in steps}
    which = [(step, text) for step in steps for text in sorted({name.partition("/")[0] for name in read[step]})]
    try:
        coefficients = mixture([step for step, _ in which], [float(text) for _, text in which], steps[-1], std)
    except ValueError as error:
        raise UserError(f"--ema_std={std:g}: {error}") from error
    parts = [(read[step], text, c) for (step, text), c in zip(which, coefficients, strict=True)]
    names, structure = _named(template), jax.tree.structure(template)
    print(f"average of relative std {std:g} at step {steps[-1]}, of {len(which)} averages in {len(steps)} snapshots")
    return jax.tree.unflatten(structure, [_mix(parts, name, leaf, workdir) for name, leaf in names])


def _mix(
    parts: list[tuple[Mapping[str, np.ndarray], str, float]],
    name: str,
    like: jax.ShapeDtypeStruct,
    workdir: pathlib.Path,
) -> np.ndarray:
    total = np.zeros(like.shape, np.float64)  # coefficients differ in sign
    for arrays, text, coefficient in parts:
        array = arrays.get(f"{text}/{name}")
        if array is None or array.shape != like.shape:
            raise UserError(f"the snapshots in {workdir / FOLDER} are of another network: {name} does not fit.")
        total += coefficient * array
    return total.astype(like.dtype)


def _named(params: Params) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _path(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"{step:07d}{_SUFFIX}"
