import numpy as np
import pytest

from diffusion_jax.data.captions import END_TOKEN, CaptionTokenizer
from diffusion_jax.errors import UserError

CAPTIONS = [
    "a small red circle on a white background",
    "a large blue star above a small green ring on a black background",
]


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer.train(CAPTIONS, 512)


def test_words_of_the_training_captions_are_one_token_each(tokenizer):
    assert [tokenizer.num_tokens(caption) for caption in CAPTIONS] == [len(caption.split()) for caption in CAPTIONS]


def test_padding_is_the_last_token_with_mask_false_as_in_glide(tokenizer):
    tokens, mask = tokenizer.encode(["a red ring"], 6)
    assert mask.tolist() == [[True, True, True, False, False, False]]
    assert tokens[0, 3:].tolist() == [tokenizer.vocab_size - 1] * 3
    assert tokenizer.vocab_size - 1 not in tokens[0, :3]


def test_empty_caption_is_all_padding(tokenizer):
    tokens, mask = tokenizer.encode([""], 4)
    assert not mask.any()
    assert (tokens == tokenizer.vocab_size - 1).all()


def test_long_caption_is_cut_and_its_length_is_told(tokenizer):
    text = " ".join(["red"] * 50)
    tokens, mask = tokenizer.encode([text], 8)
    assert tokens.shape == (1, 8)
    assert mask.all()
    assert tokenizer.num_tokens(text) == 50


@pytest.mark.parametrize("text", ["ünïcödé", "红色的圆", "🎉", "\x00\x07", "tab\tnew\nline"])
def test_any_text_has_tokens_within_the_vocabulary(tokenizer, text):
    tokens, mask = tokenizer.encode([text], 32)
    assert mask.any()
    assert tokens.min() >= 0
    assert tokens.max() < tokenizer.vocab_size


def test_case_does_not_matter(tokenizer):
    np.testing.assert_array_equal(tokenizer.encode(["A Red RING"], 6)[0], tokenizer.encode(["a red ring"], 6)[0])


def test_training_does_not_depend_on_the_order_of_captions(tokenizer):
    assert CaptionTokenizer.train(CAPTIONS[::-1], 512).to_json() == tokenizer.to_json()


def test_json_round_trip_gives_the_same_tokens(tokenizer):
    again = CaptionTokenizer.from_json(tokenizer.to_json())
    for ours, theirs in zip(tokenizer.encode([*CAPTIONS, "🎉"], 16), again.encode([*CAPTIONS, "🎉"], 16), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_damaged_json_is_refused_in_words(text):
    with pytest.raises(UserError, match="tokenizer"):
        CaptionTokenizer.from_json(text)


def test_a_prompt_that_spells_the_end_token_stays_text_of_this_vocabulary(tokenizer):
    tokens, mask = tokenizer.encode([f"a {END_TOKEN} ring"], 16)
    assert mask.any()
    assert tokens.max() < tokenizer.vocab_size
