"""The folders of results, and pictures that went to the editor and back."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.app import results
from diffusion_jax.errors import UserError

RNG = np.random.default_rng(0)


def picture(side):
    return RNG.integers(0, 256, (side, side, 3), np.uint8)


def test_the_newest_are_kept_and_numbers_go_on_after_a_restart(tmp_path):
    (tmp_path / "notes").mkdir()
    kept = results.Results(str(tmp_path), keep=2)
    assert [kept.begin().name for _ in range(3)] == ["000001", "000002", "000003"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002", "000003", "notes"]
    assert results.Results(str(tmp_path), keep=2).begin().name == "000004"


def test_a_result_is_on_disk_as_it_was_made(tmp_path):
    made = np.stack([picture(8), picture(8)])
    paths = results.save_made(tmp_path, made, {"command": "python sample.py"})
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(path)) for path in paths]), made)
    assert json.loads((tmp_path / "result.json").read_text()) == {"command": "python sample.py"}
    given, mask = results.save_input(tmp_path, made[0], made[0, ..., 0] > 127)
    np.testing.assert_array_equal(np.asarray(Image.open(given)), made[0])
    np.testing.assert_array_equal(np.asarray(Image.open(mask)) > 127, made[0, ..., 0] > 127)
    assert results.save_input(tmp_path, made[0], None)[1] is None


def test_what_was_enlarged_for_the_eye_comes_back_to_the_last_bit():
    small = picture(16)
    large = small.repeat(12, 0).repeat(12, 1)
    np.testing.assert_array_equal(results.original_size(large, (32, 16)), small)
    np.testing.assert_array_equal(results.original_size(small, (16,)), small)
    touched = large.copy()
    touched[5, 5] ^= 1
    for other in (touched, picture(48), RNG.integers(0, 256, (16, 32, 3), np.uint8)):
        assert results.original_size(other, (16,)) is other


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --out"):
        results.Results(str(tmp_path / "file" / "out"))
