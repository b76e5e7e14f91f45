"""The sets that are prepared from packages: of archives as small as can be, laid out as the real ones are."""

import gzip
import hashlib
import io
import json
import re
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.builders import cifar10_npm, emoji, fashion_mnist_idx, packages
from diffusion_jax.errors import UserError

CODES = [f"{0x1F400 + i:x}" for i in range(40)]


def write_tgz(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def picture(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, lossless=True)
    return file.getvalue()


def prepared(kind, archives, tmp_path, **arguments):
    builder = kind(data_dir=str(tmp_path / "data"), file_format="array_record", **arguments)
    kind.archives = archives
    builder.download_and_prepare(file_format="array_record")
    return builder


# Files.


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_idx_file_is_read_and_a_cut_one_named(tmp_path, compress):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = b"\0\0\x08\x03" + struct.pack(">3I", *array.shape) + array.tobytes()
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(compress(content))
    np.testing.assert_array_equal(fashion_mnist_idx.read_idx(path), array)
    for damaged in (content[:-1], content[:7], b"", b"\0\0\x0d" + content[3:]):
        path.write_bytes(compress(damaged))
        with pytest.raises(UserError, match="no whole idx file"):
            fashion_mnist_idx.read_idx(path)


def package(content, *command):
    return packages.Package("thing.tgz", hashlib.sha256(content).hexdigest(), command, "MIT")


def test_a_package_is_fetched_once_and_verified(tmp_path, capsys):
    thing = package(b"hello\n", "sh", "-c", "echo hello > thing.tgz; echo x >> times")
    for _ in range(2):
        assert packages.obtain([thing], [], tmp_path)[0].read_bytes() == b"hello\n"
    assert (tmp_path / "times").read_text() == "x\n"
    assert "licence: MIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command, told",
    [
        (("no-such-manager", "x"), "no-such-manager is not installed"),
        (("sh", "-c", "echo no network >&2; exit 3"), "no network"),
        (("true",), "did not write thing.tgz"),
        (("sh", "-c", "echo other > thing.tgz"), "has SHA-256"),
    ],
)
def test_a_package_that_cannot_be_had_is_one_line_that_says_why(tmp_path, command, told):
    with pytest.raises(UserError, match=told) as error:
        packages.obtain([package(b"hello\n", *command)], [], tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_the_user_gives_is_taken_and_verified(tmp_path):
    given = tmp_path / "thing.tgz"
    given.write_bytes(b"hello\n")
    never = package(b"hello\n", "false")
    assert packages.obtain([never], [str(given)], tmp_path / "empty") == [given]
    given.write_bytes(b"hello")
    with pytest.raises(UserError, match="has SHA-256"):
        packages.obtain([never], [str(given)], tmp_path / "empty")
    with pytest.raises(UserError, match="no such file"):
        packages.obtain([never], [str(tmp_path / "gone" / "thing.tgz")], tmp_path / "empty")


# Sets.


def test_cifar10_has_a_picture_per_row_of_its_sheets(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (6, 2, 1024, 3), np.uint8)
    files = {f"data_batch_{i + 1}.png": picture(rows[i], "PNG") for i in range(5)}
    files |= {"test_batch.png": picture(rows[5], "PNG"), "train_lables.json": json.dumps(list(range(10))).encode()}
    archive = write_tgz(tmp_path / "c.tgz", files | {"test_lables.json": b"[7, 0]"})
    builder = prepared(cifar10_npm.Cifar10Npm, [archive], tmp_path)
    train, test = builder.as_data_source("train"), builder.as_data_source("test")
    assert (len(train), len(test)) == (10, 2)
    by_label = {int(example["label"]): example for example in train}
    for label in range(10):
        np.testing.assert_array_equal(by_label[label]["image"], rows[label // 2, label % 2].reshape(32, 32, 3))
    assert by_label[3]["caption"].decode() == "a photo of a cat"
    assert sorted(int(example["label"]) for example in test) == [0, 7]


def test_fashion_mnist_is_read_from_the_originals_four_files(tmp_path):
    rng, files = np.random.default_rng(0), []
    for prefix, count in (("train", 5), ("t10k", 3)):
        for part, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8)),
        ):
            files.append(tmp_path / f"{prefix}-{part}-ubyte")
            header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            files[-1].write_bytes(header + array.tobytes())
    builder = prepared(fashion_mnist_idx.FashionMnistIdx, files, tmp_path)
    images = fashion_mnist_idx.read_idx(files[0])
    for example in builder.as_data_source("train"):
        np.testing.assert_array_equal(example["image"][..., 0], images[example["label"]])
    assert len(builder.as_data_source("test")) == 3


@pytest.fixture(scope="module")
def emoji_set(tmp_path_factory):
    """Forty concepts, the first with a skin tone, of which each style draws all as a square of its own colour."""
    return draw_emoji(tmp_path_factory.mktemp("emoji"), groups=())


def draw_emoji(folder, groups):
    rows = [{"label": f"thing {i}", "tags": ["one", "two", "three"], "hexcode": code} for i, code in enumerate(CODES)]
    for i, row in enumerate(rows):
        row["group"] = 3 if i % 3 == 0 else 4
    rows[0]["skins"] = [{"label": "thing 0: dark skin tone", "hexcode": f"{CODES[0]}-1F3FF"}]
    archives = [write_tgz(folder / "captions.tgz", {"en/data.json": json.dumps(rows).encode()})]
    drawn = [*CODES, f"{CODES[0]}-1f3ff"]
    for number, style in enumerate(emoji.styles("permissive")):
        square = f'<rect width="16" height="16" fill="rgb({10 * number},0,0)"/>'
        icons = {"icons": {f"icon-{code}": {"body": square} for code in drawn}, "width": 16, "height": 16}
        files = {"icons.json": icons, "chars.json": {code: f"icon-{code}" for code in drawn}}
        files = {name: json.dumps(content).encode() for name, content in files.items()}
        if style.name == "fluent-emoji-3d":
            pixels = np.full((32, 32, 3), [10 * number, 0, 0], np.uint8)
            files = {f"assets/{code}.webp": picture(pixels, "WEBP") for code in drawn}
        archives.append(write_tgz(folder / f"{style.name}.tgz", files))
    builder = prepared(emoji.Emoji, archives, folder, config=emoji.make_config(16, "permissive", groups))
    return {split: list(builder.as_data_source(split)) for split in ("train", "validation", "test")}


def concepts(examples):
    return {example["caption"][0].decode().split(",")[0].split(":")[0] for example in examples}


def test_held_out_concepts_and_the_fluent_styles_are_never_trained_on(emoji_set):
    names = [style.name for style in emoji.STYLES]
    styles = {split: {names[int(example["label"])] for example in examples} for split, examples in emoji_set.items()}
    assert styles["train"] == styles["validation"] == {"noto", "noto-v1", "fxemoji"}
    assert styles["test"] == {"fluent-emoji", "fluent-emoji-flat", "fluent-emoji-3d"}
    assert emoji_set["validation"] and not concepts(emoji_set["train"]) & concepts(emoji_set["validation"])
    assert len(concepts(emoji_set["train"]) | concepts(emoji_set["validation"])) == len(CODES)


def test_groups_leave_out_all_others_and_no_more(emoji_set, tmp_path):
    def told(examples):
        return sorted(example["caption"][0].decode() for example in examples)

    food = draw_emoji(tmp_path, groups=["food"])
    for split, examples in food.items():
        assert told(examples) == [caption for caption in told(emoji_set[split]) if of_food(caption)]
    assert any(told(examples) for examples in food.values())


def of_food(caption):
    return int(re.search(r"thing (\d+)", caption)[1]) % 3 != 0


def test_each_drawing_has_its_styles_colour_and_captions(emoji_set):
    names = [style.name for style in emoji.STYLES]
    number = {style.name: i for i, style in enumerate(emoji.styles("permissive"))}
    for example in sum(emoji_set.values(), []):
        style = emoji.STYLES[int(example["label"])]
        np.testing.assert_array_equal(example["image"], np.full((16, 16, 3), [10 * number[style.name], 0, 0]))
        bare, one, two = [caption.decode() for caption in example["caption"]]
        thing = bare.removesuffix(f", {style.phrase}")
        assert thing.startswith("a thing") and style.name in names
        assert (one, two) == (f"{thing}, one, {style.phrase}", f"{thing}, one, two, {style.phrase}")


def test_licences_leave_out_the_styles_that_they_do_not_cover():
    counts = {name: len(emoji.styles(name)) for name in emoji.LICENCES}
    assert counts == {"permissive": 6, "attribution": 8, "all": 10}
    assert {style.package.licence for style in emoji.styles("permissive")} == {"MIT", "Apache-2.0"}
