"""The commands as a user meets them: train, stop, resume, sample, evaluate, and every mistake in one line."""

import csv
import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs.scenes import get_config
from diffusion_jax import build, images, sampling, scores
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Inputs, Knobs
from diffusion_jax.metrics import caption_checker
from diffusion_jax.training import beginning, checkpoint, run
from diffusion_jax.training.samples import GIVEN

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 300  # seconds, of one start


# A velocity network that has learned nothing gives back the noise: pictures that tell seeds and indices apart.
NOISY = {"parameterization": "velocity", "loss_space": "velocity"}


def tiny_config(data_dir, **train):
    config = get_config("debug")
    config.data.dir = str(data_dir)
    config.diffusion.update(NOISY)
    config.train.update(train)
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A work directory trained straight to step 4, with checkpoints at 2 and 4."""
    workdir = tmp_path_factory.mktemp("trained")
    run.train(tiny_config(data_dir), workdir, time.monotonic())
    return workdir


def request(trained, out, **changes):
    fields = {
        "checkpoint": str(trained),
        "prompts": ("a large red circle on a white background",),
        "labels": (),
        "num_samples": 3,
        "overrides": {},
        "seed": 0,
        "batch_size": 8,
        "out": str(out),
    }
    return sampling.Request(**(fields | changes))


def state_of(workdir, step, config):
    model = sampling.load(str(workdir), {}).model
    optimizer = build.optimizer(config)
    template = jax.eval_shape(lambda: run.init_state(model.network.init, optimizer, config.seed))
    checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir))
    state = checkpoints.restore(step, template)
    checkpoints.close()
    return state


def test_training_writes_what_it_says(trained):
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert Image.open(trained / "samples" / "step_0000004.png").size[0] > 100
    assert list((trained / "tensorboard").iterdir())
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["2", "4"]


def test_a_resumed_run_equals_the_straight_one_bit_for_bit(trained, data_dir, tmp_path):
    run.train(tiny_config(data_dir, num_steps=2), tmp_path, time.monotonic())
    config = tiny_config(data_dir)
    run.train(config, tmp_path, time.monotonic())
    straight, resumed = state_of(trained, 4, config), state_of(tmp_path, 4, config)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    ours, theirs = (list(csv.DictReader((w / "metrics.csv").open())) for w in (trained, tmp_path))
    assert [(row["step"], row["loss"]) for row in ours] == [(row["step"], row["loss"]) for row in theirs]


def test_a_run_tells_what_its_samples_show_of_captions_and_may_cease_to(data_dir, tmp_path, monkeypatch):
    checker = caption_checker.score
    monkeypatch.setattr(caption_checker, "score", lambda x, said: checker(x, said) | {"count": float(np.mean(x))})
    config = tiny_config(data_dir, num_steps=2, evaluate_every_steps=1, log_every_steps=2)
    config.evaluate.num_samples = 3
    run.train(config, tmp_path, time.monotonic())
    one, two = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["step"], row["score_all"] != "") for row in (one, two)] == [("1", True), ("2", True)]
    loaded = sampling.load(str(tmp_path), {})
    scales = [config.sample.guidance_scale]
    told = scores.score_captions(loaded, "validation", 3, scales, (config.seed,), 3)["scores"][
        f"guidance {scales[0]:g}"
    ]
    assert {name: float(two[f"score_{name}"]) for name in told} == pytest.approx(told, rel=1e-3)
    assert one["score_count"] != two["score_count"]
    assert beginning.resume(tiny_config(data_dir), tmp_path)[0] == 2
    config.evaluate.split = "train"
    with pytest.raises(UserError, match="validation or test"):
        run.train(config, tmp_path / "other", time.monotonic())


def test_a_finished_run_started_again_changes_nothing(trained, data_dir, capsys):
    before = (trained / "metrics.csv").read_text()
    run.train(tiny_config(data_dir), trained, time.monotonic())
    assert (trained / "metrics.csv").read_text() == before
    assert "trained to step 4" in capsys.readouterr().out


def test_a_run_of_another_config_is_refused_with_what_changed(trained, data_dir):
    config = tiny_config(data_dir)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer.learning_rate was 0.\d+, now 0.5"):
        run.train(config, trained, time.monotonic())


def test_samples_need_the_checkpoint_alone_and_are_complete(trained, tmp_path, capsys):
    sampling.run(request(trained, tmp_path, prompts=("a small blue ring on a black background", "")))
    record = json.loads((tmp_path / "samples.json").read_text())
    saved = np.load(tmp_path / "samples.npz")
    assert saved["arr_0"].shape == (6, 32, 32, 3)
    assert saved["arr_0"].dtype == np.uint8
    assert [image["condition"] for image in record["images"]] == saved["prompts"].tolist()
    for image in record["images"]:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / image["file"])), saved["arr_0"][image["index"]])
    assert (tmp_path / "grid.png").exists()
    assert record["step"] == 4
    assert "unconditional" in capsys.readouterr().out


def test_a_sample_depends_on_seed_and_index_alone(trained, tmp_path):
    def samples(name, **changes):
        sampling.run(request(trained, tmp_path / name, **changes))
        return np.load(tmp_path / name / "samples.npz")["arr_0"].astype(int)

    base = samples("base", num_samples=5)
    assert np.abs(samples("batch", num_samples=5, batch_size=16) - base).max() <= 1
    assert np.abs(samples("fewer", num_samples=3) - base[:3]).max() <= 1
    assert np.abs(samples("seed", num_samples=5, seed=1) - base).max() > 50
    assert np.abs(base[0] - base[1]).max() > 50


def test_a_sample_does_not_depend_on_the_number_of_devices(trained):
    loaded = sampling.load(str(trained), {})
    made = []
    for name in ("pmap", "single"):
        loaded.model.config.parallel.placement = name
        generate = build.generate(loaded.model, build.placement(loaded.model.config))
        cond = build.prompt_cond(loaded.model, ["a large red circle on a white background"] * 8)
        grid = build.grid(loaded.model)
        made.append(generate(loaded.params, cond, np.arange(8), 0, Knobs(guidance_scale=2.0), grid, 8).astype(int))
    assert np.abs(made[0] - made[1]).max() <= 1


def test_changing_guidance_seed_and_prompt_compiles_nothing_new(trained):
    loaded = sampling.load(str(trained), {})
    generate, grid = build.generate(loaded.model, build.placement(loaded.model.config)), build.grid(loaded.model)

    def make(prompt, seed, scale, progress=None):
        cond = build.prompt_cond(loaded.model, [prompt] * 8)
        return generate(loaded.params, cond, np.arange(8), seed, Knobs(guidance_scale=scale), grid, 8, progress)

    first = make("a small red star on a grey background", 0, 1.0)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr("jax._src.compiler.backend_compile_and_load", lambda *args, **kwargs: compiled.append(args))
        second = make("a large blue ring on a white background", 1, 4.0)
        third = make("a large blue ring on a white background", 1, 4.0, progress=lambda steps: None)
    assert not compiled
    assert (first != second).any()
    np.testing.assert_array_equal(second, third)


@pytest.mark.parametrize("edit", ["none", "replace", "repaint", "product"])
def test_changing_an_edit_and_every_knob_compiles_nothing_new(trained, edit):
    loaded = sampling.load(str(trained), {"guidance_high": 0.9, "num_steps": 4})
    model = loaded.model
    generate, grid = build.generate(model, build.placement(model.config), edit), build.grid(model)
    rng = np.random.default_rng(0)

    def make(seed, begin, knobs, negative):
        picture = rng.uniform(-1, 1, (8, *model.image_shape)).astype(np.float32)
        mask = rng.uniform(size=(8, *model.image_shape[:2], 1)) < 0.5
        null = jax.tree.map(lambda leaf: leaf[0], build.prompt_cond(model, [negative]))
        inputs = Inputs(null_cond=null, picture=picture, mask=mask, begin=begin)
        cond = build.prompt_cond(model, [f"a large red star {seed}"] * 8)
        return generate(loaded.params, cond, np.arange(8), seed, knobs, grid, 8, inputs=inputs), picture, mask

    make(0, 1, Knobs(), "")
    with pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr("jax._src.compiler.backend_compile_and_load", lambda *args, **kwargs: compiled.append(args))
        made, picture, mask = make(1, 3, Knobs(3.0, 0.2, 0.8, 0.5, 0.3, 2.0, 0.9, 0.2, 0.997), "a blue ring")
    assert not compiled
    if edit in ("replace", "repaint"):
        known = np.broadcast_to(mask, picture.shape)
        np.testing.assert_array_equal(made[known], images.to_uint8(picture)[known])


def test_earlier_samples_are_not_overwritten_unasked(trained, tmp_path):
    sampling.run(request(trained, tmp_path, num_samples=2))
    with pytest.raises(UserError, match="--overwrite"):
        sampling.run(request(trained, tmp_path, num_samples=1))
    sampling.run(request(trained, tmp_path, num_samples=1, overwrite=True))
    assert not (tmp_path / "000001.png").exists()


def test_prompts_that_the_model_cannot_follow_are_remarked_on(trained, tmp_path, capsys):
    sampling.run(
        request(trained, tmp_path, prompts=("", " ".join(["red"] * 300), "ein rötlicher Kreis"), num_samples=1)
    )
    out = capsys.readouterr().out
    assert "an empty prompt gives unconditional samples" in out
    assert "has 300 tokens and this model reads 16" in out
    assert "byte by byte" in out


def mistakes(trained, tmp_path):
    """(name, request's changes, what the message must say)."""
    return [
        ({"checkpoint": str(tmp_path / "nowhere")}, "no such directory"),
        ({"checkpoint": str(tmp_path)}, "holds no checkpoint"),
        ({"checkpoint": str(trained / "checkpoints" / "3")}, "no such directory"),
        ({"overrides": {"sampler": "dimm"}}, "unknown sampler 'dimm'. Did you mean ddim"),
        ({"labels": (1,)}, "takes no --label"),
        ({"out": str(trained / "metrics.csv" / "x")}, "cannot write to --out"),
    ]


@pytest.mark.parametrize("which", range(6))
def test_a_mistake_in_sampling_is_told_in_one_line(trained, tmp_path, which):
    changes, message = mistakes(trained, tmp_path)[which]
    with pytest.raises(UserError) as error:
        sampling.run(request(trained, **({"out": tmp_path / "out"} | changes)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["truncate", "delete", "config"])
def test_a_damaged_checkpoint_is_named_with_the_way_out_and_skipped_where_none_is_asked_for(
    trained, tmp_path, damage, capsys
):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    step = workdir / "checkpoints" / "4"
    data = [p for p in step.rglob("*") if p.is_file() and "/d/" in str(p)]
    if damage == "truncate":
        for path in data:
            path.write_bytes(path.read_bytes()[:100])
    elif damage == "delete":
        shutil.rmtree(step / "ema")
    else:
        (step / "config" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"4 is damaged.*checkpoints/2") as error:
        sampling.run(request(step, tmp_path / "out"))
    assert "\n" not in str(error.value)
    sampling.run(request(workdir, tmp_path / "out"))
    assert f"{step} is damaged" in (told := capsys.readouterr()).err
    assert "step 2 of" in told.out


def test_a_checkpoint_of_other_shapes_lists_them(trained, data_dir, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    path = workdir / "checkpoints" / "4" / "config" / "metadata"
    saved = json.loads(path.read_text())
    saved["text"]["width"] = 32
    path.write_text(json.dumps(saved))
    shutil.rmtree(workdir / "checkpoints" / "4" / "checksums")  # which would find the config altered
    with pytest.raises(UserError, match=r"does not fit this model.*is wanted"):
        sampling.load(str(workdir), {})


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(trained, data_dir, tmp_path, monkeypatch):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(UserError, match=r"full; the last whole checkpoint is step 4.*run the same command again"):
        run.train(tiny_config(data_dir, num_steps=6), workdir, time.monotonic())
    monkeypatch.undo()
    run.train(tiny_config(data_dir, num_steps=5), workdir, time.monotonic())
    assert checkpoint.find(str(workdir))[1] == 5


def command(*words, **changes):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | changes
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["train.py", "--config=configs/scenes.py", "--workdir=x", "--config.train.batchsize=3"], "config.train.batch_size"),
        (["train.py", "--config=configs/scenes.py", "--workdir=x", "--config.trian.batch_size=3"], "config.train.batch_size"),
        (["train.py", "--config=configs/scenes.py", "--workdir=x", "--config.train.batch_size=many"], "batch_size=many"),
        (["train.py", "--config=configs/scenes.py:huge", "--workdir=x"], "variants"),
        (["train.py", "--config=configs/nothing.py", "--workdir=x"], "no such config"),
        (["train.py", "--config=configs/scenes.py"], "--workdir"),
        (["sample.py", "--checkpoint=x", "--promt=a"], "prompt"),
        (["sample.py", "--checkpoint=x", "--num_samples=0"], "num_samples"),
        (["sample.py", "--checkpoint=x", "a red circle"], "unexpected argument"),
        (["sample.py", "--checkpoint=x", "--prompts_file=nothing.txt"], "cannot read nothing.txt"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_told_without_a_traceback(words, message):
    process = command(*words)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(trained, data_dir, tmp_path, number):
    words = ["train.py", "--config=configs/scenes.py:debug", f"--workdir={tmp_path}", f"--config.data.dir={data_dir}"]
    words += [f"--config.diffusion.{name}={value}" for name, value in NOISY.items()]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    process = command(*words, "--config.train.num_steps=100000", "--config.train.sample_every_steps=100000", **cache)
    deadline = time.monotonic() + TIMEOUT
    while not list(tmp_path.glob("checkpoints/2*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + number, err
    assert f"{signal.Signals(number).name}: saved step" in out
    step = checkpoint.find(str(tmp_path))[1]
    config = tiny_config(data_dir, num_steps=step + 2, sample_every_steps=100000)
    run.train(config, tmp_path, time.monotonic())
    assert checkpoint.find(str(tmp_path))[1] == step + 2


def trained_briefly(tmp_path, data_dir, name):
    config = importlib.import_module(f"configs.{name}").get_config("debug")
    config.data.dir = str(data_dir)
    config.parallel.placement = "single"
    config.train.update(num_steps=2, sample_every_steps=2)
    run.train(config, tmp_path / "run", time.monotonic())
    assert checkpoint.find(str(tmp_path / "run"))[1] == 2
    return config, list((tmp_path / "run").glob("samples/*"))


def test_a_classifier_trains_and_shows_no_pictures(tmp_path, data_dir):
    assert not trained_briefly(tmp_path, data_dir, "adm_classifier_64")[1]


def test_an_upsampler_shows_pictures_of_the_data_set_enlarged(tmp_path, data_dir):
    config, [picture] = trained_briefly(tmp_path, data_dir, "adm_upsampler_64_256")
    given, made, real = rows_of(picture)
    cells = given.reshape(GIVEN, 16, 6, 16, 6, 3)
    assert (cells == cells[:, :, :1, :, :1]).all()  # 16 pixels enlarged, drawn three times as large
    source = build.source(config)
    for i in range(GIVEN):
        np.testing.assert_array_equal(real[i, ::3, ::3], source[i]["image"])
        means = source[i]["image"].reshape(16, 2, 16, 2, 3).mean((1, 3))
        assert np.abs(given[i, ::6, ::6] - means).max() <= 0.5 + 1e-4
    assert (made != real).any()


def test_an_inpainting_model_shows_pictures_of_the_data_set_repainted(tmp_path, data_dir):
    _, [picture] = trained_briefly(tmp_path, data_dir, "glide_base_inpaint")
    given, made, real = rows_of(picture)
    hidden = (given == 127).all(-1)
    assert 0.05 < hidden.mean() < 1
    np.testing.assert_array_equal(made[~hidden], real[~hidden])
    np.testing.assert_array_equal(given[~hidden], real[~hidden])
    assert (made[hidden] != real[hidden]).mean() > 0.5


def rows_of(picture):
    """The tiles of a labelled grid of three rows of pictures of 32 pixels, [8, 96, 96, 3] each."""
    drawn = np.asarray(Image.open(picture)).astype(int)
    tops = [24 + 120 * row for row in range(3)]
    return [np.stack([drawn[top : top + 96, 4 + 100 * i : 100 + 100 * i] for i in range(GIVEN)]) for top in tops]
