"""Captions -> tokens: byte-level BPE by Hugging Face `tokenizers`, padded as GLIDE pads."""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from diffusion_jax.errors import UserError

END_TOKEN = "<|endoftext|>"


class CaptionTokenizer:
    """Byte-level BPE with GLIDE's conventions.

    Text is lower-cased, cut to the context's length, and neither begun nor ended by a special token; the rest of the
    context holds the end token, whose id is the vocabulary's last, with mask False. The empty caption is all padding:
    it is the null condition of classifier-free guidance. Any Unicode text has tokens, down to single bytes.

    Source: glide-text2im's `Encoder`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self._end = tokenizer.token_to_id(END_TOKEN)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "CaptionTokenizer":
        """Learns the merges from captions.

        Args:
          captions: the training set's; their order does not matter.
          vocab_size: the most tokens to have, at least 257: 256 bytes, the merges, and the end token last.
        """
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(sorted(set(captions)), trainer)
        tokenizer.add_special_tokens([END_TOKEN])
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> "CaptionTokenizer":
        """The tokenizer that `to_json` wrote.

        Raises:
          UserError: the text is not such a tokenizer.
        """
        try:
            tokenizer = cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(
                f"the tokenizer's JSON cannot be read ({error}); the file is damaged or of another kind."
            ) from error
        if tokenizer._end is None:
            raise UserError(f"the tokenizer has no {END_TOKEN} token, which padding needs.")
        return tokenizer

    def to_json(self) -> str:
        """The whole tokenizer as text."""
        return self._tokenizer.to_str()

    def encode(
        self, captions: Sequence[str], context_length: int
    ) -> tuple[Int[np.ndarray, "N L"], Bool[np.ndarray, "N L"]]:
        """Tokens and mask; mask is False where there is padding.

        Args:
          captions: N texts; "" is the null caption.
          context_length: L; what goes beyond is cut off (see `num_tokens`).

        Raises:
          UserError: a caption is no Unicode text (it has half of a surrogate pair).
        """
        tokens = np.full((len(captions), context_length), self._end, np.int32)
        mask = np.zeros((len(captions), context_length), bool)
        texts = [_text(caption) for caption in captions]
        for i, encoding in enumerate(self._tokenizer.encode_batch(texts, add_special_tokens=False)):
            ids = encoding.ids[:context_length]
            tokens[i, : len(ids)] = ids
            mask[i, : len(ids)] = True
        return tokens, mask

    def num_tokens(self, caption: str) -> int:
        """How many tokens a caption has before it is cut."""
        return len(self._tokenizer.encode(_text(caption), add_special_tokens=False).ids)


def _text(caption: str) -> str:
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the caption {caption!r} is no Unicode text: character {error.start} is half of a surrogate pair, as a "
            "terminal that is not UTF-8 gives. Write it in UTF-8."
        ) from error
    return caption.lower()  # Python knows the two small sigmas; the library goes letter by letter
