"""GLIDE's noised CLIP against the original's numbers, on its weights; and its guidance of a sampler."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import mixture_denoiser
from safetensors.numpy import load_file
from sampler_cases import give_noise

from diffusion_jax import grids, guidance, samplers, schedules
from diffusion_jax.errors import UserError
from diffusion_jax.interop import openai
from diffusion_jax.interop.openai_clip import load_clip
from diffusion_jax.samplers.ancestral import ancestral

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASE = GOLDEN / "networks" / "noised_clip"
CLEAN_CASE = GOLDEN / "networks" / "clip_image_encoder_without_timesteps"
TOLERANCE = 10 * json.loads((CASE / "config.json").read_text())["noise_floor_absmax_onednn_off_1thread"]
OPTIONS = json.loads((CASE / "config.json").read_text())["config"]
CLEAN_OPTIONS = json.loads((CLEAN_CASE / "config.json").read_text())["kwargs"]


@functools.cache
def weights(case=CASE):
    return load_file(case / "weights.safetensors")


@functools.cache
def clip(dtype=jnp.float32):
    return load_clip(weights(), OPTIONS, dtype=dtype)


@functools.cache
def golden(case=CASE):
    return dict(np.load(case / "io.npz"))


def to_nhwc(x):
    return np.moveaxis(x, 1, -1)


def inputs():
    io = golden()
    return io["tokens"], io["text_len"], to_nhwc(io["images"]), io["timesteps"]


# Golden array -> how it is had from a clip and its inputs.
OUTPUTS = {
    "text_features": lambda c, tokens, length, x, t: c.text_encoder(tokens, length),
    "text_probe_features": lambda c, tokens, length, x, t: c.text_encoder(tokens, length, return_probe_features=True),
    "text_embeddings": lambda c, tokens, length, x, t: c.text_embeddings(tokens, length),
    "image_features_of_0_255": lambda c, tokens, length, x, t: c.image_encoder((x + 1) * 127.5, t),
    "image_probe_features_of_0_255": lambda c, tokens, length, x, t: c.image_encoder((x + 1) * 127.5, t, True),
    "image_embeddings": lambda c, tokens, length, x, t: c.image_embeddings(x, t),
    "logit_scale": lambda c, tokens, length, x, t: c.logit_scale[None],
}
GRADIENTS = {
    "cond_fn_gradient_scale3": lambda c, tokens, length, x, t: c.cond_fn(tokens, length, 3.0)(x, t),
    "cond_fn_gradient_overridden_scale0p5": lambda c, tokens, length, x, t: c.cond_fn(tokens, length, 3.0)(
        x, t, grad_scale=0.5, y=None
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_the_originals(name):
    np.testing.assert_allclose(OUTPUTS[name](clip(), *inputs()), golden()[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_guidance_gradient_is_the_originals(name):
    """To 1e-5 of its largest value, 42: the original's own float32 gradient errs by 3.4e-5 from one in float64."""
    expected = to_nhwc(golden()[name])
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(GRADIENTS[name](clip(), *inputs()), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", OUTPUTS)
def test_bfloat16_stays_within_two_percent(name):
    expected = golden()[name]
    out = OUTPUTS[name](clip(jnp.bfloat16), *inputs())
    assert out.dtype == jnp.float32
    assert np.linalg.norm(out - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ImageEncoder", CLEAN_OPTIONS),
        ("create_clip_model", CLEAN_OPTIONS),
        (
            "create_clip_model",
            {"image_size": 8, "patch_size": 4, "n_embd": 8, "n_head_image": 2, "n_xf_blocks_image": 1}
            | {"n_head_state_image": 8, "n_timesteps": 0},
        ),
    ],
)
def test_an_encoder_without_timesteps_is_the_originals(kind, options):
    model = load_clip(weights(CLEAN_CASE), options, kind)
    images = to_nhwc(golden(CLEAN_CASE)["images"])
    expected = golden(CLEAN_CASE)["image_features_of_0_255"]
    np.testing.assert_allclose(model.image_encoder((images + 1) * 127.5), expected, atol=TOLERANCE, rtol=0)
    assert_equal(model.state_dict(), weights(CLEAN_CASE))


def test_the_two_files_of_the_original_are_one_model():
    halves = {
        encoder: {key[len(encoder) + 1 :]: array for key, array in weights().items() if key.startswith(encoder)}
        for encoder in ("image_encoder", "text_encoder")
    }
    both = load_clip(halves, OPTIONS)
    tokens, length, images, steps = inputs()
    np.testing.assert_array_equal(both.text_embeddings(tokens, length), clip().text_embeddings(tokens, length))
    assert_equal(both.state_dict(), weights())
    for encoder, alone in halves.items():
        one = load_clip(alone, OPTIONS)
        assert set(one.network) == {encoder}
        assert_equal(one.state_dict(), alone)
    with pytest.raises(ValueError, match="without its image_encoder"):
        one.image_embeddings(images, steps)


def test_saving_and_loading_again_gives_back_the_same():
    saved = clip().state_dict()
    assert_equal(saved, weights())
    assert_equal(load_clip(saved, OPTIONS).state_dict(), saved)


@pytest.mark.parametrize(("name", "count"), [("glide_clip_image_enc", 86_443_776), ("glide_clip_text_enc", 71_679_488)])
def test_published_files_load_without_options_and_save_back_the_same(name, count):
    rows = (row.split("\t") for row in (GOLDEN / "networks" / f"{name}.tsv").read_text().splitlines())
    shapes = {key: tuple(int(n) for n in shape.split("x")) for key, shape in rows}
    rng = np.random.default_rng(0)
    state = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    assert sum(array.size for array in state.values()) == count
    assert_equal(openai.load(name, state).state_dict(), state)


def test_a_file_is_loaded_and_written_as_any_of_openais(tmp_path):
    model = openai.load("clip.model_creation.create_clip_model", CASE / "weights.safetensors", OPTIONS)
    openai.save(model, tmp_path / "clip.safetensors")
    assert_equal(load_file(tmp_path / "clip.safetensors"), weights())
    image_file = {"image_encoder": CLEAN_CASE / "weights.safetensors"}
    assert_equal(openai.load("create_clip_model", image_file, CLEAN_OPTIONS).state_dict(), weights(CLEAN_CASE))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        assert array.dtype == np.float32 and array.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(array, theirs[key], err_msg=key)


def test_keys_that_do_not_fit_are_listed():
    state = dict(weights())
    del state["image_encoder.blocks.input.w_t"]
    state["text_encoder.blocks.nowhere"] = np.zeros(3)
    with pytest.raises(UserError, match=r"missing image_encoder\.blocks\.input\.w_t"):
        load_clip(state, OPTIONS)
    state = dict(weights()) | {"text_encoder.blocks.nowhere": np.zeros(3)}
    with pytest.raises(UserError, match=r"left over text_encoder\.blocks\.nowhere"):
        load_clip(state, OPTIONS)
    with pytest.raises(UserError, match=r"w_voc has shape \(64, 32\) where \(65, 32\) is wanted"):
        load_clip(weights(), OPTIONS | {"n_vocab": 65})
    with pytest.raises(UserError, match=r"left over logit_scale"):
        load_clip(dict(weights()) | {"logit_scale": np.zeros(())}, OPTIONS)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("create_clip", {}, "Did you mean create_clip_model"),
        ("create_clip_model", {"n_heads_text": 2}, "Did you mean n_head_text"),
        ("ImageEncoder", {"image_size": 8}, "needs the options n_embd"),
    ],
)
def test_an_unknown_kind_and_unfit_options_are_told(kind, options, message):
    with pytest.raises(UserError, match=message):
        load_clip(weights(CLEAN_CASE) if kind == "ImageEncoder" else weights(), options, kind)


def test_what_the_tables_do_not_hold_is_refused():
    tokens, length, images, steps = inputs()
    with pytest.raises(ValueError, match=r"timesteps must lie in 0\.\.19; got 20"):
        clip().image_embeddings(images, np.full(4, 20))
    with pytest.raises(ValueError, match=r"tokens must lie in 0\.\.63"):
        clip().text_embeddings(tokens + 64, length)
    with pytest.raises(ValueError, match=r"text_len must lie in 1\.\.12"):
        clip().text_embeddings(tokens, length * 0)
    with pytest.raises(ValueError, match=r"takes tokens \[B, 12\]"):
        clip().text_embeddings(tokens[:, :5], length)
    with pytest.raises(ValueError, match="takes times"):
        clip().image_embeddings(images)
    with pytest.raises(ValueError, match=r"takes images \[B, 16, 16, 3\]"):
        clip().image_embeddings(images[:, :8], steps)


def test_padding_has_no_say():
    tokens, length, _, _ = inputs()
    other = np.where(np.arange(tokens.shape[1]) < length[:, None], tokens, 7)
    assert (other != tokens).any()
    np.testing.assert_array_equal(clip().text_embeddings(other, length), clip().text_embeddings(tokens, length))


def test_a_fractional_step_is_the_nearest():
    _, _, images, _ = inputs()
    near = clip().image_embeddings(images, np.array([2.4, 6.6, -0.3, 19.2]))
    np.testing.assert_array_equal(near, clip().image_embeddings(images, np.array([2, 7, 0, 19])))


def test_a_guided_ancestral_loop_equals_glides(monkeypatch):
    """Step by step, each from the original's state: 10 of 20 steps, a mixture's exact eps, learned variance."""
    give_noise(monkeypatch)
    loop = np.load(GOLDEN / "glide_clip_guided.npz")
    schedule = schedules.from_betas(schedules.cosine_betas(20))
    mixture = [
        to_nhwc(loop["gmm_means"]) if n == "means" else loop[f"gmm_{n}"] for n in ("weights", "means", "variances")
    ]
    exact = mixture_denoiser(schedule, *(jnp.asarray(part, jnp.float32) for part in mixture))
    clipped = guidance.clip_x0(
        lambda x_t, t, cond: exact(x_t, t, cond)._replace(raw_variance=jnp.tanh(2 * x_t)), schedule
    )
    io, prompts = golden(), [0, 3]
    log_prob = clip().log_prob(io["tokens"][prompts], io["text_len"][prompts])
    guided = guidance.classifier(clipped, schedule, log_prob, guidance_scale=2.0, shift="mean")
    sampler, grid = ancestral(schedule, "learned_range"), grids.respaced(20, "10")
    noise, states = (jnp.asarray(np.moveaxis(loop[f"ddpm10_{n}"], 2, -1)) for n in ("noise", "samples"))
    before = jnp.concatenate([to_nhwc(loop["x_T"])[None], states[:-1]])

    @jax.jit
    def step(carry, i):
        return samplers.run(sampler, guided, carry, grid, {}, noise, i, i + 1)

    state = sampler.init(before[0])
    for i in range(10):
        x, state = step((before[i], state), i)
        np.testing.assert_allclose(x, states[i], atol=1e-4)
