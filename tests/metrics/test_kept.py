"""Features that are kept on disk until an evaluation is done."""

import numpy as np
import pytest

from diffusion_jax.metrics import kept

BLOCKS = [{"pool": np.full((2, 3), i, np.float32)} for i in range(4)]


def compute(first):
    assert first % 2 == 0
    yield from BLOCKS[first // 2 :]


def test_blocks_come_back_as_they_were_and_none_is_computed_twice(tmp_path):
    kept.prepare(tmp_path / "part", {"seed": 0})
    stream = kept.resumed(tmp_path / "part", "real", compute)
    next(stream), next(stream)
    stream.close()
    asked = []
    rest = list(kept.resumed(tmp_path / "part", "real", lambda first: asked.append(first) or compute(first)))
    assert asked == [4]
    np.testing.assert_array_equal([block["pool"] for block in rest], [block["pool"] for block in BLOCKS])
    kept.remove(tmp_path / "part")
    assert not list(tmp_path.iterdir())


def test_a_block_cut_short_is_computed_again(tmp_path):
    kept.prepare(tmp_path, {})
    list(kept.resumed(tmp_path, "real", compute))
    whole = (tmp_path / "real_000001.npz").read_bytes()
    (tmp_path / "real_000001.npz").write_bytes(whole[:100])
    found = list(kept.resumed(tmp_path, "real", compute))
    np.testing.assert_array_equal([block["pool"] for block in found], [block["pool"] for block in BLOCKS])
    assert (tmp_path / "real_000001.npz").read_bytes() == whole


def test_a_write_that_fails_leaves_no_block_under_its_name(tmp_path, monkeypatch):
    kept.prepare(tmp_path, {})

    def full(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        list(kept.resumed(tmp_path, "real", compute))
    assert not list(tmp_path.glob("*.npz"))


def test_another_request_removes_what_is_kept_and_the_same_one_does_not(tmp_path, capsys):
    kept.prepare(tmp_path / "part", {"seed": 0, "steps": (1, 2)})
    list(kept.resumed(tmp_path / "part", "real", compute))
    kept.prepare(tmp_path / "part", {"seed": 0, "steps": (1, 2)})
    assert "going on with the 4" in capsys.readouterr().out
    kept.prepare(tmp_path / "part", {"seed": 1, "steps": (1, 2)})
    assert "(seed changed)" in capsys.readouterr().out
    assert not list((tmp_path / "part").glob("*.npz"))


def test_the_identity_of_files_changes_with_what_they_hold(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    one, file = kept.file_identity(str(tmp_path)), kept.file_identity(str(tmp_path / "a.png"))
    (tmp_path / "b.png").write_bytes(b"2")
    assert kept.file_identity(str(tmp_path)) != one
    assert kept.file_identity(str(tmp_path / "a.png")) == file
    (tmp_path / "a.png").write_bytes(b"12")
    assert kept.file_identity(str(tmp_path / "a.png")) != file
