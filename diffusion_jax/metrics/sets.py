"""Sets of pictures, and stored statistics of them: folders, and the npz files of ADM, EDM and sample.py."""

import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError

from diffusion_jax.data.folder import SUFFIXES
from diffusion_jax.errors import UserError


class Batches(Protocol):
    """(batch size, first picture) -> the pictures from the first on, uint8 [B, H, W, C], in a fixed order."""

    def __call__(self, batch_size: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "B H W C"]]: ...


class PictureSet(NamedTuple):
    """Pictures of one size that need not all be in memory.

    name: where they are from.
    count: how many there are.
    batches: they.
    """

    name: str
    count: int
    batches: Batches


class Statistics(NamedTuple):
    """Mean and covariance of a set's features, by the features' name ("pool", "spatial")."""

    name: str
    moments: dict[str, tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]]


def read_statistics(path: str | os.PathLike) -> Statistics | None:
    """The statistics in an npz, "mu" and "sigma", and ADM's "mu_s" and "sigma_s" of the spatial features; None without.

    ADM's reference files have pictures beside them: the statistics are of the whole training set, the pictures a part.

    Raises:
      UserError: it cannot be read, or its arrays are no mean and covariance.
    """
    with _opened(path) as file:
        if "mu" not in file or "sigma" not in file:
            return None
        keys = {"pool": ("mu", "sigma")} | ({"spatial": ("mu_s", "sigma_s")} if "mu_s" in file else {})
        try:
            moments = {name: (file[mean], file[covariance]) for name, (mean, covariance) in keys.items()}
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: its statistics cannot be read ({error}).") from error
    for name, (mean, covariance) in moments.items():
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
            raise UserError(
                f"{path}: the {name} statistics are {mean.shape} and {covariance.shape}, not [D] and [D, D]."
            )
    return Statistics(str(path), moments)


def write_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Writes them as ADM and EDM do, through a temporary file.

    Raises:
      UserError: the file cannot be written.
    """
    arrays = {}
    for name, suffix in (("pool", ""), ("spatial", "_s")):
        if name in statistics.moments:
            arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = statistics.moments[name]
    part = f"{os.fspath(path)}.part"
    try:
        with open(part, "wb") as file:
            np.savez(file, **arrays)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error


def read_pictures(path: str | os.PathLike) -> PictureSet | None:
    """The pictures of a folder, sub-folders included, or "arr_0" of an npz, read as they are asked for; None without.

    Raises:
      UserError: a folder has none, or they are no uint8 pictures; while they are read, that one is damaged, transparent
        or of another size than the first.
    """
    if os.path.isdir(path):
        return _folder(pathlib.Path(path))
    with _opened(path) as file:
        if "arr_0" not in file:
            return None
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        shape, dtype = _header(member, path)

    def batches(batch_size: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        row = int(np.prod(shape[1:]))
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            _header(member, path)
            member.seek(first * row, os.SEEK_CUR)
            for start in range(first, shape[0], batch_size):
                rows = min(batch_size, shape[0] - start)
                numbers = np.frombuffer(member.read(rows * row), dtype)
                if numbers.size < rows * row:
                    raise UserError(f"{path} ends after {start} of its {shape[0]} pictures. Copy it again.")
                yield numbers.reshape(rows, *shape[1:])

    return PictureSet(str(path), shape[0], batches)


def pictures(path: str | os.PathLike) -> PictureSet:
    """As `read_pictures`, where there must be some.

    Raises:
      UserError: there are none; and as `read_pictures`.
    """
    found = read_pictures(path)
    if found is None:
        raise UserError(f"{path} has no pictures: an npz keeps them as arr_0.")
    return found


def first_of(found: PictureSet, count: int | None) -> PictureSet:
    """The first pictures of a set; all of them where count is None, or there are no more."""
    count = found.count if count is None else min(count, found.count)

    def batches(batch_size: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        seen = first
        if seen >= count:
            return
        for batch in found.batches(batch_size, first):
            yield batch[: count - seen]
            seen += len(batch)
            if seen >= count:
                return

    return PictureSet(found.name, count, batches)


def _opened(path: str | os.PathLike) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or 'it is no npz'}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no npz of plain arrays, or is damaged.") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is a single array; give an npz, as np.savez(PATH, pictures) writes it.")
    return file


def _header(member: IO[bytes], path: str | os.PathLike) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an npy; the position is then at its numbers."""
    version = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(member)
    if dtype != np.uint8 or len(shape) != 4 or fortran or shape[-1] not in (1, 3) or shape[0] == 0:
        raise UserError(f"{path}: arr_0 is {dtype} {list(shape)}; pictures are uint8 [N, H, W, 1 or 3].")
    return shape, dtype


def _folder(folder: pathlib.Path) -> PictureSet:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")

    def batches(batch_size: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
        shape = _picture(paths[0]).shape
        for start in range(first, len(paths), batch_size):
            part = [_picture(path) for path in paths[start : start + batch_size]]
            for path, picture in zip(paths[start:], part, strict=False):
                if picture.shape != shape:
                    sizes = f"{picture.shape[1]} x {picture.shape[0]} pixels, the first of the folder {shape[1]} x {shape[0]}"
                    raise UserError(
                        f"{path} has {sizes}. Make them one size: how they are resized changes the figures."
                    )
            yield np.stack(part)

    return PictureSet(str(folder), len(paths), batches)


def _picture(path: pathlib.Path) -> UInt8[np.ndarray, "H W 3"]:
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "L", "P", "1", "CMYK") or "transparency" in image.info:
                what = "transparent" if "A" in image.mode or "transparency" in image.info else f"of mode {image.mode}"
                raise UserError(f"{path} is {what}: save it as 8-bit RGB, on the background that you mean.")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as a picture: it is damaged or of another kind.") from error
