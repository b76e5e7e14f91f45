"""Evaluation inside training: figures of a few samples beside a split's pictures, and what is said where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import swiss_roll
from configs.scenes import get_config
from diffusion_jax import build
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import features, moments
from diffusion_jax.metrics.caption_checker import Scores
from diffusion_jax.metrics.frechet import frechet_distance
from diffusion_jax.metrics.kid import kernel_distance
from diffusion_jax.scores.training import while_training
from diffusion_jax.training.placement import make_placement

COUNT = 6
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (9, 24, 24, 3), np.uint8)
CAPTIONS = [f"a large {colour} circle on a white background" for colour in ("red", "green", "blue")]
WEIGHTS = RNG.normal(size=(3, 4)).astype(np.float32)


def pool(params, images):
    return jax.nn.relu(images.astype(jnp.float32).mean((1, 2)) / 255 @ params)


@pytest.fixture(autouse=True)
def split(monkeypatch):
    examples = [{"image": picture, "caption": CAPTIONS[i % 3].encode()} for i, picture in enumerate(PICTURES)]
    monkeypatch.setattr(build, "source", lambda config, split: examples)
    extractor = features.Extractor("small", "", WEIGHTS, lambda *given: {"pool": pool(*given)}, {})
    monkeypatch.setattr(features, "inception_extractor", lambda path, resize: extractor)


def config(**fields):
    found = get_config("debug")
    found.sample.num_steps = 2
    found.update_from_flattened_dict(
        {"data.image_size": 24, "evaluate.num_samples": COUNT, "evaluate.file": "weights"} | fields
    )
    return found


def model_of(config):
    text = CaptionTokenizer.train(CAPTIONS, 300) if config.model.condition == "text" else None
    model = build.model(config, text)
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    return model, jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), template)


def test_the_figures_are_those_of_the_same_samples_beside_the_splits_first_pictures():
    place, (model, params) = make_placement("single"), model_of(config())
    evaluation = while_training(model, place)
    assert evaluation.names == (*(f"score_{name}" for name in Scores._fields), "fid", "kid")
    found = evaluation.figures(params)
    assert found.keys() <= set(evaluation.names)
    knobs = build.knobs(model)._replace(guidance_scale=model.config.sample.guidance_scale)
    cond = build.prompt_cond(model, [CAPTIONS[i % 3] for i in range(COUNT)])
    generate = build.generate(model, place)
    made = generate(params, cond, np.arange(COUNT), model.config.seed, knobs, build.grid(model), COUNT)
    a, b = (np.asarray(pool(WEIGHTS, images), float) for images in (made, PICTURES[:COUNT]))
    of = [moments.from_features(x) for x in (a, b)]
    wanted = frechet_distance(of[0].mean, moments.covariance(of[0]), of[1].mean, moments.covariance(of[1]))
    np.testing.assert_allclose(found["fid"], wanted, rtol=1e-4)
    np.testing.assert_allclose(found["kid"], kernel_distance(a, b), rtol=1e-3)
    moved = jax.tree.map(lambda x: 2 * x, params)
    assert evaluation.figures(moved)["fid"] != found["fid"]


def test_without_a_file_captions_alone_are_read_and_other_models_are_told_in_a_line(capsys):
    place = make_placement("single")
    evaluation = while_training(model_of(config(**{"evaluate.file": ""}))[0], place)
    assert all(name.startswith("score_") for name in evaluation.names)
    assert capsys.readouterr().out == ""
    plain = {"model.condition": "none", "model.patch_size": 1}
    assert while_training(model_of(config(**plain, **{"evaluate.file": ""}))[0], place) is None
    told = capsys.readouterr().out
    assert told.startswith("note: ") and "config.evaluate.file" in told and told.count("\n") == 1
    assert while_training(model_of(config(**plain))[0], place).names == ("fid", "kid")


def test_what_cannot_be_evaluated_is_told_before_training():
    place = make_placement("single")
    vectors = swiss_roll.get_config("debug")
    vectors.evaluate.file = "weights"
    low_res = {"model.condition": "none", "model.patch_size": 1, "model.low_res": 12}
    for wrong, words in (
        (config(**{"evaluate.split": "train"}), "validation or test"),
        (config(**{"evaluate.num_samples": 1}), "at least 2"),
        (config(**{"evaluate.features": "dino"}), "Known: classifier, efficientnet, inception"),
        (config(**low_res), "changes given pictures"),
        (vectors, "data are vectors"),
    ):
        with pytest.raises(UserError, match=words) as error:
            while_training(build.model(wrong, CaptionTokenizer.train(CAPTIONS, 300)), place)
        assert "\n" not in str(error.value)
