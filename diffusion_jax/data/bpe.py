"""The tokenizers of GLIDE's models, from the vocabulary files that come with their weights.

    glide = bpe.load_glide("vocab.bpe.gz")                       # text for the U-Nets: GPT-2's merges
    clip = bpe.load_clip("bpe_simple_vocab_16e6.txt.gz")         # text for the noised CLIP: CLIP's merges

Both are byte-pair encodings over bytes. A file lists the merges, the first learned first; the ids follow from it:
256 bytes (in CLIP's case again at the ends of words), the merges, the special tokens.
"""

import gzip
import html
import os
import pathlib
import re
import zlib
from collections.abc import Sequence

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, pre_tokenizers

from diffusion_jax.data.captions import END_TOKEN, CaptionTokenizer
from diffusion_jax.errors import UserError

_GLIDE_MERGES = 50_000
_CLIP_MERGES = 48_894  # of the 262,144 in its file
_START_TOKEN = "<|startoftext|>"
_END_OF_WORD = "</w>"
# White space as Unicode has it; Python's \s has four separators more, which the original does not take for white space.
_SPACES = re.compile(r"[^\S\x1c-\x1f]+")
# A digit is a word of its own. Case matters although the text is lower-case: the long s is an s here.
_CLIP_WORDS = r"(?i)<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def load_glide(path: str | os.PathLike) -> CaptionTokenizer:
    """The tokenizer of GLIDE's text-conditional models: 50,257 tokens, the last of which pads.

    >>> tokens, mask = load_glide(path).encode(["an oil painting of a corgi"], 128)  # doctest: +SKIP

    Args:
      path: GPT-2's merges, as glide-text2im has them in `tokenizer/vocab.bpe.gz`; packed or not.

    Raises:
      UserError: the file is missing, truncated or another one.

    Source: glide-text2im's `Encoder`.
    """
    merges = _read_merges(path, _GLIDE_MERGES, "GLIDE's vocabulary is vocab.bpe(.gz)")
    tokenizer = tokenizers.Tokenizer(_model(_byte_symbols(), merges, [END_TOKEN], path))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return CaptionTokenizer(tokenizer)


def load_clip(path: str | os.PathLike) -> "ClipTokenizer":
    """The tokenizer of CLIP and of GLIDE's noised CLIP: 49,408 tokens.

    Args:
      path: CLIP's merges, `bpe_simple_vocab_16e6.txt.gz` (glide-text2im has it in `tokenizer/`); packed or not.

    Raises:
      UserError: the file is missing, truncated or another one.

    Source: CLIP's `SimpleTokenizer`.
    """
    merges = _read_merges(path, _CLIP_MERGES, "CLIP's vocabulary is bpe_simple_vocab_16e6.txt(.gz)")
    symbols = [byte + end for end in ("", _END_OF_WORD) for byte in _byte_symbols()]
    model = _model(symbols, merges, [_START_TOKEN, END_TOKEN], path, end_of_word_suffix=_END_OF_WORD)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [_clip_words(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return ClipTokenizer(tokenizer)


class ClipTokenizer:
    """CLIP's byte-pair encoding, with its cleaning of text and its start and end tokens.

    Text is mended (mojibake, HTML's entities, white space) and lower-cased, so that any string can be encoded. A prompt
    that spells a special token as a word of its own gets that token, as in the original.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._words = _clip_words()
        self.vocab_size = tokenizer.get_vocab_size()
        self._special: dict[str, int] = {}
        for token in (_START_TOKEN, END_TOKEN):
            number = tokenizer.token_to_id(token)
            if number is None:
                raise UserError(f"this is not CLIP's tokenizer: it has no {token}.")
            self._special[token] = number

    @classmethod
    def from_json(cls, text: str) -> "ClipTokenizer":
        """The tokenizer that `to_json` wrote.

        Raises:
          UserError: the text is not such a tokenizer.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"CLIP's tokenizer cannot be read from its JSON ({error}); the file is damaged.") from error
        return cls(tokenizer)

    def to_json(self) -> str:
        """The whole tokenizer as text, but for the cleaning, which is this class's."""
        return self._tokenizer.to_str()

    def encode(self, texts: Sequence[str], context_length: int) -> tuple[Int[np.ndarray, "N L"], Int[np.ndarray, " N"]]:
        """Tokens, and how many of them count; the rest is 0.

        Args:
          texts: N texts. The start and the end token stand around each, around "" too.
          context_length: L, at least 2; what goes beyond is cut off, the end token stays.

        Raises:
          ValueError: context_length is less than 2.
        """
        if context_length < 2:
            raise ValueError(
                f"context_length must be at least 2, for the start and the end token; got {context_length}."
            )
        tokens = np.zeros((len(texts), context_length), np.int32)
        lengths = np.zeros(len(texts), np.int32)
        for i, text in enumerate(texts):
            ids = [self._special[_START_TOKEN], *self._ids(text)[: context_length - 2], self._special[END_TOKEN]]
            tokens[i, : len(ids)] = ids
            lengths[i] = len(ids)
        return tokens, lengths

    def num_tokens(self, text: str) -> int:
        """How many tokens a text has before it is cut, without start and end."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        text = _clean(text)
        if not any(token in text for token in self._special):
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        ids = []
        for word, _ in self._words.pre_tokenize_str(text):
            ids += [self._special[word]] if word in self._special else self._tokenizer.encode(word).ids
        return ids


def _clean(text: str) -> str:
    """What CLIP's text goes through before it is split into words."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACES.sub(" ", text.strip()).strip().lower()


def _clip_words() -> pre_tokenizers.Split:
    return pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), "removed", invert=True)


def _byte_symbols() -> list[str]:
    """The character that stands for each byte in a vocabulary, in the order of their ids.

    Bytes that Latin-1 prints stand for themselves and come first; the others take the characters from 256 on.
    """
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printed] + [chr(256 + i) for i in range(256 - len(printed))]


def _read_merges(path: str | os.PathLike, count: int, wanted: str) -> list[tuple[str, str]]:
    """The first `count` merges of a vocabulary file, after its line of the version."""
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is truncated, damaged or no vocabulary. {wanted}; copy it again.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}. {wanted}.") from error
    first, *lines, last = text.replace("\r\n", "\n").split("\n") if "\n" in text else (text, "")
    if "#version" not in first:
        raise UserError(f"{path} is no list of merges: it does not begin with their #version. {wanted}.")
    if last or len(lines) < count:
        raise UserError(f"{path} has {len(lines)} of {count} merges: it is truncated or another's. {wanted}.")
    merges = []
    for line in lines[:count]:
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise UserError(
                f"{path} has a line that is no merge of two symbols: it is damaged. {wanted}; copy it again."
            )
        merges.append((left, right))
    # Either file would give tokens with the other's loader, and all of them wrong.
    if any(_END_OF_WORD in part for merge in merges for part in merge) != (count == _CLIP_MERGES):
        raise UserError(f"{path} is another model's vocabulary. {wanted}.")
    return merges


def _model(
    symbols: list[str],
    merges: list[tuple[str, str]],
    special: list[str],
    path: str | os.PathLike,
    **options: str,
) -> models.BPE:
    vocabulary = [*symbols, *map("".join, merges), *special]
    ids = {token: i for i, token in enumerate(vocabulary)}
    # Every merge is of two tokens that came before, into a new one; a damaged file breaks this.
    known = all(ids.get(part, len(ids)) < i for i, merge in enumerate(merges, len(symbols)) for part in merge)
    if len(ids) != len(vocabulary) or not known:
        raise UserError(f"{path} is damaged or another model's: a merge makes no new token of earlier ones.")
    return models.BPE(ids, merges, **options)
