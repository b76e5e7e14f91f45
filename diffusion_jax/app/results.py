"""What was made, on disk: a folder per request with its pictures, what they were made from, and how to make them again."""

import json
import pathlib
import shutil
import threading
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax import images
from diffusion_jax.errors import UserError

RECORD = "result.json"
PICTURE, MASK = "picture.png", "mask.png"


class Results:
    """Numbered folders under one, of which the newest are kept.

    Args:
      root: where they lie; made if it is not there.
      keep: how many; older ones are removed.

    Raises:
      UserError: root cannot be written.
    """

    def __init__(self, root: str, keep: int = 100):
        self.root, self._keep = pathlib.Path(root).absolute(), keep
        self._lock = threading.Lock()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to --out={root}: {error.strerror}.") from error
        self._number = max((int(folder.name) for folder in self._folders()), default=0)

    def begin(self) -> pathlib.Path:
        """A new, empty folder."""
        with self._lock:
            self._number += 1
            folder = self.root / f"{self._number:06d}"
            folder.mkdir()
            for old in self._folders()[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    def _folders(self) -> list[pathlib.Path]:
        return sorted(folder for folder in self.root.iterdir() if folder.name.isdigit() and folder.is_dir())


def save_input(folder: pathlib.Path, picture: np.ndarray, mask: np.ndarray | None) -> tuple[str, str | None]:
    """Writes a picture uint8 [H, W, 3] and what of it is redrawn (bool [H, W]); returns the files' paths."""
    images.save_png(Image.fromarray(picture), folder / PICTURE)
    if mask is None:
        return str(folder / PICTURE), None
    images.save_png(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)), folder / MASK)
    return str(folder / PICTURE), str(folder / MASK)


def save_made(folder: pathlib.Path, made: np.ndarray, record: dict[str, Any]) -> list[str]:
    """Writes pictures uint8 [N, H, W, C] and the record; returns the pictures' paths."""
    paths = [folder / f"{i:06d}.png" for i in range(len(made))]
    for path, picture in zip(paths, made, strict=True):
        images.save_png(images.to_pil(picture), path)
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return list(map(str, paths))


def read(path: str) -> np.ndarray:
    """A picture that was made, uint8 [H, W, 3]."""
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def drop(folder: pathlib.Path) -> None:
    """Removes the folder of a request that was not answered."""
    shutil.rmtree(folder, ignore_errors=True)


def original_size(picture: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """A picture that was enlarged for the eye, each pixel to a square of k x k, back at one of the given sides; any other as it is.

    Args:
      picture: uint8 [H, W, 3].
      sides: that models' pictures have; the smallest that fits counts.
    """
    height, width = picture.shape[:2]
    for side in sorted(sides):
        factor = height // side
        if height == width and factor >= 1 and factor * side == height:
            small = picture[factor // 2 :: factor, factor // 2 :: factor]
            if np.array_equal(small.repeat(factor, 0).repeat(factor, 1), picture):
                return small
    return picture


def shrunk(mask: np.ndarray, height: int) -> np.ndarray:
    """A mask bool [H, W] at a height that divides its own, as `original_size` shrank the picture: painted where any of it was."""
    factor = mask.shape[0] // height
    return mask.reshape(height, factor, mask.shape[1] // factor, factor).any((1, 3))
