"""An example of a data set -> the arrays that the train step takes. Picklable and without JAX's devices, for worker processes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_jax.data import images
from diffusion_jax.data.faults import BadExample
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Encoder:
    """(example, rng) -> {"image", and of "tokens", "mask", "label" those that are wanted}.

    Every draw is from the `rng` that is given, which the pipeline seeds by (seed, position in the stream). With None there is
    nothing random: the centre, not mirrored, the first caption.

    Attributes:
      image_shape: (H, W, C) with H = W; (D,) of data that are vectors, which pass through as they are.
      framing: crop and mirroring.
      tokenizer: with `encode(captions, context_length)`; None where captions are not wanted.
      context_length: tokens per caption.
      num_classes: how many labels there are; None where labels are not wanted.
      fields: the names of an example's "image", "caption" and "label" in the data set, where they are others.
    """

    image_shape: tuple[int, ...]
    framing: images.Framing = images.Framing()
    tokenizer: Any = None
    context_length: int = 0
    num_classes: int | None = None
    fields: tuple[str, str, str] = ("image", "caption", "label")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """
        Raises:
          BadExample: this example cannot be used.
          UserError: no example of the set can, for want of a field.
        """
        out = {"image": self.image(example, rng)}
        if self.tokenizer is not None:
            tokens, mask = self.tokenizer.encode([self.caption(example, rng)], self.context_length)
            out |= {"tokens": tokens[0], "mask": mask[0]}
        if self.num_classes is not None:
            out["label"] = self.label(example)
        return out

    def image(self, example: dict[str, Any], rng: np.random.Generator | None = None) -> np.ndarray:
        """The picture at the network's size; or the vector."""
        value = field(example, self.fields[0])
        if len(self.image_shape) == 1:
            return value
        size, channels = self.image_shape[0], self.image_shape[-1]
        if not isinstance(value, bytes | np.ndarray):
            value = read_bytes(value)
        decoded = images.decode(value, channels) if isinstance(value, bytes) else images.to_channels(value, channels)
        return images.frame(decoded, size, self.framing, rng)

    def caption(self, example: dict[str, Any], rng: np.random.Generator | None = None) -> str:
        """The example's caption; of several, one at random. An empty one is a fault: it would train as the null caption."""
        choices = texts(field(example, self.fields[1]))
        if not choices:
            raise BadExample("has an empty caption")
        return choices[int(rng.integers(len(choices)))] if rng is not None and len(choices) > 1 else choices[0]

    def label(self, example: dict[str, Any]) -> np.int32:
        """The example's class."""
        value, num_classes = field(example, self.fields[2]), self.num_classes or 0
        try:
            label = int(value)
        except (TypeError, ValueError) as error:
            raise BadExample(f"has no whole number as its label but {str(value)[:40]!r}") from error
        if not 0 <= label < num_classes:
            raise UserError(
                f"the data set has the label {label}, and config.data.num_classes={num_classes} allows 0 to {num_classes - 1}. "
                "Set --config.data.num_classes to the set's."
            )
        return np.int32(label)


def field(example: dict[str, Any], name: str) -> Any:
    """example[name]; a dotted name goes into what is nested, as "captions.text".

    Raises:
      UserError: there is none; it lists those that there are.
    """
    value = example
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(sorted(example)) or "nothing"
            raise UserError(
                f"the data set's examples have no {name!r}, which this config needs; they have {known}. Set "
                "config.data.image_field, caption_field or label_field, or another config.model.condition."
            )
        value = value[part]
    return value


def texts(value: Any) -> Sequence[str]:
    """The captions of an example, without those that are blank; TFDS gives bytes."""
    try:
        choices = [value] if isinstance(value, str | bytes) else list(value)
    except TypeError as error:
        raise BadExample(f"has no text as its caption but {value!r}") from error
    try:
        decoded = [choice.decode() if isinstance(choice, bytes) else str(choice) for choice in choices]
    except UnicodeDecodeError as error:
        raise BadExample("has a caption that is not UTF-8 text") from error
    return [choice.strip() for choice in decoded if choice.strip()]


def read_bytes(file: Any) -> bytes:
    """The bytes of what has a `read_bytes`: a path, or a piece of a shard."""
    if not hasattr(file, "read_bytes"):
        raise BadExample(f"holds no picture's file but a {type(file).__name__}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadExample(f"cannot be read ({error.strerror or error})") from error
