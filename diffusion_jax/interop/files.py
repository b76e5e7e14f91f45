"""Files of weights -> named arrays, one at a time; and back.

    weights = files.read("base.pt")           # nothing but names and places is read yet
    weights["time_embed.0.weight"]            # one array, read now

A network of hundreds of millions of parameters then needs its own memory and one array more, not the file's beside it.
"""

import hashlib
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from diffusion_jax.errors import UserError
from diffusion_jax.interop.torch_files import TorchWeights

_SNIFF_BYTES = 512
_REOPEN_BYTES = 64 * 2**20


def read(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """The arrays of a file of weights, under the file's own names and in its own types.

    What kind of file it is follows from what is in it, not from its name. Every array is read when it is asked for,
    anew each time, so that asking for one twice reads twice.

    Args:
      path: safetensors, a state_dict that `torch.save` wrote (`.pt`, `.pth`; any version since 2017), or a TorchScript
        program, of which the tensors are taken. PyTorch is not needed, and no code in the file is run.

    Returns:
      A mapping from names to arrays; bfloat16 is ml_dtypes'.

    Raises:
      UserError: there is no such file, it is of another kind, it is truncated, or its pickle asks for code.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(_SNIFF_BYTES)
            if hasattr(os, "posix_fadvise"):  # the disk begins to read; its time runs beside what the caller does next
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        torch = head.startswith((b"PK\x03\x04", b"\x80"))
        # The length of the header comes first, 8 bytes of which the last are 0: it may begin as a pickle does.
        if head[8:9] == b"{" and (head[5:8] == b"\0\0\0" or not torch):
            return _SafetensorsWeights(path)
        if torch:
            return TorchWeights(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    raise UserError(f"{path} {_what_else(head)}")


def write_safetensors(arrays: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Writes named arrays as a safetensors file, which appears under its name only when it is whole.

    Args:
      arrays: any types that safetensors has (bfloat16 is ml_dtypes'); any strides.

    Raises:
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    # The library writes memory as it lies: of an array with strides it would write other numbers.
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        safetensors.numpy.save_file(dense, part)
        part.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot write {path}: {' '.join(str(error).split())}.") from error
    finally:
        part.unlink(missing_ok=True)


class _SafetensorsWeights(Mapping[str, np.ndarray]):
    """A safetensors file as a mapping that reads each array when it is asked for."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file, self._bytes_read = self._open(), 0
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        # The library maps the file: what was read through a handle stays in memory as long as the handle. (Threads that
        # read at once may both replace it, which does no harm.)
        if self._bytes_read > _REOPEN_BYTES:
            self._file, self._bytes_read = self._open(), 0
        try:
            array = self._file.get_tensor(name)
        except Exception as error:  # types that NumPy lacks come as several kinds
            raise UserError(f"{self._path}: {name} cannot be read ({' '.join(str(error).split())}).") from error
        self._bytes_read += array.nbytes
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _open(self) -> safetensors.safe_open:
        try:
            return safetensors.safe_open(self._path, "numpy")
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror or error}.") from error
        except safetensors.SafetensorError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self._path} is truncated or damaged ({reason}). Download or copy it again.") from error


def _what_else(head: bytes) -> str:
    """What a file is that is no file of weights, and what to do; the end of a sentence that its name began."""
    if not head:
        return "is empty. Download or copy it again."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, which stands for the file. Fetch the file itself: `git lfs pull`."
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return (
            "is a web page, as a download that failed leaves behind. Open its address in a browser and download again."
        )
    if head[257:262] == b"ustar":
        return "is a tar archive. Unpack it, or if torch.save wrote it before 2017, save it again with a newer PyTorch."
    return "is neither safetensors nor a file that torch.save wrote. Give a .safetensors, .pt or .pth file."


def sha256(path: str | os.PathLike) -> str:
    """Of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
