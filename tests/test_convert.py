"""Published files become checkpoints that sample.py takes: the whole way on a small stand-in, and every mistake in a line."""

import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import adm_64_cond, glide_base, glide_clip
from diffusion_jax import build, convert, sampling
from diffusion_jax.data import bpe
from diffusion_jax.errors import UserError
from diffusion_jax.interop import openai, openai_clip
from diffusion_jax.interop.openai import kinds, names
from diffusion_jax.interop.openai_clip_keys import encoder_state_dict

VOCABULARY = pathlib.Path(__file__).parent / "golden" / "tokenizer" / "vocab.bpe.gz"
SMALL = {
    "image_size": 32,
    "channel_mult": "1,2",
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_head_channels": 16,
    "attention_resolutions": "16",
    "num_classes": 8,
}


@pytest.fixture
def small(monkeypatch):
    """A stand-in for adm_64_cond: the recipe and the published options, made small alike."""
    constructor, options = kinds.PUBLISHED["adm_64_cond"]
    monkeypatch.setitem(kinds.PUBLISHED, "adm_64_cond", (constructor, options | SMALL))
    whole = adm_64_cond.get_config

    def get_config():
        config = whole()
        config.data.update(image_size=32, num_classes=8)
        config.model.update(
            channels=32, channel_mults=(1, 2), num_res_blocks=1, head_channels=16, attention_resolutions=(16,)
        )
        config.sample.update(spacing="3")
        config.parallel.placement = "single"
        return config

    monkeypatch.setattr(adm_64_cond, "get_config", get_config)
    model = build.model(get_config(), None)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(0.1 * rng.normal(size=leaf.shape), np.float32),
        jax.eval_shape(model.network.init, jax.random.key(0)),
    )
    return names.to_state_dict(params)


def test_a_file_of_weights_becomes_a_checkpoint_that_samples(tmp_path, small):
    save_file(small, tmp_path / "weights.safetensors")
    convert.convert("adm_64_cond", [str(tmp_path / "weights.safetensors")], str(tmp_path / "run"))
    loaded = sampling.load(str(tmp_path / "run"), {})
    x, time, label = np.ones((2, 32, 32, 3), np.float32), np.array([3.0, 500.0]), np.array([1, 2], np.int32)
    ours = loaded.model.network.apply(loaded.params, x, time, {"label": label})
    theirs = openai.load("adm_64_cond", tmp_path / "weights.safetensors")(x, time, y=label)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    request = sampling.Request(
        str(tmp_path / "run"), (), (1, 5), 1, {}, seed=0, batch_size=None, out=str(tmp_path / "out")
    )
    sampling.run(request)
    made = np.load(tmp_path / "out" / "samples.npz")
    assert made["arr_0"].shape == (2, 32, 32, 3) and made["arr_1"].tolist() == [1, 5]
    with pytest.raises(UserError, match="holds a checkpoint already"):
        convert.convert("adm_64_cond", [str(tmp_path / "weights.safetensors")], str(tmp_path / "run"))


GLIDE = {
    "text_ctx": 16,
    "xf_width": 32,
    "xf_layers": 1,
    "xf_heads": 2,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "num_head_channels": 16,
}


def test_glide_comes_with_its_vocabulary(tmp_path, monkeypatch):
    constructor, options = kinds.PUBLISHED["glide_base"]
    monkeypatch.setitem(kinds.PUBLISHED, "glide_base", (constructor, options | GLIDE))
    whole = glide_base.get_config

    def get_config():
        config = whole()
        config.data.image_size = 16
        config.text.update(context_length=16, width=32, num_layers=1, num_heads=2)
        config.model.update(
            channels=32, channel_mults=(1, 2), num_res_blocks=1, head_channels=16, attention_resolutions=(8,)
        )
        config.sample.spacing = "3"
        config.parallel.placement = "single"
        return config

    monkeypatch.setattr(glide_base, "get_config", get_config)
    template = build.model(get_config(), bpe.load_glide(VOCABULARY)).network.init
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.01, np.float32), jax.eval_shape(template, jax.random.key(0))
    )
    save_file(names.to_state_dict(params), tmp_path / "base.safetensors")
    convert.convert("glide_base", [str(tmp_path / "base.safetensors")], str(tmp_path / "run"), str(VOCABULARY))
    model = sampling.load(str(tmp_path / "run"), {}).model
    assert model.tokenizer.vocab_size == 50257
    prompts = ("an oil painting of a corgi",)
    sampling.run(
        sampling.Request(str(tmp_path / "run"), prompts, (), 1, {}, seed=0, batch_size=None, out=str(tmp_path / "out"))
    )
    made = np.load(tmp_path / "out" / "samples.npz")
    assert made["arr_0"].shape == (1, 16, 16, 3) and tuple(made["prompts"]) == prompts


def test_what_does_not_fit_is_listed(tmp_path, small):
    wrong = dict(small)
    wrong["extra"] = wrong.pop("out.2.bias")
    wrong["out.2.weight"] = wrong["out.2.weight"][..., :1]
    save_file({name: np.ascontiguousarray(value) for name, value in wrong.items()}, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"missing out.2.bias; left over extra; misshapen out.2.weight") as caught:
        convert.convert("adm_64_cond", [str(tmp_path / "wrong.safetensors")], str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "vocabulary", "says"),
    [
        ("glide_base", None, "reads captions: give its --vocabulary"),
        ("glide_clip", "nowhere.bpe", "two files, the image encoder first; got 1"),
        ("adm_64_cond", "vocab.bpe", "reads no captions"),
        ("glide_base", "nowhere.bpe", "cannot read nowhere.bpe"),
        ("adm_64_cond", None, "cannot read nowhere.pt"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, kind, vocabulary, says):
    with pytest.raises(UserError, match=says) as caught:
        convert.convert(kind, ["nowhere.pt"], str(tmp_path / "run"), vocabulary)
    assert "\n" not in str(caught.value)


def test_every_published_network_can_be_converted():
    assert set(convert.KINDS) == {*kinds.PUBLISHED, "glide_clip"}


CLIP = {"n_embd": 8, "n_xf_blocks_text": 1, "n_xf_blocks_image": 1, "n_head_text": 2, "n_head_image": 2}
CLIP |= {"n_head_state_text": 8, "n_head_state_image": 8, "image_size": 16}
CLIP_VOCABULARY = VOCABULARY.with_name("bpe_simple_vocab_16e6.first_48894.txt.gz")


def test_clip_comes_with_its_vocabulary_and_its_scale(tmp_path, monkeypatch):
    for name, value in CLIP.items():
        monkeypatch.setitem(openai_clip.PUBLISHED_OPTIONS, name, value)
    whole = glide_clip.get_config

    def get_config():
        config = whole()
        config.data.image_size = 16
        config.clip.update(image_width=16, image_layers=1, image_heads=2, text_width=16, text_layers=1, text_heads=2)
        config.clip.features = 8
        return config

    monkeypatch.setattr(glide_clip, "get_config", get_config)
    template = jax.eval_shape(build.model(get_config(), bpe.load_clip(CLIP_VOCABULARY)).network.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    paths = []
    for encoder in ("image_encoder", "text_encoder"):
        params = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32), template[encoder])
        paths.append(str(tmp_path / f"{encoder}.safetensors"))
        save_file(encoder_state_dict(params), paths[-1])
    convert.convert("glide_clip", paths, str(tmp_path / "run"), str(CLIP_VOCABULARY))
    loaded = sampling.load(str(tmp_path / "run"), {})
    original = openai_clip.load_clip(dict(zip(openai_clip.ENCODERS, paths, strict=True)))
    assert np.exp(loaded.params["logit_scale"]) == pytest.approx(100)
    tokens, lengths = loaded.model.tokenizer.encode(["a corgi", ""], 77)
    ours = build.text_features(loaded.model, loaded.params, ("a corgi", ""))
    np.testing.assert_allclose(ours, original.text_embeddings(tokens, lengths), atol=1e-5)
    x, t = rng.normal(size=(2, 16, 16, 3)).astype(np.float32), np.float32(0.5)
    told = build.log_prob(loaded.model, loaded.params)(x, t, {"clip_text": ours})
    np.testing.assert_allclose(told, original.log_prob(tokens, lengths)(x, t, {}), rtol=1e-4, atol=1e-3)
