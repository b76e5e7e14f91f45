"""Data sources: every kind keeps one contract; faults are named, and passed over in a way that is a function of the step."""

import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import faults
from diffusion_jax.data.encode import Encoder
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.images import Framing
from diffusion_jax.data.pipeline import train_batches
from diffusion_jax.data.prepared import Prepared
from diffusion_jax.data.shards import open_shards
from diffusion_jax.errors import UserError

COUNT = 6


def png(value, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
        features = tfds.features.FeaturesDict(names | {"label": tfds.features.ClassLabel(num_classes=2)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            yield i, {"image": png(i), "caption": f"number {i}", "label": i % 2}


def folder(path):
    for i in range(COUNT):
        place = path / "pictures" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(png(i))
        (place / f"{i}.txt").write_text(f"number {i}\n")
    return Folder(path / "pictures")


def prepared(path):
    Tiny(data_dir=str(path), file_format="array_record").download_and_prepare(file_format="array_record")
    return Prepared("tiny", path, "train")


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def members(first, last):
    for i in range(first, last):
        yield from ((f"{i:03}.png", png(i)), (f"{i:03}.txt", b"number %d" % i), (f"{i:03}.cls", b"%d" % (i % 2)))


def shards(path):
    write_tar(path / "a-0.tar", members(0, 4))
    write_tar(path / "a-1.tar", members(4, COUNT))
    return open_shards(f"{path}/a-*.tar")


class Words:
    vocab_size = 300

    def encode(self, captions, context_length):
        numbers = [int(caption.split()[-1]) for caption in captions]
        return np.array(numbers, np.int32)[:, None], np.ones((len(captions), 1), bool)


ENCODER = Encoder((4, 4, 3), Framing("random", 0.5, True), Words(), 1, 2)


@pytest.mark.parametrize("make", [folder, prepared, shards])
def test_a_source_gives_each_picture_with_its_caption_and_class(make, tmp_path):
    source = make(tmp_path)
    assert len(source) == COUNT
    seen = set()
    for i in range(COUNT):
        out = ENCODER(source[i])
        number = int(out["tokens"][0])
        assert out["image"].shape == (4, 4, 3)
        assert out["image"].dtype == np.uint8
        assert (out["image"] == [number, 0, 255 - number]).all()
        assert out["label"] == number % 2
        seen.add(number)
    assert seen == set(range(COUNT))


@pytest.mark.parametrize("make", [folder, prepared, shards])
def test_batches_with_their_draws_are_a_function_of_the_step(make, tmp_path):
    source = make(tmp_path)
    straight = list(itertools.islice(train_batches(source, ENCODER, 4, 3), 5))
    for batch, again in zip(straight[2:], train_batches(source, ENCODER, 4, 3, first_step=2), strict=False):
        assert batch.keys() == {"image", "tokens", "mask", "label"}
        for name, values in batch.items():
            np.testing.assert_array_equal(values, again[name])
    share = next(train_batches(source, ENCODER, 4, 3, rows=np.array([1, 3])))
    np.testing.assert_array_equal(share["image"], straight[0]["image"][[1, 3]])


def test_two_workers_give_the_batches_of_none(tmp_path):
    source = [{"image": np.random.default_rng(i).integers(0, 256, (9, 7, 3), dtype=np.uint8)} for i in range(8)]
    encode = Encoder((4, 4, 3), Framing("random", 0.5, True))
    wanted = itertools.islice(train_batches(source, encode, 4, 1, first_step=1), 3)
    for batch, other in zip(wanted, train_batches(source, encode, 4, 1, first_step=1, workers=2), strict=False):
        np.testing.assert_array_equal(batch["image"], other["image"])


def test_the_draws_change_from_epoch_to_epoch():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    batches = train_batches([{"image": noise}], Encoder((8, 8, 3), Framing("random", 0.5, True)), 1, 0)
    assert len({batch["image"].tobytes() for batch in itertools.islice(batches, 8)}) > 4


BROKEN = {
    "cut.png": (png(1)[:40], "cannot be read as a picture"),
    "text.png": (b"not a picture", "cannot be read as a picture"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_corrupt_picture_is_named(name, tmp_path):
    data, message = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} {message}.*on_error=skip"):
        next(train_batches(Folder(tmp_path), Encoder((4, 4, 3)), 1, 0))


def test_what_cannot_be_used_is_replaced_the_same_way_every_time_and_counted(tmp_path, capfd):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "5.png").write_bytes(png(5)[:40])

    def run(first_step):
        return train_batches(Folder(tmp_path), Encoder((4, 4, 3)), 6, 0, first_step, on_error="skip")

    straight, later = run(0), run(2)
    pictures = [next(straight)["image"] for _ in range(4)]
    assert straight.skipped == 4  # one in each epoch of six
    assert all((picture[..., 0] < 5).all() for picture in pictures)
    np.testing.assert_array_equal(pictures[2], next(later)["image"])
    assert "skipped: " in (told := capfd.readouterr().err)
    assert "5.png cannot be read" in told


def test_a_set_of_nothing_usable_ends_rather_than_searches_for_ever(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match="Mend the data set"):
        next(train_batches(Folder(tmp_path), Encoder((4, 4, 3)), 1, 0, on_error="skip"))


def test_a_folder_of_one_picture_trains(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    assert (next(train_batches(Folder(tmp_path), Encoder((4, 4, 3)), 1, 0))["image"][..., 0] == 7).all()


def test_a_zero_byte_picture_is_told_when_the_folder_is_opened(tmp_path, capfd):
    (tmp_path / "a.png").write_bytes(png(7))
    (tmp_path / "b.png").touch()
    with pytest.raises(UserError, match="b.png is empty"):
        Folder(tmp_path)
    assert len(Folder(tmp_path, "skip")) == 1
    assert "b.png is empty" in capfd.readouterr().err


def test_metadata_gives_captions_and_an_empty_one_is_a_fault(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    (tmp_path / "b.png").write_bytes(png(8))
    rows = [{"file_name": "a.png", "text": ["number 1", "number 2"]}, {"file_name": "b.png", "text": " "}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source, encode = Folder(tmp_path), Encoder((4, 4, 3), tokenizer=Words(), context_length=1)
    drawn = {int(encode(source[0], np.random.default_rng(i))["tokens"][0]) for i in range(20)}
    assert drawn == {1, 2}
    with pytest.raises(faults.BadExample, match="empty caption"):
        encode(source[1])


def test_a_shard_that_is_cut_is_told_when_it_is_opened_and_its_whole_examples_used(tmp_path, capfd):
    path = tmp_path / "a-0.tar"
    write_tar(path, members(0, 4))
    path.write_bytes(path.read_bytes()[: 1024 * 9 + 512 + 20])  # within the picture of the fourth example
    with pytest.raises(UserError, match="a-0.tar is damaged after 3 whole examples"):
        open_shards(str(path))
    assert len(open_shards(str(path), "skip")) == 3
    assert "damaged" in capfd.readouterr().err


def test_shards_are_read_from_a_bucket():
    import fsspec

    files = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("x.png")
        info.size = len(png(9))
        tar.addfile(info, io.BytesIO(png(9)))
    files.pipe("/bucket/x.tar", buffer.getvalue())
    assert (Encoder((8, 8, 3))(open_shards("memory://bucket/*.tar")[0])["image"][..., 0] == 9).all()


def test_a_set_that_is_not_there_is_told_in_a_line(tmp_path):
    for make in (
        lambda: Prepared("no_such_set", tmp_path, "train"),
        lambda: Folder(tmp_path / "no"),
        lambda: open_shards(f"{tmp_path}/no-*.tar"),
    ):
        with pytest.raises(UserError, match="prepare NAME|config.data.name") as error:
            make()
        assert "\n" not in str(error.value)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(UserError, match="label 5.*num_classes=2"):
        Encoder((4, 4, 3), num_classes=2)({"image": png(1), "label": 5})
