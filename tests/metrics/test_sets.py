"""Folders and npz files of pictures and statistics: what was written is read, and what cannot be is told in a line."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import sets

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_the_pictures_of_an_npz_come_in_order_and_in_batches(save, batch_size, tmp_path):
    save(tmp_path / "made.npz", PICTURES, np.arange(5))
    found = sets.read_pictures(tmp_path / "made.npz")
    batches = list(found.batches(batch_size))
    assert found.count == 5
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate(batches), PICTURES)
    np.testing.assert_array_equal(np.concatenate(list(found.batches(batch_size, 3))), PICTURES[3:])
    assert sets.read_statistics(tmp_path / "made.npz") is None


def test_the_pictures_of_a_folder_come_by_name_and_grey_ones_as_rgb(tmp_path):
    (tmp_path / "more").mkdir()
    for i, picture in enumerate(PICTURES[:3]):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    Image.fromarray(PICTURES[3, :, :, 0]).save(tmp_path / "more" / "9.png")
    (tmp_path / "samples.json").write_text("{}")
    found = sets.read_pictures(tmp_path)
    grey = np.repeat(PICTURES[3, :, :, :1], 3, axis=-1)
    assert found.count == 4
    np.testing.assert_array_equal(np.concatenate(list(found.batches(3))), [*PICTURES[:3], grey])
    np.testing.assert_array_equal(np.concatenate(list(found.batches(1, 2))), [PICTURES[2], grey])


def test_statistics_are_read_as_they_were_written_and_as_edm_and_adm_name_them(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "reference.npz"
    pool, spatial = (rng.normal(size=3), rng.normal(size=(3, 3))), (rng.normal(size=2), rng.normal(size=(2, 2)))
    sets.write_statistics(path, sets.Statistics("", {"pool": pool, "spatial": spatial}))
    with np.load(path) as file:
        assert set(file.files) == {"mu", "sigma", "mu_s", "sigma_s"}
    found = sets.read_statistics(path)
    np.testing.assert_array_equal(found.moments["pool"][1], pool[1])
    np.testing.assert_array_equal(found.moments["spatial"][0], spatial[0])
    assert sets.read_pictures(path) is None
    np.savez(path, mu=pool[0], sigma=pool[1])
    assert set(sets.read_statistics(path).moments) == {"pool"}
    np.savez(path, mu=pool[0], sigma=spatial[1])
    assert "not [D] and [D, D]" in refusal(sets.read_statistics, path)


def test_files_that_are_no_sets_are_told(tmp_path):
    np.savez(tmp_path / "float.npz", PICTURES.astype(np.float32))
    assert "float32" in refusal(sets.read_pictures, tmp_path / "float.npz")
    np.save(tmp_path / "one.npy", PICTURES)
    assert "single array" in refusal(sets.read_pictures, tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("no")
    assert "no npz" in refusal(sets.read_pictures, tmp_path / "text.npz")
    assert "cannot read" in refusal(sets.read_statistics, tmp_path / "none.npz")
    (tmp_path / "empty").mkdir()
    assert "no pictures" in refusal(sets.read_pictures, tmp_path / "empty")
    np.savez(tmp_path / "whole.npz", PICTURES)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:400])
    assert "damaged" in refusal(sets.read_pictures, tmp_path / "cut.npz")


@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [("RGBA", (7, 6), "transparent"), ("I;16", (7, 6), "mode I;16"), ("RGB", (6, 6), "one size")],
)
def test_pictures_that_would_change_the_figures_are_refused_by_name(mode, size, words, tmp_path):
    Image.fromarray(PICTURES[0]).save(tmp_path / "0.png")
    Image.new(mode, size).save(tmp_path / "1.png")
    text = refusal(list, sets.read_pictures(tmp_path).batches(4))
    assert words in text
    assert "1.png" in text


def test_a_damaged_picture_is_named(tmp_path):
    Image.fromarray(PICTURES[0]).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    assert "1.png" in refusal(list, sets.read_pictures(tmp_path).batches(4))
    (tmp_path / "1.png").write_bytes(b"")
    assert "1.png" in refusal(list, sets.read_pictures(tmp_path).batches(4))
