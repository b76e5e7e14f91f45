"""Files of weights: PyTorch's own, read without it; hostile and broken ones; safetensors."""

import io
import os
import pathlib
import pickle
import shutil
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.errors import UserError
from diffusion_jax.interop import files

TORCH_FILES = pathlib.Path(__file__).parents[1] / "golden" / "torch_files"
VALUES = dict(np.load(TORCH_FILES / "values.npz"))
TENSORS = [name for name in VALUES if not name.startswith("module.")]
MODULE = [name.removeprefix("module.") for name in VALUES if name.startswith("module.")]
LEGACY_HEAD = b"".join(
    pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as error:
        files.read(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def torch_zip(path, data_pkl, script=False):
    """A file as torch.save or torch.jit.save lays it out, with any pickle in it and one storage of four float32 numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        if script:
            archive.writestr("archive/constants.pkl", b"\x80\x02).")
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    return path


# What torch.save made.


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt"])
def test_every_type_and_view_is_as_torch_reads_it(file, name):
    array, wanted = files.read(TORCH_FILES / file)[name], VALUES[name]
    if name == "bfloat16":
        assert array.dtype == ml_dtypes.bfloat16
        array = array.view(np.int16)
    assert array.dtype == wanted.dtype
    assert array.shape == wanted.shape
    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt"])
def test_names_come_in_the_order_of_the_file(file):
    assert list(files.read(TORCH_FILES / file)) == TENSORS


@pytest.mark.parametrize("file", ["module_zip.pth", "module_legacy.pth", "wrapped.pt"])
def test_a_state_dict_and_its_wrapper_are_opened(file):
    weights = files.read(TORCH_FILES / file)
    assert list(weights) == MODULE
    for name, array in weights.items():
        np.testing.assert_array_equal(array, VALUES[f"module.{name}"])


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("two_models.pt", "several dicts of tensors; its entries: 'model', 'ema'"),
        ("optimizer.pt", "no dict of tensors alone; its entries: 'state', 'param_groups'"),
        ("whole_module.pt", "asks for 'torch.nn.modules.container.Sequential'"),
    ],
)
def test_what_is_no_single_state_dict_is_refused_by_what_it_is(file, words):
    text = refusal(TORCH_FILES / file)
    assert words in text
    assert "torch.save(model.state_dict(), PATH)" in text


def test_of_a_torchscript_program_the_tensors_are_read():
    weights = files.read(TORCH_FILES / "torchscript.pt")
    values = np.load(TORCH_FILES / "torchscript.npz")
    assert sorted(weights) == sorted(values)
    for name, array in weights.items():
        assert array.dtype == values[name].dtype
        np.testing.assert_array_equal(array, values[name])


def test_modules_that_hold_themselves_are_refused(tmp_path):
    """A module is memo 0; its attribute "a" is itself. And forty in each other, each twice: 2^40 names."""
    module = b"c__torch__\nM\n)\x81"
    itself = b"\x80\x02" + module + b"q\x00}X\x01\x00\x00\x00ah\x00sb."
    assert "damaged" in refusal(torch_zip(tmp_path / "itself.pt", itself, script=True))
    twice = b"\x80\x02" + module + b"q\x00"
    for i in range(40):
        twice += module + b"}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cubq%c" % (i, i, i + 1)
    assert "damaged" in refusal(torch_zip(tmp_path / "twice.pt", twice + b".", script=True))


def test_an_array_is_read_when_it_is_asked_for(tmp_path):
    path = shutil.copy(TORCH_FILES / "zip.pt", tmp_path / "moved.pt")
    weights = files.read(path)
    weights["float32"][:] = 0
    np.testing.assert_array_equal(weights["float32"], VALUES["float32"])
    pathlib.Path(path).unlink()
    assert "float32" in weights
    assert "float33" not in weights
    assert len(weights) == len(TENSORS)
    with pytest.raises(UserError, match="cannot read"):
        weights["float32"]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_reading_all_needs_the_arrays_and_no_second_copy(kind, tmp_path):
    path = tmp_path / f"large.{kind}"
    count, size = 16, 1 << 18
    if kind == "safetensors":
        files.write_safetensors({str(i): np.full(size, i, np.float32) for i in range(count)}, path)
    else:
        refs = [
            Global("torch._utils", "_rebuild_tensor_v2", (Pid(i, size), 0, (size,), (1,), False, {}))
            for i in range(count)
        ]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("large/data.pkl", dumps({str(i): ref for i, ref in enumerate(refs)}))
            for i in range(count):
                archive.writestr(f"large/data/{i}", np.full(size, i, np.float32).tobytes())
    tracemalloc.start()
    try:
        arrays = dict(files.read(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [array[-1] for array in arrays.values()] == [int(name) for name in arrays]
    assert peak < 1.2 * count * size * 4


# Hostile pickles. `Global` is pickled as a call of a named function, `Pid` as torch's reference to a storage.


class Global:
    def __init__(self, module, name, args=None, state=None):
        self.module, self.name, self.args, self.state = module, name, args, state


class Pid:
    def __init__(self, key, size, storage="FloatStorage"):
        self.pid = ("storage", Global("torch", storage), str(key), "cpu", size)


class _Pickler(pickle._Pickler):
    """Python's own pickler, taught to write names that are not installed here."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Pid) else None

    def save(self, obj, *args, **kwargs):
        if not isinstance(obj, Global):
            return super().save(obj, *args, **kwargs)
        if self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        if obj.args is not None:
            self.save(obj.args)
            self.write(pickle.REDUCE)
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)


def dumps(obj, protocol=2):
    file = io.BytesIO()
    _Pickler(file, protocol).dump(obj)
    return file.getvalue()


def tensor(**changes):
    parts = {
        "storage": Pid(0, 4),
        "offset": 0,
        "shape": (2, 2),
        "strides": (2, 1),
        "grad": False,
        "hooks": {},
    } | changes
    return Global("torch._utils", "_rebuild_tensor_v2", tuple(parts.values()))


SYSTEM = ("touch HACKED",)
GETATTR = Global("builtins", "getattr", (Global("collections", "OrderedDict"), "__init__"))
HOSTILE = {
    "os.system": Global("os", "system", SYSTEM),
    "posix.system": Global("posix", "system", SYSTEM),
    "subprocess": Global("subprocess", "Popen", (["touch", "HACKED"],)),
    "eval": Global("builtins", "eval", ("open('HACKED', 'w')",)),
    "exec of Python 2": Global("__builtin__", "exec", ("open('HACKED', 'w')",)),
    "a chain of getattr": Global("builtins", "getattr", (GETATTR, "__globals__")),
    "operator.attrgetter": Global("operator", "attrgetter", ("__globals__",)),
    "a name with dots": Global("collections", "OrderedDict.fromkeys", ("ab",)),
    "attributes of the module": Global("torch._utils", "_rebuild_tensor_v2.__globals__"),
    "another function beside": Global("torch._utils", "_import_dotted_name", ("os.system",)),
    "another class beside": Global("collections", "defaultdict", (Global("os", "getcwd"),)),
    "torch.load": Global("torch", "load", ("HACKED",)),
    "numpy": Global("numpy", "load", ("HACKED",)),
    "our own package": Global("diffusion_jax.interop.files", "write_safetensors", ({}, "HACKED")),
    "pickle in pickle": Global("pickle", "loads", (pickle.dumps(1),)),
}
NESTED = {
    "as it is": lambda call: call,
    "under a name": lambda call: {"weight": call},
    "beside tensors": lambda call: {"weight": tensor(), "bias": call},
    "as a tensor's shape": lambda call: {"weight": tensor(shape=call)},
    "as a storage's size": lambda call: {"weight": tensor(storage=Pid(0, call))},
    "in a parameter": lambda call: {"weight": Global("torch._utils", "_rebuild_parameter", (call, True, {}))},
    "as an argument of OrderedDict": lambda call: Global("collections", "OrderedDict", ([("weight", call)],)),
    "as the state of OrderedDict": lambda call: Global("collections", "OrderedDict", (), {"_metadata": call}),
    "in a call's result": lambda call: Global("collections", "OrderedDict", (Global("builtins", "zip", (call, call)),)),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", ["zip", "script", "legacy", "plain"])
@pytest.mark.parametrize("place", NESTED)
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(place, container, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, call in HOSTILE.items():
        data = dumps(NESTED[place](call), protocol)
        path = tmp_path / "hostile.pt"
        if container in ("zip", "script"):
            torch_zip(path, data, container == "script")
        else:
            path.write_bytes((LEGACY_HEAD if container == "legacy" else b"") + data)
        text = refusal(path)
        assert "is refused, nothing of it was run: it asks for" in text, name
        assert os.listdir(tmp_path) == ["hostile.pt"], name


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02(S'touch HACKED'\nios\nsystem\n.",  # INST
        b"\x80\x02(cos\nsystem\nS'touch HACKED'\no.",  # OBJ
        b"\x80\x02cos\nsystem\nS'touch HACKED'\n\x85\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1, a code of the registry of extensions
    ],
)
@pytest.mark.parametrize("script", [False, True])
def test_other_ways_to_name_a_function_are_refused(data, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(torch_zip(tmp_path / "hostile.pt", data, script))
    assert os.listdir(tmp_path) == ["hostile.pt"]


@pytest.mark.parametrize("name", ["collections.OrderedDict", "torch._utils._rebuild_tensor_v2"])
@pytest.mark.parametrize("state", [{"__call__": 1}, (None, {"__call__": 1, "__init__": 2, "__defaults__": (1,)})])
def test_a_pickle_cannot_alter_the_reader(name, state, tmp_path):
    module, _, function = name.rpartition(".")
    refusal(torch_zip(tmp_path / "hostile.pt", dumps({"a": Global(module, function, None, state), "b": tensor()})))
    good = files.read(
        torch_zip(tmp_path / "good.pt", dumps(Global("collections", "OrderedDict", ([["b", tensor()]],))))
    )
    np.testing.assert_array_equal(good["b"], [[0, 1], [2, 3]])


def test_attributes_of_a_state_dict_are_not_believed(tmp_path):
    state = Global("collections", "OrderedDict", ([["b", tensor()]],), {"items": 1, "__class__": 2, "values": 3})
    assert list(files.read(torch_zip(tmp_path / "odd.pt", dumps(state)))) == ["b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1},
        {"offset": -1},
        {"shape": (3, 2)},
        {"strides": (2, 2)},
        {"strides": (1,)},
        {"strides": (-2, 1)},
        {"shape": (2, "2")},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (1,) * 33, "strides": (1,) * 33},
        {"storage": Pid(0, 8)},
        {"storage": Pid(1, 4)},
        {"storage": Pid(0, 4, "DoubleStorage")},
        {"storage": "FloatStorage"},
        {"metadata": {"conj": True}},
    ],
)
def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(changes, tmp_path):
    assert "damaged" in refusal(torch_zip(tmp_path / "odd.pt", dumps({"b": tensor(**changes)})))


# Broken files.


@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt", "torchscript.pt", "values.safetensors"])
def test_a_file_cut_anywhere_is_refused(file, tmp_path):
    if file.endswith("safetensors"):
        files.write_safetensors(VALUES, tmp_path / file)
        whole = (tmp_path / file).read_bytes()
    else:
        whole = (TORCH_FILES / file).read_bytes()
    path = tmp_path / f"cut_{file}"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt", "torchscript.pt"])
def test_changed_bytes_give_arrays_or_a_refusal_and_no_other_error(file, tmp_path):
    whole, path, rng = (TORCH_FILES / file).read_bytes(), tmp_path / file, np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            dict(files.read(path))
        except UserError:
            refused += 1
    assert 100 < refused < 400


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        (b"\xef\xbb\xbf \n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"\0" * 257 + b"ustar\0" + b"\0" * 300, "tar archive"),
        (b"just text", "neither safetensors nor"),
        (b"\x80", "damaged"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (LEGACY_HEAD + pickle.dumps([1, 2], 2) + pickle.dumps([], 2), "holds a list"),
        (LEGACY_HEAD[:-1], "damaged"),
        (struct.pack("<Q", 9) + b"{not json", "damaged"),
        (struct.pack("<Q", 2**60) + b"{}", "damaged"),
    ],
)
def test_a_wrong_file_is_told_by_what_it_is(content, words, tmp_path):
    path = tmp_path / "base.pt"
    path.write_bytes(content)
    assert words in refusal(path)


def test_other_zip_archives_are_told_apart(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    assert "torch.save did not write" in refusal(tmp_path / "arrays.npz")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dumps({"b": tensor()}))
    assert "zip -0" in refusal(tmp_path / "packed.pt")
    with zipfile.ZipFile(tmp_path / "big.pt", "w") as archive:
        archive.writestr("archive/data.pkl", dumps({"b": tensor()}))
        archive.writestr("archive/byteorder", "big")
    assert "byte order" in refusal(tmp_path / "big.pt")


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.pt")
    assert "directory" in refusal(tmp_path)


# safetensors.


def test_safetensors_round_trip_is_exact_whatever_the_strides(tmp_path):
    arrays = {name: np.asarray(value) for name, value in VALUES.items() if value.dtype.kind != "c"}
    arrays["transposed again"] = np.arange(6.0).reshape(2, 3).T
    arrays["every second"] = np.arange(6, dtype=np.int16)[::2]
    arrays["bfloat16"] = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
    files.write_safetensors(arrays, tmp_path / "weights.safetensors")
    assert os.listdir(tmp_path) == ["weights.safetensors"]
    for back in (
        files.read(tmp_path / "weights.safetensors"),
        safetensors.numpy.load_file(tmp_path / "weights.safetensors"),
    ):
        assert set(back) == set(arrays)
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype
            assert back[name].shape == array.shape
            np.testing.assert_array_equal(back[name], array)


def test_what_a_torch_file_holds_can_be_written(tmp_path):
    weights = files.read(TORCH_FILES / "zip.pt")
    files.write_safetensors({name: weights[name] for name in TENSORS if name != "complex64"}, tmp_path / "a")
    again = files.read(tmp_path / "a")
    np.testing.assert_array_equal(again["transposed"], VALUES["float32"].T)
    np.testing.assert_array_equal(again["expanded"], VALUES["expanded"])


def test_a_safetensors_file_knows_its_names_without_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_REOPEN_BYTES", 0)
    files.write_safetensors({"a": np.arange(2), "b": np.arange(3)}, tmp_path / "a.safetensors")
    weights = files.read(tmp_path / "a.safetensors")
    with pytest.raises(KeyError):
        weights["c"]
    np.testing.assert_array_equal(weights["a"], [0, 1])
    np.testing.assert_array_equal(weights["b"], [0, 1, 2])
    (tmp_path / "a.safetensors").unlink()
    assert "a" in weights
    assert len(weights) == 2
    with pytest.raises(UserError, match="cannot read"):
        weights["a"]


@pytest.mark.parametrize("first", [0x80, 0x50])
def test_a_safetensors_file_is_told_whatever_byte_its_headers_length_begins_with(first, tmp_path):
    """A pickle begins with 0x80, a zip archive with 0x50: so do 2 in 32 lengths, which are multiples of 8."""
    for length in range(256):
        safetensors.numpy.save_file({"w" * (1 + length): np.arange(3.0)}, tmp_path / "w.safetensors")
        if (tmp_path / "w.safetensors").read_bytes()[0] == first:
            break
    else:
        pytest.fail("no header of such a length")
    np.testing.assert_array_equal(files.read(tmp_path / "w.safetensors")["w" * (1 + length)], np.arange(3.0))


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        files.write_safetensors({"a": np.zeros(2)}, tmp_path / "none" / "a.safetensors")
