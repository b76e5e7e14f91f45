"""evaluate's figures: of files, of a checkpoint's samples, and what it refuses. The network is a small stand-in."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.scenes import get_config
from diffusion_jax import build, sampling, scores
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.scenes import caption, describe, draw_scene, render
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import caption_checker, comparison, features, moments, sets
from diffusion_jax.metrics.frechet import frechet_distance

ROOT = pathlib.Path(__file__).parents[1]
RNG = np.random.default_rng(0)
REAL, MADE = RNG.integers(0, 256, (40, 8, 8, 3), np.uint8), RNG.integers(0, 200, (30, 8, 8, 3), np.uint8)
WEIGHTS = RNG.normal(size=(3, 5)).astype(np.float32)


def apply(params, images):
    pool = jax.nn.relu(images.astype(jnp.float32).mean((1, 2)) / 255 @ params)
    return {"pool": pool, "spatial": pool[:, :2]}


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    extractor = features.Extractor("small", "abc", WEIGHTS, apply, {"resize": "none"})
    monkeypatch.setattr(features, "inception_extractor", lambda path, resize: extractor)


def request(**changes):
    told = {
        "samples": None,
        "reference": None,
        "features": "inception",
        "features_file": "weights",
        "resize": "tensorflow",
        "num_samples": None,
        "split": "validation",
        "seeds": (0,),
        "batch_size": 16,
        "save_statistics": None,
        "protocol": comparison.Protocol(),
    }
    return scores.Request(**(told | changes))


def fid(made, real):
    a, b = (moments.from_features(apply(WEIGHTS, images)["pool"]) for images in (made, real))
    return frechet_distance(a.mean, moments.covariance(a), b.mean, moments.covariance(b))


def test_the_figures_of_files_are_those_of_their_pictures_and_tell_how_they_came(tmp_path, capsys):
    np.savez(tmp_path / "made.npz", MADE)
    np.savez(tmp_path / "real.npz", REAL)
    made, real, stats = (str(tmp_path / f"{name}.npz") for name in ("made", "real", "stats"))
    record = scores.compare(request(samples=made, reference=real), None, [])
    found = record["figures"][made]
    assert found.keys() == {"fid", "sfid", "kid", "precision", "recall", "density", "coverage"}
    np.testing.assert_allclose(found["fid"], fid(MADE, REAL), rtol=1e-4)
    assert record["network"] == {"name": "small", "sha256": "abc", "resize": "none"}
    assert json.loads(json.dumps(record))["made"]["num_samples"] == 30
    assert f"| {made} | 30 | {real} | {found['fid']:.4f} |" in capsys.readouterr().out
    first = scores.compare(request(samples=made, reference=real, num_samples=20), None, [])
    np.testing.assert_allclose(first["figures"][made]["fid"], fid(MADE[:20], REAL), rtol=1e-4)
    scores.compare(request(samples=real, save_statistics=stats), None, [])
    alone = scores.compare(request(samples=made, reference=stats), None, [])["figures"][made]
    assert alone.keys() == {"fid", "sfid"}
    np.testing.assert_allclose(alone["fid"], found["fid"], rtol=1e-6)


def test_adms_reference_gives_frechet_distances_of_its_statistics_and_neighbours_of_its_pictures(tmp_path):
    np.savez(tmp_path / "made.npz", MADE)
    whole = moments.from_features(apply(WEIGHTS, REAL)["pool"])
    stored = {"mu": whole.mean, "sigma": moments.covariance(whole)}
    np.savez(tmp_path / "adm.npz", REAL[:25], **stored)
    made, adm = str(tmp_path / "made.npz"), str(tmp_path / "adm.npz")
    found = scores.compare(request(samples=made, reference=adm), None, [])
    np.testing.assert_allclose(found["figures"][made]["fid"], fid(MADE, REAL), rtol=1e-4)
    assert "recall" in found["figures"][made]
    assert found["reference"] == {"name": adm, "stored_statistics": ["pool"], "pictures": 25}


@pytest.fixture(scope="module")
def loaded():
    config = get_config("debug")
    config.parallel.placement, config.sample.num_steps = "single", 2
    captions = ["a small red circle on a black background", "a large blue square on a white background"]
    model = build.model(config, CaptionTokenizer.train(captions, config.text.vocab_size))
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.05 * rng.normal(size=x.shape), x.dtype), template)
    return sampling.Loaded(pathlib.Path("runs/scenes"), 3, model, params), captions


def test_a_checkpoints_samples_are_the_same_in_any_batches_and_its_recipe_is_told(loaded, monkeypatch):
    checkpoint, captions = loaded
    side = checkpoint.model.image_shape[0]
    examples = [
        {"image": RNG.integers(0, 256, (side, side, 3), np.uint8), "caption": captions[i % 2].encode()}
        for i in range(6)
    ]
    asked = []
    monkeypatch.setattr(build, "source", lambda config, split: asked.append(split) or examples)
    told = {"reference": "data:train", "num_samples": 10, "split": "test"}
    one = scores.compare(request(**told), checkpoint, [1.0, 2.0])
    other = scores.compare(request(**told, batch_size=8), checkpoint, [2.0])
    assert one["figures"].keys() == {"guidance 1", "guidance 2"}
    assert set(asked) == {"train", "test"}
    np.testing.assert_allclose(
        list(other["figures"]["guidance 2"].values()), list(one["figures"]["guidance 2"].values()), rtol=1e-3, atol=1e-6
    )
    assert one["figures"]["guidance 1"]["fid"] != one["figures"]["guidance 2"]["fid"]
    sample = checkpoint.model.config.sample
    steps = sample.num_steps
    calls = {"heun": 2 * steps - 1, "midpoint": 2 * steps, "plms": steps + 1}.get(sample.sampler, steps)
    assert one["made"]["network_evaluations"] == 2 * calls
    assert one["made"]["sample"]["sampler"] == sample.sampler


def test_a_data_set_of_files_is_read_as_training_reads_it_and_a_bad_one_named(loaded, tmp_path, monkeypatch):
    checkpoint, captions = loaded
    side, rng = checkpoint.model.image_shape[0], np.random.default_rng(5)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (2 * side, 2 * side, 3), np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"{captions[0]}\n{captions[-1]}\n")
    folder = Folder(tmp_path)
    monkeypatch.setattr(build, "source", lambda config, split: folder)
    asked = request(reference="data:train", num_samples=2, batch_size=4)
    encode = build.encode_example(checkpoint.model)
    record = scores.compare(asked, checkpoint, [1.0])
    assert record["reference"]["pictures"] == 3
    np.savez(tmp_path / "real.npz", np.stack([encode.image(folder[i]) for i in range(3)]))
    again = scores.compare(request(**asked.__dict__ | {"reference": str(tmp_path / "real.npz")}), checkpoint, [1.0])
    assert record["figures"] == again["figures"]
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        scores.compare(asked, checkpoint, [1.0])


def test_the_network_compiles_once_for_all_sets(tmp_path, monkeypatch):
    np.savez(tmp_path / "made.npz", MADE)
    np.savez(tmp_path / "real.npz", REAL)
    traced = []
    extractor = features.Extractor("small", "abc", WEIGHTS, lambda *a: (traced.append(1), apply(*a))[1], {})
    monkeypatch.setattr(features, "inception_extractor", lambda path, resize: extractor)
    scores.compare(request(samples=str(tmp_path / "made.npz"), reference=str(tmp_path / "real.npz")), None, [])
    assert len(traced) == 1


@pytest.fixture
def extracted(monkeypatch):
    """Counts the pictures that the network sees; the evaluation is interrupted before `stop` of them are exceeded."""
    seen, make = {"pictures": 0, "stop": 10**9}, features.make_extract

    def make_extract(extractor, place):
        whole = make(extractor, place)

        def extract(batches, batch_size):
            for found in whole(batches, batch_size):
                if seen["pictures"] + len(found["pool"]) > seen["stop"]:
                    raise KeyboardInterrupt
                seen["pictures"] += len(found["pool"])
                yield found

        return extract

    monkeypatch.setattr(features, "make_extract", make_extract)
    return seen


@pytest.mark.parametrize("stop", [16, 40, 50])  # within the reference, between the sets, within the samples
def test_an_interrupted_evaluation_goes_on_to_the_same_figures_and_sees_no_picture_twice(stop, tmp_path, extracted):
    np.savez(tmp_path / "made.npz", MADE)
    np.savez_compressed(tmp_path / "real.npz", REAL)
    asked = request(samples=str(tmp_path / "made.npz"), reference=str(tmp_path / "real.npz"), batch_size=8)
    straight = scores.compare(asked, None, [])
    extracted |= {"pictures": 0, "stop": stop}
    with pytest.raises(KeyboardInterrupt):
        scores.compare(asked, None, [], tmp_path / "part")
    extracted["stop"] = 10**9
    assert scores.compare(asked, None, [], tmp_path / "part") == straight
    assert extracted["pictures"] == len(REAL) + len(MADE)


def test_a_changed_request_starts_anew_and_says_what_changed(tmp_path, extracted, capsys):
    np.savez(tmp_path / "made.npz", MADE)
    np.savez(tmp_path / "real.npz", REAL)
    made, real, part = str(tmp_path / "made.npz"), str(tmp_path / "real.npz"), tmp_path / "part"
    scores.compare(request(samples=made, reference=real), None, [], part)
    np.savez(tmp_path / "real.npz", REAL[:20])
    found = scores.compare(request(samples=made, reference=real), None, [], part)
    assert "(reference changed): starting anew" in capsys.readouterr().out
    np.testing.assert_allclose(found["figures"][made]["fid"], fid(MADE, REAL[:20]), rtol=1e-4)
    scores.compare(request(samples=made, reference=real, num_samples=25), None, [], part)
    assert "(num_samples changed)" in capsys.readouterr().out
    extracted["pictures"] = 0
    protocol = comparison.Protocol(neighbours=5)  # it is of the figures, not of the features
    scores.compare(request(samples=made, reference=real, num_samples=25, protocol=protocol), None, [], part)
    assert extracted["pictures"] == 0


def test_a_checkpoint_that_was_trained_on_is_another_request(loaded, tmp_path, monkeypatch, capsys):
    checkpoint, captions = loaded
    side = checkpoint.model.image_shape[0]
    example = {"image": np.zeros((side, side, 3), np.uint8), "caption": captions[0].encode()}
    monkeypatch.setattr(build, "source", lambda config, split: [example])
    np.savez(tmp_path / "real.npz", REAL)
    told, part = request(reference=str(tmp_path / "real.npz"), num_samples=2, batch_size=2), tmp_path / "part"
    one = scores.compare(told, checkpoint, [1.0], part)
    again = scores.compare(told, checkpoint, [1.0], part)
    assert one["figures"] == again["figures"]
    assert "starting anew" not in capsys.readouterr().out
    moved = checkpoint._replace(params=jax.tree.map(lambda x: 2 * x, checkpoint.params))
    assert scores.compare(told, moved, [1.0], part)["figures"] != one["figures"]
    assert "(checkpoint changed)" in capsys.readouterr().out


@pytest.fixture
def scenes(loaded, monkeypatch):
    """The checkpoint, and a split of six real scenes."""
    drawn = [draw_scene(0, i, "test", max_objects=1) for i in range(6)]
    rendered = [{"image": render(scene, 32), "caption": caption(describe(scene)).encode()} for scene in drawn]
    monkeypatch.setattr(build, "source", lambda config, split: rendered)
    return loaded[0]


def test_each_seed_has_figures_of_its_own_and_their_mean_and_spread_are_told(scenes, tmp_path, capsys):
    np.savez(tmp_path / "real.npz", REAL)
    told = {"reference": str(tmp_path / "real.npz"), "num_samples": 6, "batch_size": 6}
    record = scores.compare(request(**told, seeds=(3, 8)), scenes, [1.0, 2.0])
    rows = record["figures"]
    assert list(rows) == [f"guidance {scale}, seed {seed}" for scale in (1, 2) for seed in (3, 8)]
    alone = scores.compare(request(**told, seeds=(8,)), scenes, [2.0])
    assert alone["figures"] == {"guidance 2": rows["guidance 2, seed 8"]}
    assert "over_seeds" not in alone
    one, other = rows["guidance 2, seed 3"]["fid"], rows["guidance 2, seed 8"]["fid"]
    both = record["over_seeds"]["guidance 2"]
    assert one != other
    np.testing.assert_allclose(both["mean"]["fid"], (one + other) / 2)
    np.testing.assert_allclose(both["spread"]["fid"], abs(one - other) / 2**0.5)
    assert record["made"]["seeds"] == [3, 8]
    assert f"| guidance 2, spread | 6 | {told['reference']} | {both['spread']['fid']:.4f} |" in capsys.readouterr().out


def test_captions_are_scored_by_seed_beside_their_own_pictures(scenes, monkeypatch):
    checker = caption_checker.score
    monkeypatch.setattr(caption_checker, "score", lambda x, said: checker(x, said) | {"grey": float(np.mean(x))})
    record = json.loads(json.dumps(scores.score_captions(scenes, "test", 4, [1.0, 2.0], (0, 1), 4)))
    rows = record["scores"]
    assert all(value == 1 for name, value in rows["real renders"].items() if name != "grey")
    assert len({row["grey"] for row in rows.values()}) == 5
    greys = [rows[f"guidance 2, seed {seed}"]["grey"] for seed in (0, 1)]
    np.testing.assert_allclose(record["over_seeds"]["guidance 2"]["mean"]["grey"], np.mean(greys))
    assert record["num_samples"] == 4
    alone = scores.score_captions(scenes, "test", 4, [2.0], (1,), 4)
    assert alone["scores"]["guidance 2"] == rows["guidance 2, seed 1"]
    assert "over_seeds" not in alone


def test_what_is_missing_or_does_not_fit_is_told_in_a_line(tmp_path, loaded):
    np.savez(tmp_path / "made.npz", MADE)
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    np.savez(tmp_path / "none.npz", x=np.zeros(7))
    made = str(tmp_path / "made.npz")
    for changes, words in (
        ({"samples": made, "reference": made, "features_file": None}, "--features_file=FILE"),
        ({"samples": made, "reference": str(tmp_path / "other.npz")}, "does not fit"),
        ({"samples": made, "reference": str(tmp_path / "none.npz")}, "neither pictures"),
        ({"samples": str(tmp_path / "other.npz"), "reference": made}, "no pictures"),
        ({"samples": made, "reference": "data:train"}, "--checkpoint"),
        ({"samples": made, "reference": made, "num_samples": 1}, "at least 2"),
    ):
        with pytest.raises(UserError, match=words) as error:
            scores.compare(request(**changes), None, [])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="one of --guidance_scales"):
        scores.compare(request(reference=made, save_statistics="s.npz", num_samples=2), loaded[0], [1.0, 2.0])


COMMAND = """
import sys
sys.path.insert(0, "tests")
import test_scores
from diffusion_jax import cli, evaluate
from diffusion_jax.metrics import features

make, stop = features.make_extract, int(sys.argv.pop())

def make_extract(*arguments):
    whole = make(*arguments)

    def extract(*arguments):
        for number, found in enumerate(whole(*arguments)):
            if number == stop:
                raise KeyboardInterrupt
            yield found

    return extract

features.inception_extractor = lambda path, resize: features.Extractor("", "", test_scores.WEIGHTS, test_scores.apply, {})
features.make_extract = make_extract
cli.run(evaluate.main)
"""


def test_the_command_says_when_stopped_that_it_goes_on_and_leaves_nothing_but_the_figures(tmp_path):
    np.savez(tmp_path / "made.npz", MADE)
    arguments = [f"--{name}={tmp_path / 'made.npz'}" for name in ("samples", "reference")]
    arguments += ["--inception=a", "--batch_size=8", f"--out={tmp_path / 'new' / 'out.json'}"]

    def run(stop):
        command = [sys.executable, "-c", COMMAND, *arguments, str(stop)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    stopped = run(3)
    assert stopped.returncode == 130, stopped.stderr
    assert "out.json.part keeps what is done: the same command goes on" in stopped.stdout
    assert len(list((tmp_path / "new" / "out.json.part").glob("real_*.npz"))) == 3
    done = run(9)
    assert done.returncode == 0, done.stderr
    assert "going on with the 3 batches" in done.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a --checkpoint"),
        (["--samples=a", "--reference=b", "--split=test"], "--split does nothing"),
        (["--checkpoint=a", "--resize=pytorch"], "--resize does nothing"),
        (["--samples=a", "--reference=b", "--seeds=0,1"], "--seeds does nothing"),
        (["--checkpoint=a", "--seeds=0,1", "--seed=2"], "takes the place of --seed"),
        (["--checkpoint=a", "--seeds=0,-1"], "wants whole numbers"),
        (["--checkpoint=a", "--seeds=1,1"], "each once"),
        (["--checkpoint=a", "--pairs=b"], "--pairs are compared"),
        (["--samples=a", "--pairs=b", "--inception=c"], "--features_file does nothing with --pairs"),
        (
            ["--samples=a", "--reference=b", "--features=classifier", "--resize=pytorch"],
            "--resize does nothing with --fea",
        ),
        (
            ["--checkpoint=a", "--features=classifier"],
            "--features does nothing with a --checkpoint without --reference",
        ),
        (["--checkpoint=a", "--r_precision=b", "--reference=c"], "--r_precision is of a --checkpoint's own samples"),
        (["--samples=a", "--reference=b", "--lpips=c"], "--lpips does nothing"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(arguments, words):
    command = [sys.executable, "-m", "diffusion_jax.evaluate", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_sets_of_statistics_are_written_whole_or_not_at_all(tmp_path):
    statistics = sets.Statistics("", {"pool": (np.zeros(2), np.eye(2))})
    with pytest.raises(UserError, match="cannot write"):
        sets.write_statistics(tmp_path / "missing" / "a.npz", statistics)
    sets.write_statistics(tmp_path / "a.npz", statistics)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
