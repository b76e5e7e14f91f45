"""Worker processes that read ahead: what goes wrong in them is told as without them."""

import itertools

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.encode import Encoder
from diffusion_jax.data.faults import BadExample
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.pipeline import train_batches


@pytest.fixture
def folder(tmp_path):
    """Seven pictures, of which the fourth is cut."""
    for i in range(7):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    cut = tmp_path / "3.png"
    cut.write_bytes(cut.read_bytes()[:40])
    return Folder(tmp_path)


def test_a_corrupt_picture_in_a_worker_ends_the_run_with_the_line_that_names_it(folder, capfd):
    def told(workers):
        with pytest.raises(BadExample) as error:
            for _ in itertools.islice(train_batches(folder, Encoder((4, 4, 3)), 7, 0, workers=workers), 3):
                pass
        return str(error.value)

    line = told(2)
    assert line == told(0)
    assert "3.png cannot be read as a picture" in line and "on_error=skip" in line and "\n" not in line
    assert "Traceback" not in capfd.readouterr().err


def test_what_workers_passed_over_is_counted_and_named(folder, capfd):
    def run(workers):
        batches = train_batches(folder, Encoder((4, 4, 3)), 7, 0, on_error="skip", workers=workers)
        return [next(batches)["image"] for _ in range(4)], batches.skipped

    pictures, skipped = run(2)
    wanted, counted = run(0)
    np.testing.assert_array_equal(pictures, wanted)
    assert skipped == counted == 4  # one in each epoch of seven
    told = capfd.readouterr().err
    assert "3.png cannot be read" in told and "Traceback" not in told
