"""What a training run shows: the bar, metrics to CSV and TensorBoard, grids of samples."""

import csv
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorboardX
import tqdm
from PIL import Image

from diffusion_jax import images, processes


class MetricWriter:
    """Scalars to WORKDIR/metrics.csv (one row per step written) and to TensorBoard (WORKDIR/tensorboard).

    A scalar that a step does not have is left blank. A resumed run drops the CSV's rows beyond the step that it starts
    from, so that no step stands there twice, and keeps columns that it no longer writes. Of several processes the first
    one writes, the others' write nothing.
    """

    def __init__(self, workdir: pathlib.Path, names: tuple[str, ...], first_step: int):
        self._names, self._writes = ("step", *names), processes.first()
        if not self._writes:
            return
        self._path = workdir / "metrics.csv"
        self._names += tuple(name for name in self._columns() if name not in self._names)
        kept = [row for row in self._rows() if int(row["step"]) <= first_step]
        fresh = self._path.with_suffix(".tmp")
        with fresh.open("w", newline="") as file:
            rewritten = csv.DictWriter(file, self._names)
            rewritten.writeheader()
            rewritten.writerows(kept)
        os.replace(fresh, self._path)  # a full disk must not cost the rows of before
        self._file = self._path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, self._names)
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of a step."""
        if not self._writes:
            return
        self._csv.writerow({"step": step, **{name: f"{value:.6g}" for name, value in scalars.items()}})
        self._file.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)

    def image(self, step: int, image: Image.Image) -> None:
        """Shows a picture in TensorBoard."""
        if self._writes:
            self._tensorboard.add_image("samples", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both."""
        if not self._writes:
            return
        self._file.close()
        try:
            self._tensorboard.close()
        except OSError:  # it would try again, and print a traceback, when the program ends
            if isinstance(writer := self._tensorboard.file_writer, tensorboardX.FileWriter):
                writer.event_writer.close = lambda: None
            raise

    def _columns(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            return [name for name in next(csv.reader(file), []) if name]

    def _rows(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
        return [{name: row.get(name) or "" for name in self._names} for row in rows]


class SampleGrid:
    """Writes WORKDIR/samples/step_NNNNNNN.png: the prompts, sampled with the EMA parameters."""

    def __init__(self, workdir: pathlib.Path, prompts: tuple[str, ...], sample: Callable[[Any], np.ndarray]):
        """
        Args:
          workdir: the run's directory.
          prompts: the labels, one row each.
          sample: ema_params -> uint8 [prompts, samples, H, W, C].
        """
        self._folder = workdir / "samples"
        self._prompts, self._sample = prompts, sample

    def __call__(self, step: int, ema_params: Any) -> Image.Image:
        """Samples, writes the picture, and returns it."""
        grid = images.labelled_grid(list(zip(self._prompts, self._sample(ema_params), strict=True)))
        if processes.first():
            self._folder.mkdir(parents=True, exist_ok=True)
            images.save_png(grid, self._folder / f"step_{step:07d}.png")
        return grid


def progress_bar(first_step: int, num_steps: int) -> tqdm.tqdm:
    """The bar of a run: step, rate, time left and the last loss."""
    return tqdm.tqdm(total=num_steps, initial=first_step, desc="train", unit="step", dynamic_ncols=True, smoothing=0.1)
