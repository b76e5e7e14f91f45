import csv

import numpy as np
import pytest

from diffusion_jax import processes
from diffusion_jax.training.hooks import MetricWriter, SampleGrid


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


def write(folder, first_step, steps, loss):
    writer = MetricWriter(folder, ("loss",), first_step)
    for step in steps:
        writer.write(step, {"loss": loss})
    writer.close()


def test_a_resumed_run_replaces_what_came_after_its_first_step(tmp_path):
    write(tmp_path, 0, (2, 4, 6), 1.0)
    write(tmp_path, 4, (6, 8), 0.5)
    assert rows(tmp_path) == [(2, "1"), (4, "1"), (6, "0.5"), (8, "0.5")]


def test_columns_that_a_resumed_run_no_longer_writes_stay(tmp_path):
    writer = MetricWriter(tmp_path, ("loss", "score"), 0)
    writer.write(2, {"loss": 1.0, "score": 0.5})
    writer.close()
    write(tmp_path, 2, (4,), 0.25)
    with (tmp_path / "metrics.csv").open() as file:
        assert [(row["loss"], row["score"]) for row in csv.DictReader(file)] == [("1", "0.5"), ("0.25", "")]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    write(tmp_path, 0, (2,), 1.0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("\n,7")
    write(tmp_path, 2, (4,), 0.5)
    assert rows(tmp_path) == [(2, "1"), (4, "0.5")]


def test_a_disk_that_fills_while_rewriting_keeps_the_earlier_rows(tmp_path, monkeypatch):
    write(tmp_path, 0, (2, 4), 1.0)

    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("csv.DictWriter.writerows", full)
    with pytest.raises(OSError, match="No space"):
        MetricWriter(tmp_path, ("loss",), 4)
    assert rows(tmp_path) == [(2, "1"), (4, "1")]


def test_of_several_processes_the_first_alone_writes(tmp_path, monkeypatch):
    write(tmp_path, 0, (2, 4), 1.0)
    files = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(processes, "first", lambda: False)
    write(tmp_path, 2, (4,), 9.0)
    SampleGrid(tmp_path, ("a",), lambda params: np.zeros((1, 1, 8, 8, 3), np.uint8))(4, None)
    assert rows(tmp_path) == [(2, "1"), (4, "1")]
    assert sorted(tmp_path.rglob("*")) == files
