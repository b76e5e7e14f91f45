"""The folder that sample.py writes: PNG files, a labelled grid, ADM's npz, an animation, and a JSON to repeat it all."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion_jax import images, processes
from diffusion_jax.errors import UserError
from diffusion_jax.sampling import stages

RESULTS = "samples.json"
BASE_SAMPLES = "base_samples.npz"  # of the first of two stages
ANIMATION = "animation.gif"
MAX_GRID_ROWS = 32


def new_folder(path: str, overwrite: bool) -> pathlib.Path:
    """The folder, made, with earlier samples removed where that was asked for; one process makes it.

    Raises:
      UserError: it holds earlier samples, or cannot be written.
    """
    out = pathlib.Path(path)
    if not processes.first():
        return out
    try:
        if (out / RESULTS).exists():
            if not overwrite:
                raise UserError(
                    f"{path} holds earlier samples. Choose another --out, or replace them with --overwrite."
                )
            pictures = [p.name for p in out.glob("[0-9]" * 6 + ".png")]
            for file in [RESULTS, "grid.png", "samples.npz", BASE_SAMPLES, ANIMATION, *pictures]:
                (out / file).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out={path}: {error.strerror}.") from error
    return out


def save_npz(path: pathlib.Path, made: UInt8[np.ndarray, "N H W C"], asked: stages.Conditions) -> None:
    """ADM's format: the pictures as arr_0 and their classes as arr_1; captions go under "prompts"."""
    if not processes.first():
        return
    columns: dict[str, Any] = {"arr_0": made}
    if asked.labels is not None:
        columns["arr_1"] = asked.labels[asked.every]
    if asked.prompts is not None:
        columns["prompts"] = np.asarray(asked.prompts)[asked.every]
    np.savez(path, **columns)


def rows_of(made: UInt8[np.ndarray, "N H W C"], asked: stages.Conditions) -> list[tuple[str, np.ndarray]]:
    """The rows of a labelled grid: each condition's pictures."""
    return [(name, made[asked.every == c]) for c, name in enumerate(asked.names[:MAX_GRID_ROWS])]


def save_animation(path: pathlib.Path, frames: Sequence[np.ndarray], asked: stages.Conditions) -> None:
    """A GIF of the labelled grid, frame by frame; the last frame stays for two seconds."""
    drawn = [images.labelled_grid(rows_of(frame, asked)) for frame in frames]
    durations = [100] * (len(drawn) - 1) + [2000]  # milliseconds
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=durations, loop=0)


def write(
    out: pathlib.Path,
    made: UInt8[np.ndarray, "N H W C"],
    asked: stages.Conditions,
    given: list[tuple[str, np.ndarray]],
    record: dict[str, Any],
    notes: Sequence[dict[str, Any]] | None = None,
    frames: Sequence[np.ndarray] = (),
) -> None:
    """Writes samples.

    Args:
      out: from `new_folder`.
      made: the pictures.
      asked: their conditions.
      given: rows of the grid above them.
      record: what repeats them.
      notes: of each picture, added to what the record says of it.
      frames: of an animation, each of all pictures.

    Raises:
      UserError: the disk is full, or the like.
    """
    if not processes.first():
        return
    files = [f"{i:06d}.png" for i in range(len(made))]
    notes = notes or [{"index": i} for i in range(len(made))]
    try:
        for file, image in zip(files, made, strict=True):
            images.save_png(images.to_pil(image), out / file)
        images.save_png(images.labelled_grid(given + rows_of(made, asked)), out / "grid.png")
        save_npz(out / "samples.npz", made, asked)
        if frames:
            save_animation(out / ANIMATION, frames, asked)
        of_each = [
            {"file": file, "condition": asked.names[c]} | note
            for file, c, note in zip(files, asked.every, notes, strict=True)
        ]
        text = json.dumps(record | {"images": of_each}, indent=1, ensure_ascii=False)
        (out / RESULTS).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}. Free some space or choose another --out.") from error
    also = f", {ANIMATION}" if frames else ""
    print(f"wrote {len(made)} images, grid.png, samples.npz{also} and {RESULTS} to {out}")
