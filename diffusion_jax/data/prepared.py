"""Any TFDS data set that is prepared on disk, read without TensorFlow: `tfds:NAME[/CONFIG][:VERSION]` in a config."""

import os
from typing import Any

import tensorflow_datasets as tfds

from diffusion_jax.data.faults import BadExample
from diffusion_jax.errors import UserError


class Prepared:
    """A split of a prepared set. Pictures come as the bytes of their files, decoded where all others are."""

    def __init__(self, name: str, data_dir: str | os.PathLike[str], split: str):
        """
        Args:
          name: "NAME", "NAME/CONFIG", "NAME:VERSION" or "NAME/CONFIG:VERSION".
          data_dir: the folder of all TFDS sets.
          split: as TFDS names it; slices such as "train[:100]" too.

        Raises:
          UserError: it is not there, or has not that split, or is stored as TFRecord. Nothing is fetched.
        """
        builder = _builder(name, os.fspath(data_dir))
        splits = builder.info.splits
        if split.split("[")[0] not in splits:
            raise UserError(f"tfds:{name} has no split {split!r}; it has {', '.join(sorted(splits))}.")
        features = builder.info.features
        raw = {
            key: tfds.decode.SkipDecoding() for key, value in features.items() if isinstance(value, tfds.features.Image)
        }
        try:
            self._source = builder.as_data_source(split, decoders=raw or None)
        except NotImplementedError as error:
            raise UserError(
                f"tfds:{name} in {data_dir} is stored in a form without random access; prepare it as array_record "
                "(file_format='array_record')."
            ) from error
        self._name = f"tfds:{name} {split}"

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """The set, the split and the number."""
        return f"{self._name}, example {index},"

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._source[index]
        except (ValueError, RuntimeError, IndexError, OSError) as error:
            raise BadExample(f"cannot be read ({' '.join(str(error).split())[:200]})") from error


def _builder(name: str, data_dir: str) -> Any:
    advice = (
        f"tfds:{name} is not prepared in {data_dir}. Run `python -m diffusion_jax.data list` for the sets that "
        "`python -m diffusion_jax.data prepare NAME` makes, or set config.data.dir to where it is."
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS has an error of its own for each way of not finding it, some pages long
        raise UserError(advice) from error
    if not builder.is_prepared():
        raise UserError(advice)
    return builder
