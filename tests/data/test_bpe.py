"""GLIDE's and CLIP's tokenizers, token by token against the originals."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from diffusion_jax.data import bpe
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenizer"
GLIDE_FILE = GOLDEN / "vocab.bpe.gz"
CLIP_FILE = GOLDEN / "bpe_simple_vocab_16e6.first_48894.txt.gz"
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text())["prompts"]
TOKENS = dict(np.load(GOLDEN / "prompts.npz"))
START, END = 49406, 49407
LOADERS = {"glide": (bpe.load_glide, GLIDE_FILE), "clip": (bpe.load_clip, CLIP_FILE)}


@pytest.fixture(scope="module")
def glide():
    return bpe.load_glide(GLIDE_FILE)


@pytest.fixture(scope="module")
def clip():
    return bpe.load_clip(CLIP_FILE)


@pytest.mark.parametrize("context_length", [128, 16])
def test_glide_tokens_and_mask_are_the_originals(glide, context_length):
    assert len(PROMPTS) == 60
    tokens, mask = glide.encode(PROMPTS, context_length)
    assert tokens.dtype == np.int32
    assert mask.dtype == bool
    np.testing.assert_array_equal(tokens, TOKENS[f"glide_tokens_ctx{context_length}"])
    np.testing.assert_array_equal(mask, TOKENS[f"glide_mask_ctx{context_length}"])


def test_glide_knows_the_length_before_the_cut(glide):
    assert [glide.num_tokens(prompt) for prompt in PROMPTS] == TOKENS["glide_length_before_cut"].tolist()


def test_clip_tokens_and_lengths_are_the_originals(clip):
    tokens, lengths = clip.encode(PROMPTS, 77)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, TOKENS["clip_tokens_ctx77"])
    np.testing.assert_array_equal(lengths, TOKENS["clip_len_ctx77"])


def test_sizes_are_those_of_the_published_embeddings(glide, clip):
    assert (glide.vocab_size, clip.vocab_size) == (50257, 49408)


def test_glide_pads_with_the_last_token_and_the_empty_prompt_is_all_padding(glide):
    tokens, mask = glide.encode([""], 8)
    assert tokens.tolist() == [[50256] * 8]
    assert not mask.any()


def test_a_prompt_that_spells_a_special_token_is_text_to_glide_and_the_token_to_clip(glide, clip):
    tokens, mask = glide.encode(["a <|endoftext|>"], 16)
    assert mask.sum() > 4
    assert 50256 not in tokens[mask]
    assert clip.encode(["a <|EndOfText|> b"], 8)[0].tolist() == [[START, 320, END, 321, END, 0, 0, 0]]
    # Within other signs it is no word of its own, and those are split as text.
    assert END not in clip.encode(["!<|endoftext|>"], 16)[0][0, 1:3]


def test_clip_keeps_start_and_end_whatever_is_cut(clip):
    tokens, lengths = clip.encode(["", "a corgi in a field"], 4)
    assert tokens.tolist() == [[START, END, 0, 0], [START, 320, 31320, END]]
    assert lengths.tolist() == [2, 4]
    assert clip.num_tokens("a corgi in a field") == 5
    with pytest.raises(ValueError, match="at least 2"):
        clip.encode(["a"], 1)


@pytest.mark.parametrize(
    "text", ["  “a” CAFÉ &amp;amp;\n\tcorgi ", "“a” cafÃ© & corgi", '"a" caf&eacute; &#38; corgi\x07']
)
def test_clip_mends_text_first(clip, text):
    np.testing.assert_array_equal(clip.encode([text], 16)[0], clip.encode(['"a" café & corgi'], 16)[0])


def test_clip_unescapes_twice_what_mending_leaves_for_markup(clip):
    np.testing.assert_array_equal(clip.encode(["<b> &amp;lt;"], 16)[0], clip.encode(["<b> <"], 16)[0])


def test_the_two_small_sigmas_are_two_letters(glide, clip):
    for tokenizer in (glide, clip):
        tokens = tokenizer.encode(["ΟΔΟΣ", "οδος", "οδοσ"], 16)[0]
        np.testing.assert_array_equal(tokens[0], tokens[1])
        assert (tokens[1] != tokens[2]).any()


@pytest.mark.parametrize("text", ["\ud800", "a \udcff corgi", "\ud83d\udc36"])
def test_half_a_surrogate_pair_is_refused_by_glide_and_mended_by_clip(glide, clip, text):
    for call in (lambda: glide.encode(["a", text], 8), lambda: glide.num_tokens(text)):
        with pytest.raises(UserError, match="surrogate") as error:
            call()
        assert "\n" not in str(error.value)
    assert clip.num_tokens(text) > 0


def test_json_round_trips_give_the_same_tokens(glide, clip):
    for tokenizer, kind in ((glide, CaptionTokenizer), (clip, bpe.ClipTokenizer)):
        again = kind.from_json(tokenizer.to_json())
        for ours, theirs in zip(tokenizer.encode(PROMPTS, 32), again.encode(PROMPTS, 32), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for text in ("", "{}", glide.to_json()):
        with pytest.raises(UserError, match="CLIP's tokenizer"):
            bpe.ClipTokenizer.from_json(text)


# Vocabulary files.


@pytest.mark.parametrize("kind", LOADERS)
def test_a_file_may_be_unpacked_and_have_a_windows_ends_of_lines(kind, tmp_path, glide, clip):
    load, packed = LOADERS[kind]
    path = tmp_path / "plain"
    path.write_bytes(gzip.decompress(packed.read_bytes()).replace(b"\n", b"\r\n"))
    ours, theirs = load(path).encode(PROMPTS, 64), {"glide": glide, "clip": clip}[kind].encode(PROMPTS, 64)
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_merges_beyond_those_that_clip_uses_change_nothing(tmp_path, clip):
    path = tmp_path / "whole"
    path.write_bytes(gzip.decompress(CLIP_FILE.read_bytes()) + b"x y\nz w\n\n")
    assert bpe.load_clip(path).to_json() == clip.to_json()


def swap(data, i, j):
    lines = data.split(b"\n")
    lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


DAMAGES = {
    "empty": (lambda data: b"", "#version"),
    "a web page": (lambda data: b"<!DOCTYPE html>\n<html>", "#version"),
    "the ids": (lambda data: b'{"!": 0, "\\"": 1}', "#version"),
    "bytes": (lambda data: bytes(range(256)), "no vocabulary"),
    "cut between lines": (lambda data: b"\n".join(data.split(b"\n")[:40000]) + b"\n", "truncated"),
    "cut in the last line": (lambda data: data[:-2], "truncated"),
    "cut when packed": (lambda data: gzip.compress(data)[:-9], "truncated"),
    "packed wrongly": (lambda data: gzip.compress(data)[:99] + gzip.compress(data)[120:], "truncated"),
    "a line without a pair": (lambda data: data.replace(b"\ni n\n", b"\nin\n", 1), "no merge of two"),
    "a line twice": (lambda data: data.replace(b"\ni n\n", b"\nh e\n", 1), "damaged or another model's"),
    "lines out of order": (lambda data: swap(data, 2, 30000), "damaged or another model's"),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_vocabulary_file_is_told_in_a_line(kind, damage, tmp_path):
    load, packed = LOADERS[kind]
    change, words = DAMAGES[damage]
    path = tmp_path / "vocabulary"
    path.write_bytes(change(gzip.decompress(packed.read_bytes())))
    with pytest.raises(UserError, match=words) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_other_models_vocabulary_is_refused(kind, tmp_path):
    other = tmp_path / "other"
    data = gzip.decompress(LOADERS["clip" if kind == "glide" else "glide"][1].read_bytes())
    other.write_bytes(data + b"x y\n" * 2000)  # CLIP's whole file is longer than GLIDE's
    with pytest.raises(UserError, match="another model's vocabulary"):
        LOADERS[kind][0](other)


def test_a_missing_file_is_told_with_what_is_wanted(tmp_path):
    with pytest.raises(UserError, match=r"No such file.*vocab\.bpe"):
        bpe.load_glide(tmp_path / "none")
    with pytest.raises(UserError, match=r"bpe_simple_vocab_16e6"):
        bpe.load_clip(tmp_path)
