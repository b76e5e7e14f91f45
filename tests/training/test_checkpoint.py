"""Checkpoints: whatever is not what was saved is found and named, and any number of devices goes on from any other."""

import functools
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint
from diffusion_jax.training.checkpoint import Checkpoints, Damaged
from diffusion_jax.training.step import TrainState, init_state

ROOT = pathlib.Path(__file__).parents[2]
OPTIMIZER = optax.adam(1e-3)
CONFIG = {"model": {"width": 64, "mults": (1, 2)}, "seed": 0}
TOKENIZER = '{"merges": ["a b"]}'


def init(key):
    return {"dense": {"kernel": jax.random.normal(key, (64, 128)), "bias": jnp.linspace(0, 1, 128)}}


def make_state(step):
    state = init_state(init, OPTIMIZER, seed=step)
    return state._replace(step=jnp.int32(step), ema_params=jax.tree.map(lambda x: x + 1, state.params))


def template():
    return jax.eval_shape(functools.partial(init_state, init, OPTIMIZER, 0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A work directory with steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    for step in (2, 4):
        checkpoints.save(make_state(step), CONFIG, TOKENIZER)
    checkpoints.close()
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def opened(copy):
    checkpoints = Checkpoints(copy)
    yield checkpoints
    checkpoints.close()


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)))


def data_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(workdir, step):
    """Changes one array in its file, as a failing disk would."""
    largest = max(data_files(workdir / "checkpoints" / str(step) / "ema"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_a_state_comes_back_bit_for_bit(opened):
    for step in (2, 4):
        assert equal(opened.restore(step, template()), make_state(step))


def sharded_over(count):
    """Shardings of a state whose matrices are split over devices."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("fsdp",))
    wide = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    return jax.tree.map(lambda x: wide if x.ndim == 2 else NamedSharding(mesh, PartitionSpec()), template())


@pytest.mark.parametrize("devices", [1, 8])
def test_a_save_keeps_what_the_state_was_though_its_buffers_are_donated(tmp_path, devices):
    checkpoints, state, wanted = Checkpoints(tmp_path), make_state(1), jax.device_get(make_state(1))
    state = jax.device_put(state, sharded_over(devices))
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints.save(state, CONFIG, None)
    for _ in range(5):
        state = advance(state)
    checkpoints.wait()
    assert equal(checkpoints.restore(1, template()), wanted)
    checkpoints.close()


def test_a_write_that_fails_in_the_background_is_told_by_the_next_call_and_once(opened, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        opened.save(make_state(6), CONFIG, None)
        with pytest.raises(UserError, match="last whole checkpoint is step 4"), opened.full_disk_told():
            opened.wait()
    opened.save(make_state(6), CONFIG, None)
    opened.wait()
    assert opened.latest() == 6


@pytest.mark.parametrize("devices", [1, 8])
def test_a_save_waits_for_nothing_that_is_done_before_orbax_writes(tmp_path, monkeypatch, devices):
    checkpoints, begun, go_on, orbax = (
        Checkpoints(tmp_path),
        threading.Event(),
        threading.Event(),
        ocp.CheckpointManager.save,
    )

    def slow(*args, **kwargs):
        begun.set()
        assert go_on.wait(60)
        return orbax(*args, **kwargs)

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", slow)
    checkpoints.save(jax.device_put(make_state(1), sharded_over(devices)), CONFIG, None)
    assert begun.wait(60), "it is under way, and the call has returned"
    go_on.set()
    checkpoints.close()
    assert checkpoint.find(str(tmp_path))[1] == 1


@pytest.mark.parametrize("first, then", [(8, 1), (8, 2), (8, 4), (1, 8), (4, 2)])
def test_a_state_saved_in_shards_goes_on_on_another_number_of_devices(tmp_path, first, then):
    state = jax.device_put(make_state(3), sharded_over(first))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, CONFIG, None)
    checkpoints.wait()
    restored = checkpoints.restore(3, template(), sharded_over(then))
    checkpoints.close()
    assert equal(restored, state)
    assert restored.params["dense"]["kernel"].sharding == sharded_over(then).params["dense"]["kernel"]
    assert restored.step.sharding.num_devices == then


def test_every_flipped_byte_in_any_file_is_found_or_changes_nothing(opened, copy):
    files, rng, found = data_files(copy / "checkpoints" / "4"), np.random.default_rng(0), 0
    sizes = np.array([path.stat().st_size for path in files], float)
    wanted = make_state(4)
    for path in rng.choice(files, 60, p=sizes / sizes.sum()):
        whole = path.read_bytes()
        torn = bytearray(whole)
        torn[rng.integers(len(torn))] ^= np.uint8(1 << rng.integers(8))
        path.write_bytes(torn)
        try:
            config, tokenizer = checkpoint.read_texts(copy, 4)
            assert (config, tokenizer) == (json.loads(json.dumps(CONFIG)), TOKENIZER)
            assert equal(opened.restore(4, template()), wanted)
        except Damaged:
            found += 1
        path.write_bytes(whole)
    assert found > 20


@pytest.mark.parametrize("how", ["empty", "halved", "deleted"])
def test_every_torn_file_is_found_or_changes_nothing(opened, copy, how):
    found = set()
    for path in data_files(copy / "checkpoints" / "4"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if how == "halved" else b"")
        if how == "deleted":
            path.unlink()
        try:
            checkpoint.read_texts(copy, 4)
            assert equal(opened.restore(4, template()), make_state(4))
        except Damaged:
            found.add(path.parent.name)
        path.write_bytes(whole)
    assert found >= {"state", "ema", "d", "config", "tokenizer"}


@pytest.mark.parametrize(
    "item, message",
    [("config", "config is not what was saved"), ("tokenizer", "tokenizer is not"), ("checksums", "checksums are not")],
)
def test_an_altered_text_is_named(copy, item, message):
    path = copy / "checkpoints" / "4" / item / "metadata"
    path.write_text(path.read_text().replace("64" if item == "config" else "a", "0", 1))
    with pytest.raises(Damaged, match=message) as error:
        checkpoint.read_texts(copy, 4)
    assert "\n" not in str(error.value)


def test_an_altered_array_is_named_with_the_way_out(opened, copy):
    damage(copy, 4)
    with pytest.raises(Damaged, match=r"4 is damaged.*\(ema/dense/kernel is not what was saved\).*step 2") as error:
        opened.restore(4, template())
    assert "\n" not in str(error.value)


def test_an_altered_list_of_arrays_is_damage_and_not_another_model(opened, copy):
    path = copy / "checkpoints" / "4" / "ema" / "_METADATA"
    index = json.loads(path.read_text())
    del index["tree_metadata"]["('dense', 'bias')"]
    path.write_text(json.dumps(index))
    with pytest.raises(Damaged, match="list of arrays in ema"):
        opened.restore(4, template())


def test_training_skips_a_damaged_checkpoint_and_its_step_can_be_saved_again(opened, copy, capfd):
    for again in ("4.damaged", "4.damaged.2"):
        damage(copy, 4)
        assert equal(opened.restore_newest(4, template()), make_state(2))
        told = capfd.readouterr().err
        assert "4 is damaged (ema/dense/kernel is not what was saved): skipped for step 2" in told
        assert f"is now {again}" in told
        assert opened.latest() == 2
        opened.save(make_state(4), CONFIG, TOKENIZER)
        opened.wait()
        assert equal(opened.restore_newest(4, template()), make_state(4))
        assert (copy / "checkpoints" / again / "ema").is_dir()
    assert capfd.readouterr().err == ""


def test_where_all_are_damaged_nothing_is_set_aside(opened, copy):
    damage(copy, 2)
    damage(copy, 4)
    with pytest.raises(UserError, match=r"every checkpoint.*step 4: ema.*step 2: ema.*train again"):
        opened.restore_newest(4, template())
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["2", "4"]


def test_sampling_takes_the_newest_whole_checkpoint_unless_a_step_is_named(copy, capfd):
    def read(workdir, step):
        return step, checkpoint.read_ema(workdir, step, template().ema_params)

    assert checkpoint.read_newest(str(copy), read)[0] == 4
    damage(copy, 4)
    step, ema = checkpoint.read_newest(str(copy), read)
    assert step == 2
    assert equal(ema, make_state(2).ema_params)
    assert "4 is damaged (ema/dense/kernel is not what was saved): skipped for step 2" in capfd.readouterr().err
    with pytest.raises(Damaged, match="4 is damaged"):
        checkpoint.read_newest(f"{copy}/checkpoints/4", read)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["2", "4"], "sampling renames nothing"


def test_weights_that_were_converted_carry_checksums_too(tmp_path):
    params = make_state(0).params
    checkpoint.write_weights(tmp_path, params, CONFIG, None)
    assert equal(checkpoint.read_ema(tmp_path, 0, template().params), params)
    damage(tmp_path, 0)
    with pytest.raises(Damaged, match="no other checkpoint"):
        checkpoint.read_ema(tmp_path, 0, template().params)


def test_a_checkpoint_from_before_there_were_checksums_restores(opened, copy):
    shutil.rmtree(copy / "checkpoints" / "4" / "checksums")
    assert checkpoint.read_texts(copy, 4)[1] == TOKENIZER
    assert equal(opened.restore(4, template()), make_state(4))


def test_a_field_of_the_state_that_came_after_the_checkpoint_begins_at_its_default(tmp_path, monkeypatch):
    later = {name: value for name, value in TrainState._field_defaults.items() if value != ()}
    checkpoints, whole = Checkpoints(tmp_path), checkpoint._without_ema
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_without_ema", lambda s: {k: v for k, v in whole(s).items() if k not in later})
        checkpoints.save(make_state(4), CONFIG, None)
        checkpoints.wait()
    restored = checkpoints.restore(4, template())
    checkpoints.close()
    assert later.keys() == {"guard"}
    assert equal(restored, make_state(4))
    assert isinstance(restored.guard.skipped, jax.Array)


PROCESS = """
import sys, time, pathlib
import jax, numpy as np, jax.numpy as jnp
address, index, workdir = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(address, 2, index, heartbeat_timeout_seconds=20)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.training.test_checkpoint import CONFIG, Checkpoints, make_state, template

mesh = Mesh(np.array(jax.devices()), ("fsdp",))
wide = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
places = jax.tree.map(lambda x: wide if x.ndim == 2 else NamedSharding(mesh, PartitionSpec()), template())
checkpoints = Checkpoints(workdir)

def own(tree):
    return [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(tree)]

if sys.argv[4] == "save":
    for step in (2, 4):
        checkpoints.save(jax.device_put(make_state(step), places), CONFIG, None)
    checkpoints.wait()
    print("RESULT", checkpoints.latest())
else:
    state = checkpoints.restore_newest(4, template(), places)
    same = all(map(np.array_equal, own(state), own(jax.device_put(make_state(2), places))))
    checkpoints.save(jax.device_put(make_state(4), places), CONFIG, None)
    checkpoints.wait()
    print("RESULT", int(state.step), same, checkpoints.latest())
checkpoints.close()
"""


def run_two_processes(workdir, what):
    """What each of two processes of two devices prints after RESULT."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(workdir)}
    words = [[sys.executable, "-c", PROCESS, address, str(i), str(workdir), what] for i in range(2)]
    running = [
        subprocess.Popen(line, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for line in words
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    results = [[line for line in out.splitlines() if line.startswith("RESULT")] for out, _ in outputs]
    assert all(results), outputs
    return [lines[0].split()[1:] for lines in results], [err for _, err in outputs]


def test_two_processes_save_one_checkpoint_and_agree_on_what_is_damaged(tmp_path):
    results, _ = run_two_processes(tmp_path, "save")
    assert results == [["4"], ["4"]]
    checkpoints = Checkpoints(tmp_path)
    assert equal(checkpoints.restore(4, template()), make_state(4)), "one process goes on from what two saved"
    checkpoints.close()
    for path in data_files(tmp_path / "checkpoints" / "4" / "ema"):
        if "ocdbt.process_1" in str(path) and "/d/" in str(path):  # of the second process's arrays alone
            path.write_bytes(b"")
    results, errors = run_two_processes(tmp_path, "restore")
    assert results == [["2", "True", "4"]] * 2
    assert "skipped for step 2" in errors[0]
    assert "skipped for step 2" not in errors[1]
    assert (tmp_path / "checkpoints" / "4.damaged").is_dir()
