"""Features of a long evaluation on disk, a block at a time: stopped at any moment, it goes on where it was.

A folder has `request.json`, which tells what the features are of, and a file per batch of pictures. Each file appears under
its name when it is whole. FID's Inception takes 16 kB a picture: 50 thousand pictures make 0.8 GB, until they are removed.
"""

import hashlib
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from diffusion_jax import processes
from diffusion_jax.metrics.features import Features

REQUEST = "request.json"


def prepare(folder: pathlib.Path, request: dict[str, Any]) -> None:
    """Makes the folder ready for a request, and says what is taken up again or dropped.

    What is kept of another request is removed. With several processes the folder is one that all of them see.

    Args:
      request: all that the features depend on, as JSON has it.
    """
    request = json.loads(json.dumps(request))

    def make() -> None:
        if folder.exists() and (changes := _changes(folder, request)):
            print(f"{folder} is of another request ({', '.join(changes)} changed): starting anew.")
            shutil.rmtree(folder)
        elif count := len(list(folder.glob("*.npz"))):
            print(f"going on with the {count} batches of features in {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / REQUEST, lambda file: file.write(json.dumps(request, indent=1).encode()))

    if processes.first():
        make()
    processes.wait_for_all()


def resumed(
    folder: pathlib.Path | None, label: str, compute: Callable[[int], Iterator[Features]]
) -> Iterator[Features]:
    """The batches of a set's features: those in the folder, then the others, which are written as they come.

    Args:
      folder: as `prepare` left it; None keeps nothing.
      label: the set's name in the folder.
      compute: first row -> the batches from there on.
    """
    if folder is None:
        yield from compute(0)
        return
    rows = block = 0
    while (found := _read(_file(folder, label, block))) is not None:
        yield found
        rows, block = rows + len(found["pool"]), block + 1
    processes.wait_for_all()  # else a slower process could find what this one is about to write
    for number, found in enumerate(compute(rows), block):
        if processes.first():
            arrays: dict[str, Any] = found
            _write(_file(folder, label, number), lambda file, arrays=arrays: np.savez(file, **arrays))
        yield found


def remove(folder: pathlib.Path) -> None:
    """Removes the folder, when what it was for is written."""
    if processes.first():
        shutil.rmtree(folder, ignore_errors=True)


def file_identity(path: str) -> list[str]:
    """A file or a folder, and a hash of the names, sizes and times of what is in it: does it still hold the same?"""
    whole = pathlib.Path(path).resolve()
    hashed = hashlib.sha256()
    for part in sorted(whole.rglob("*")) if whole.is_dir() else [whole]:
        about = part.stat()
        if not part.is_dir():
            hashed.update(f"{part.relative_to(whole)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return [str(whole), hashed.hexdigest()]


def array_identity(tree: Any) -> str:
    """A hash of a tree's arrays."""
    hashed = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        hashed.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def _changes(folder: pathlib.Path, request: dict[str, Any]) -> list[str]:
    try:
        saved = json.loads((folder / REQUEST).read_text())
        return [name for name in sorted(saved.keys() | request.keys()) if saved.get(name) != request.get(name)]
    except (OSError, ValueError, AttributeError):
        return ["all"]


def _file(folder: pathlib.Path, label: str, block: int) -> pathlib.Path:
    return folder / f"{label}_{block:06d}.npz"


def _read(path: pathlib.Path) -> Features | None:
    """A block; None where there is none, or a power failure left half of one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: pathlib.Path, write: Callable[[Any], Any]) -> None:
    fresh = path.with_suffix(".tmp")
    with fresh.open("wb") as file:
        write(file)
    os.replace(fresh, path)
