"""array_record shards: records of tf.train.Example without TensorFlow, and what is wrong with shards told."""

import io
import itertools
import pickle
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from diffusion_jax.data.encode import Encoder
from diffusion_jax.data.faults import BadExample
from diffusion_jax.data.images import Framing
from diffusion_jax.data.pipeline import train_batches
from diffusion_jax.data.shards import open_shards
from diffusion_jax.errors import UserError


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def record(**fields):
    """A serialized tf.train.Example; fields hold bytes, ints or floats, or lists of them."""
    example = tf_example_pb2.Example()
    for name, values in fields.items():
        values = values if isinstance(values, list) else [values]
        feature = example.features.feature[name.replace("__", "/")]
        kind = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}[type(values[0])]
        kind.value.extend(values)
    return example.SerializeToString()


def write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for data in records:
        writer.write(data)
    writer.close()


def numbered(first, last):
    return [record(image=png(i), caption=b"number %d" % i, label=i % 2) for i in range(first, last)]


class Words:
    vocab_size = 300

    def encode(self, captions, context_length):
        numbers = [int(caption.split()[-1]) for caption in captions]
        return np.array(numbers, np.int32)[:, None], np.ones((len(captions), 1), bool)


ENCODER = Encoder((4, 4, 3), Framing("random", 0.5, True), Words(), 1, 2)


@pytest.fixture
def pattern(tmp_path):
    """Six examples in two shards, and an empty one between them."""
    write(tmp_path / "train.array_record-00000-of-00003", numbered(0, 4))
    write(tmp_path / "train.array_record-00001-of-00003", [])
    write(tmp_path / "train.array_record-00002-of-00003", numbered(4, 6))
    return f"{tmp_path}/train.array_record-*"


def test_every_record_is_an_example_in_the_order_of_shards(pattern):
    source = pickle.loads(pickle.dumps(open_shards(pattern)))  # as a worker process gets it
    assert len(source) == 6
    for i in (5, 0, 3, 4, 1, 2):
        out = ENCODER(source[i])
        assert (out["image"] == [i, 0, 255 - i]).all()
        assert (int(out["tokens"][0]), out["label"]) == (i, i % 2)
    assert source.name(3).endswith("train.array_record-00000-of-00003, record 3,")
    assert source.name(4).endswith("train.array_record-00002-of-00003, record 0,")


def test_batches_with_their_draws_are_a_function_of_the_step(pattern):
    straight = list(itertools.islice(train_batches(open_shards(pattern), ENCODER, 4, 3), 4))
    later = train_batches(open_shards(pattern), ENCODER, 4, 3, first_step=2)
    for batch, again in zip(straight[2:], later, strict=False):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, again[name])


def test_fields_of_other_names_nested_ones_and_lists_are_read(tmp_path):
    captions = [b"number 7", b"number 8"]
    write(tmp_path / "a.array_record", [record(photo__jpeg=png(7), captions__text=captions, kind=1, weight=0.5)])
    source = open_shards(f"{tmp_path}/a.array_record")
    assert source[0]["captions"]["text"] == captions
    assert source[0]["weight"] == 0.5
    encode = Encoder((8, 8, 3), tokenizer=Words(), num_classes=2, fields=("photo.jpeg", "captions.text", "kind"))
    drawn = {int(encode(source[0], np.random.default_rng(i))["tokens"][0]) for i in range(20)}
    assert drawn == {7, 8}
    with pytest.raises(UserError, match="no 'image'.*they have captions, kind, photo, weight"):
        Encoder((8, 8, 3))(source[0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": [1, 2, 3]}, "holds no picture's file but a list"),
        ({"image": b"no"}, "cannot be read as a picture"),
        ({"image": png(1), "caption": 3}, "has no text as its caption"),
        ({"image": png(1), "caption": b"number 1", "label": b"red"}, "has no whole number as its label"),
    ],
)
def test_a_record_with_another_kind_of_value_is_a_bad_example(tmp_path, fields, words):
    write(tmp_path / "a.array_record", [record(**fields)])
    with pytest.raises(BadExample, match=words):
        ENCODER(open_shards(f"{tmp_path}/a.array_record")[0])


def test_a_shard_that_is_cut_or_no_array_record_is_named_or_passed_over_and_counted(pattern, tmp_path, capfd):
    whole = (tmp_path / "train.array_record-00000-of-00003").read_bytes()
    (tmp_path / "train.array_record-00000-of-00003").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="00000-of-00003 is cut or damaged.*on_error=skip") as error:
        open_shards(pattern)
    assert "\n" not in str(error.value)
    (tmp_path / "train.array_record-00001-of-00003").write_bytes(b"something else")
    source = open_shards(pattern, "skip")
    assert [int(ENCODER(source[i])["tokens"][0]) for i in range(len(source))] == [4, 5]
    told = capfd.readouterr().err
    assert "skipped: " in told and "00001-of-00003 is cut or damaged" in told
    assert "2 in all" in told
    (tmp_path / "train.array_record-00002-of-00003").unlink()
    with pytest.raises(UserError, match="no records in"):
        open_shards(pattern, "skip")


def test_a_record_that_is_damaged_is_named_and_replaced_and_counted(tmp_path, capfd):
    write(tmp_path / "a.array_record", [*numbered(0, 5), b"\xff no example"])
    pattern = f"{tmp_path}/a.array_record"
    with pytest.raises(UserError, match=r"a\.array_record, record 5, is no tf\.train\.Example"):
        next(train_batches(open_shards(pattern), ENCODER, 6, 0))
    batches = train_batches(open_shards(pattern), ENCODER, 6, 0, on_error="skip")
    assert (next(batches)["image"][..., 0] < 5).all()
    assert batches.skipped == 1
    assert "record 5, is no" in capfd.readouterr().err


def test_bits_that_changed_within_a_record_are_noticed(tmp_path):
    path = tmp_path / "a.array_record"
    noise = [np.random.default_rng(i).bytes(40_000) for i in range(3)]
    write(path, [record(image=data) for data in noise])
    data = bytearray(path.read_bytes())
    at = data.index(noise[1][20_000:20_050])
    data[at] ^= 1
    path.write_bytes(data)
    source = open_shards(str(path))
    assert source[0]["image"] == noise[0]
    with pytest.raises(BadExample, match="cannot be read"):
        source[1]
    assert source[2]["image"] == noise[2]


def test_shards_of_two_kinds_and_of_neither_and_in_a_bucket_that_cannot_be_read_are_refused(tmp_path):
    import fsspec

    write(tmp_path / "a.array_record", numbered(0, 1))
    (tmp_path / "b.tar").touch()
    (tmp_path / "c.zip").touch()
    with pytest.raises(UserError, match="b.tar is no array_record; all shards"):
        open_shards(f"{tmp_path}/[ab].*")
    with pytest.raises(UserError, match="c.zip is no .tar and no array_record"):
        open_shards(f"{tmp_path}/c.*")
    fsspec.filesystem("memory").pipe("/bucket/a.array_record", b"x")
    with pytest.raises(UserError, match="on a disk and from gs:// alone"):
        open_shards("memory://bucket/*.array_record")


def test_records_are_read_without_tensorflow(pattern):
    open_shards(pattern)[0]
    assert "tensorflow" not in sys.modules
