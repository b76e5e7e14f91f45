"""A folder of pictures as a data source: `folder:PATH` in a config.

Classes are the sub-folders of PATH that hold pictures, in alphabetical order. Captions are NAME.txt beside NAME.png (one per line),
or `metadata.jsonl` in PATH, a line each of {"file_name": ..., "text": one caption or a list of them}.
"""

import json
import os
import pathlib
from typing import Any

from diffusion_jax.data.faults import BadExample, refuse
from diffusion_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
METADATA = "metadata.jsonl"


class Folder:
    """The pictures below a folder, sorted by path. An example is {"image": path, and of "caption", "label" what is known}."""

    def __init__(self, path: str | os.PathLike[str], on_error: str = "raise"):
        """
        Args:
          path: the folder.
          on_error: "raise" or "skip", for pictures of zero bytes, which the listing already shows.

        Raises:
          UserError: there is no such folder, or no picture in it; or its metadata cannot be read.
        """
        root = pathlib.Path(path)
        if not root.is_dir():
            raise UserError(f"no such folder: {root}. Set config.data.name=folder:PATH to a folder of pictures.")
        found = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        empty = {file for file in found if not file.stat().st_size}
        refuse([f"{file} is empty (zero bytes)" for file in sorted(empty)], on_error, str(root))
        self._files = [file for file in found if file not in empty]
        if not self._files:
            raise UserError(
                f"{root} has no pictures ({', '.join(SUFFIXES)}). Set config.data.name=folder:PATH to another."
            )
        self._metadata = _metadata(root)
        tops = [file.relative_to(root).parts[0] if file.parent != root else None for file in self._files]
        self.classes = sorted({top for top in tops if top is not None})
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = [numbers[top] for top in tops if top is not None] if None not in tops else None
        captions = self._metadata is not None or any(file.with_suffix(".txt").exists() for file in self._files[:100])
        self._root, self._captions = root, captions

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._files[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self._files[index]
        example: dict[str, Any] = {"image": file}
        if self._labels is not None:
            example["label"] = self._labels[index]
        if self._captions:
            example["caption"] = self._caption(file)
        return example

    def _caption(self, file: pathlib.Path) -> Any:
        if self._metadata is not None:
            key = file.relative_to(self._root).as_posix()
            if key not in self._metadata:
                raise BadExample(f"is not in {self._root / METADATA}")
            return self._metadata[key]
        try:
            return file.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise BadExample(f"has no caption: {file.with_suffix('.txt').name} is not beside it") from error
        except UnicodeDecodeError as error:
            raise BadExample("has a caption that is not UTF-8 text") from error


def _metadata(root: pathlib.Path) -> dict[str, Any] | None:
    path = root / METADATA
    if not path.exists():
        return None
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[row["file_name"]] = row["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}, line {number}: wants {{"file_name": "a.png", "text": "a caption"}}; got {line[:80]!r}.'
            ) from error
    return captions
