"""Shards as a data source with random access: `shards:GLOB` in a config. WebDataset tars are here, array_record in `records`.

Of a tar the members NAME.png (or another picture), NAME.txt (captions, one per line), NAME.cls (a number) and NAME.json
("caption" or "text", "label") are one example. Each shard's table of members is read once, when it is opened.
"""

import json
import re
import tarfile
from typing import Any, NamedTuple

import fsspec

from diffusion_jax.data.faults import BadExample, refuse
from diffusion_jax.data.folder import SUFFIXES
from diffusion_jax.errors import UserError

_KNOWN = {suffix[1:]: "image" for suffix in SUFFIXES} | {"txt": "txt", "cls": "cls", "json": "json"}
RECORDS = re.compile(r"\.(array_record|arrayrecord)(-\d+-of-\d+)?$")


class Piece(NamedTuple):
    """Bytes of a file: a member of a tar."""

    files: Any  # fsspec's file system
    path: str
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """The member's content."""
        return self.files.cat_file(self.path, self.start, self.start + self.size) if self.size else b""


class Tars:
    """The examples of shards, in the order of their names and of their members."""

    def __init__(self, files: Any, paths: list[str], on_error: str = "raise"):
        """
        Args:
          files: fsspec's file system.
          paths: the shards.
          on_error: "raise" or "skip", for shards that are cut and examples without a picture.

        Raises:
          UserError: nothing in them can be used.
        """
        self._files, self._examples, faults = files, [], []
        for path in paths:
            examples, cut = _index(files, path)
            whole = {key: members for key, members in examples.items() if "image" in members}
            faults += [f"{path} has {key} without a picture" for key in examples if key not in whole]
            faults += [f"{path} is damaged after {len(examples)} whole examples ({cut})"] if cut else []
            self._examples += [(path, key, members) for key, members in whole.items()]
        refuse(faults, on_error, "the shards")
        if not self._examples:
            raise UserError(
                f"no pictures in {paths[0]} and {len(paths) - 1} other shards; members are NAME.png, NAME.txt, ..."
            )

    def __len__(self) -> int:
        return len(self._examples)

    def name(self, index: int) -> str:
        """The shard and the member."""
        path, key, _ = self._examples[index]
        return f"{path}: {key}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, _, members = self._examples[index]
        pieces = {kind: Piece(self._files, path, *where) for kind, where in members.items()}
        example: dict[str, Any] = {"image": pieces["image"]}
        try:
            if "json" in pieces:
                values = json.loads(pieces["json"].read_bytes())
                example |= {name: values[name] for name in ("caption", "label") if name in values}
                example |= {"caption": values["text"]} if "text" in values else {}
            if "txt" in pieces:
                example["caption"] = pieces["txt"].read_bytes().decode().splitlines()
            if "cls" in pieces:
                example["label"] = int(pieces["cls"].read_bytes())
        except (ValueError, TypeError, OSError) as error:
            raise BadExample(f"has a caption, class or JSON that cannot be read ({error})") from error
        return example


def open_shards(pattern: str, on_error: str = "raise") -> Any:
    """The shards of a pattern such as data/train-*.tar, gs://bucket/train-*.tar or data/train.array_record-*: `Tars` or `Records`.

    Tars are read wherever fsspec reads; array_record on a disk and in a bucket of Google's.

    Raises:
      UserError: there are none, they are of two kinds, or their place cannot be reached.
    """
    try:
        files, path = fsspec.core.url_to_fs(pattern)
        paths = sorted(files.glob(path))
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"shards:{pattern} cannot be listed ({error}).") from error
    if not paths:
        raise UserError(
            f"no files match shards:{pattern}. Set config.data.name=shards:GLOB to WebDataset tars or array_record files."
        )
    if all(path.endswith(".tar") for path in paths):
        return Tars(files, paths, on_error)
    if other := [path for path in paths if not RECORDS.search(path)]:
        raise UserError(
            f"{other[0]} is no {'array_record' if len(other) < len(paths) else '.tar and no array_record'}; all shards of "
            f"shards:{pattern} are NAME.tar, or all NAME.array_record or NAME.array_record-00000-of-00010."
        )
    from diffusion_jax.data.records import Records  # here, since it brings TFDS, which takes a second

    return Records([_address(files, path, pattern) for path in paths], on_error)


def _address(files: Any, path: str, pattern: str) -> str:
    """A path as array_record's reader takes it."""
    protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    if "file" in protocols:
        return path
    if "gs" in protocols:
        return f"gs://{path.removeprefix('gs://')}"
    raise UserError(
        f"shards:{pattern} are array_record, which is read on a disk and from gs:// alone. Copy or mount them, or pack tars."
    )


def _index(files: Any, path: str) -> tuple[dict[str, dict[str, tuple[int, int]]], str | None]:
    """Name -> kind -> (start, size) of the members, and what is wrong with the shard if it is."""
    examples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        end = files.size(path)
        with files.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                kind = _KNOWN.get(extension.lower())
                if not member.isfile() or kind is None or not stem:
                    continue
                key = folder + slash + stem
                if member.offset_data + member.size > end:
                    examples.pop(key, None)
                    return examples, f"cut within {member.name}"
                examples.setdefault(key, {})[kind] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        return examples, str(error)
    return examples, None
