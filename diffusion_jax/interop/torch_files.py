"""PyTorch's files of weights, without PyTorch and without running what they hold.

`torch.save` writes a pickle that says which tensors there are (read by `torch_pickle`), and their numbers beside it.
So does `torch.jit.save`, with a program beside them: it is not read.
"""

import contextlib
import itertools
import os
import pathlib
import struct
import zipfile
from collections.abc import Generator, Iterator, Mapping
from typing import IO, Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop import torch_pickle
from diffusion_jax.interop.torch_pickle import ADVICE, Storage, Tensor

_WRAPPERS = ("state_dict", "model")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the five pickles in a file of torch.save before 1.6
_LEGACY_PROTOCOL = 1001
_MAX_ATTRIBUTES = 1_000_000  # of all modules of a program: a damaged one may hold itself
_AGAIN = "Download or copy it again."


class TorchWeights(Mapping[str, np.ndarray]):
    """The tensors of a state_dict, each read from the file when it is asked for and never kept.

    An array is the caller's own; one that was saved as a view with strides has the same strides, and is read-only.

    Args:
      path: a file that `torch.save` wrote, of the zip format (PyTorch 1.6 and later) or of the one before it. A dict
        with the state_dict under "state_dict" or "model" is opened too, if no other entry is a dict of tensors. Or a
        TorchScript program (`torch.jit.save`): of it the tensors of its modules, named as a state_dict names them.

    Raises:
      UserError: the file is truncated, asks for code, or holds no state_dict. Numbers that are missing are noticed
        here, not when an array is read.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        with self._damage_told(), self._path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            state, self._places = _open_zip(file, self._path) if zipped else _open_legacy(file, self._path)
            self._tensors = _state_dict(state, self._path)
            for name, tensor in self._tensors.items():
                self._check(name, tensor)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        dtype, size = tensor.storage.dtype, tensor.storage.dtype.itemsize
        start = self._places[tensor.storage.key][0] + tensor.offset * size
        try:
            with self._path.open("rb") as file:
                raw = np.fromfile(file, np.uint8, tensor.extent * size, offset=start)
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror or error}.") from error
        if raw.size < tensor.extent * size:
            raise UserError(f"{self._path} became shorter while it was read. {_AGAIN}")
        numbers = raw.view(dtype)
        if tensor.strides == _row_major(tensor) or numbers.size == 0:
            return numbers.reshape(tensor.shape)
        strides = [stride * size for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _check(self, name: str, tensor: Tensor) -> None:
        storage, (_, num_bytes) = tensor.storage, self._places[tensor.storage.key]
        if tensor.offset + tensor.extent > storage.size or storage.size * storage.dtype.itemsize > num_bytes:
            raise UserError(f"{self._path} is damaged: it holds fewer numbers than {name} needs. {_AGAIN}")

    @contextlib.contextmanager
    def _damage_told(self) -> Generator[None]:
        """Whatever goes wrong in parsing bytes that may be anything is one thing to the user."""
        try:
            yield
        except (UserError, OSError):
            raise
        except Exception as error:
            raise UserError(f"{self._path} is truncated or damaged ({_one_line(error)}). {_AGAIN}") from error


def _open_zip(file: IO[bytes], path: pathlib.Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickled object, and of every storage where its bytes start and how many there are."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive that torch.save did not write. {ADVICE}")
        folder = pickles[0].removesuffix("data.pkl")
        script = folder + "constants.pkl" in entries
        packed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
        if any(not (script and name.startswith(folder + "code/")) for name in packed):
            raise UserError(f"{path} was compressed after torch.save wrote it. Unpack it and pack it with `zip -0 -r`.")
        if folder + "byteorder" in entries and archive.read(folder + "byteorder") != b"little":
            raise UserError(f"{path} was written by a machine with the other byte order. {ADVICE}")
        with archive.open(pickles[0]) as data:
            state, _ = torch_pickle.load(data, path, script)
    places = {}
    for name, entry in entries.items():
        if name.startswith(folder + "data/"):
            # The local header repeats the name and has an extra field of its own length, with which torch aligns.
            file.seek(entry.header_offset)
            header = struct.unpack("<4s22xHH", file.read(30))
            start = entry.header_offset + 30 + header[1] + header[2]
            places[name.removeprefix(folder + "data/")] = (start, entry.file_size)
    return _tensors_of(state) if script else state, places


def _tensors_of(module: Any) -> dict[str, Tensor]:
    """The tensors of a module and of those within it; what else they hold is how they are configured."""
    found: dict[str, Tensor] = {}
    steps = itertools.count()

    def walk(module: Any, prefix: str) -> None:
        for name, value in module.items():
            if next(steps) > _MAX_ATTRIBUTES:
                raise ValueError("modules that hold each other")
            if isinstance(value, Tensor):
                found[prefix + name] = value
            elif isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(module, "")
    return found


def _open_legacy(file: IO[bytes], path: pathlib.Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """As _open_zip; here five pickles follow each other, then each storage with its number of elements before it."""

    def load() -> Any:
        state, found = torch_pickle.load(file, path)
        storages.update(found)
        return state

    storages: dict[str, Storage] = {}
    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise UserError(f"{path} is a pickle that torch.save did not write. {ADVICE}")
    if load().get("little_endian") is not True:
        raise UserError(f"{path} was written by a machine with the other byte order. {ADVICE}")
    state, places, end = load(), {}, path.stat().st_size
    for key in load():
        (size,) = struct.unpack("<q", file.read(8))
        start, num_bytes = file.tell(), size * storages[key].dtype.itemsize
        places[key] = (start, min(num_bytes, end - start))
        file.seek(start + num_bytes)
    return state, places


def _state_dict(state: Any, path: pathlib.Path) -> dict[str, Tensor]:
    """The dict of tensors, out of its wrapper if there is one."""
    if _is_state_dict(state):
        return state
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a dict of tensors. {ADVICE}")
    inside = [name for name, value in state.items() if _is_state_dict(value)]
    if len(inside) == 1 and inside[0] in _WRAPPERS:
        return state[inside[0]]
    found = ", ".join(repr(name) for name in list(state)[:8]) or "nothing"
    wanted = "several dicts of tensors" if len(inside) > 1 else "no dict of tensors alone"
    raise UserError(f"{path} holds {wanted}; its entries: {found}. {ADVICE}")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _row_major(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a dense array of the tensor's shape; those of axes of length 1 are as the tensor has them."""
    strides, step = [], 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        strides.append(stride if n == 1 else step)
        step *= n
    return tuple(reversed(strides))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
