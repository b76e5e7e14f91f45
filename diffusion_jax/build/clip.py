"""A config's CLIP: its two encoders, and captions as the second of them reads them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from diffusion_jax.models.clip import ImageEncoder, TextEncoder


def encoders(config: ConfigDict, dtype: Any) -> tuple[ImageEncoder, TextEncoder]:
    """The hyper-parameters of both; `dtype` is what their dense layers compute in."""
    c = config.clip
    return (
        ImageEncoder(
            image_size=config.data.image_size,
            patch_size=c.patch_size,
            width=c.image_width,
            num_layers=c.image_layers,
            num_heads=c.image_heads,
            features=c.features,
            num_timesteps=config.diffusion.num_table_steps,
            dtype=dtype,
        ),
        TextEncoder(c.vocab_size, c.context_length, c.text_width, c.text_layers, c.text_heads, c.features, dtype),
    )


@dataclasses.dataclass(frozen=True)
class ClipCaptions:
    """A tokenizer for CLIP: (tokens, mask), the mask True up to the token at which the caption is read.

    CLIP's own tokenizer (`bpe.ClipTokenizer`) puts a start and an end token around a caption. A `CaptionTokenizer` pads with its
    end token: the first of them becomes the caption's last.
    """

    tokenizer: Any

    def encode(
        self, captions: Sequence[str], context_length: int
    ) -> tuple[Int[np.ndarray, "N L"], Bool[np.ndarray, "N L"]]:
        """Tokens and mask of N captions, cut to the context's length L."""
        tokens, known = self.tokenizer.encode(captions, context_length)
        lengths = known if known.ndim == 1 else np.minimum(known.sum(axis=1) + 1, context_length)
        return tokens, np.arange(context_length) < lengths[:, None]
