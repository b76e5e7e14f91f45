"""OpenAI's networks under their own names: their numbers on their weights, their files' keys, and what is told of misfits."""

import functools
import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_jax.errors import UserError
from diffusion_jax.interop.openai import KINDS, load, save
from diffusion_jax.interop.openai.kinds import PUBLISHED, blueprint
from diffusion_jax.interop.openai.names import original_shapes, to_state_dict
from diffusion_jax.models.classifier import Classifier, make_classifier
from diffusion_jax.models.unet import make_network

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
INPUTS = ("y", "low_res", "tokens", "mask", "inpaint_image", "inpaint_mask")
CASES = (
    "unet_class_headch16_neworder_ssn_updown_sigma",
    "unet_uncond_heads4_legacy",
    "sr_class_headch16_ssn_x2",
    "classifier_adaptive",
    "classifier_attentionpool_headch16",
    "classifier_spatial",
    "classifier_spatial_v2",
    "text2im_padding",
    "text2im_no_text_width0",
    "sr_text2im_x2",
    "inpaint_text2im",
)
# Relative L2 error of guided-diffusion's own outputs (torch 2.13.0) with its torso in bfloat16 by its `convert_module_to_f16`.
ORIGINALS_BFLOAT16 = {
    "unet_class_headch16_neworder_ssn_updown_sigma": 0.128,
    "unet_uncond_heads4_legacy": 0.033,
    "sr_class_headch16_ssn_x2": 0.047,
    "classifier_attentionpool_headch16": 0.025,
    "classifier_spatial_v2": 0.0063,
}
SMALL = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 1),
}
TEXT = {
    "text_ctx": 4,
    "xf_width": 32,
    "xf_layers": 1,
    "xf_heads": 2,
    "xf_final_ln": True,
    "n_vocab": 10,
    **{name: value for name, value in SMALL.items() if name != "image_size"},
}


def to_nhwc(x):
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


@functools.cache
def case(name):
    config = json.loads((GOLDEN / "networks" / name / "config.json").read_text())
    options = dict(config["kwargs"])
    if config["made_with"] == "create_model":
        options["num_classes"] = 10
    if "n_vocab" in config:
        options["n_vocab"] = config["n_vocab"]
    io = {key: to_nhwc(array) for key, array in np.load(GOLDEN / "networks" / name / "io.npz").items()}
    return config, options, io


@functools.cache
def golden(name):
    config, options, _ = case(name)
    return load(config["made_with"], GOLDEN / "networks" / name / "weights.safetensors", options)


def shapes(kind, options=None):
    """The original's names and shapes, from our network."""
    module, image_shape, unused = blueprint(kind, options)
    make = make_classifier if isinstance(module, Classifier) else make_network
    return {**original_shapes(jax.eval_shape(make(module, image_shape).init, jax.random.key(0))), **unused}


def random_weights(kind, options, scale=0.1):
    rng = np.random.default_rng(0)
    return {key: scale * rng.normal(size=shape).astype(np.float32) for key, shape in shapes(kind, options).items()}


def published_shapes(name):
    rows = (row.split("\t") for row in (GOLDEN / "networks" / f"{name}.tsv").read_text().splitlines())
    return {key: tuple(int(n) for n in shape.split("x")) for key, shape in rows}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradient_are_the_originals(name):
    config, _, io = case(name)
    inputs = {key: io[key] for key in INPUTS if key in io}

    def probed(x):
        out = golden(name)(x, io["timesteps"], **inputs)
        return jnp.sum(out * io["probe"]), out

    (_, out), grad = jax.value_and_grad(probed, has_aux=True)(jnp.asarray(io["x"]))
    tolerance = 10 * config["noise_floor_absmax_onednn_off_1thread"]
    np.testing.assert_allclose(out, io["out"], atol=tolerance, rtol=0)
    # The floor is the output's: a gradient that is larger has as much more rounding noise.
    ratio = max(1, np.abs(io["grad_x"]).max() / np.abs(io["out"]).max())
    np.testing.assert_allclose(grad, io["grad_x"], atol=tolerance * ratio, rtol=0)


def test_other_readings_of_the_options_are_seen():
    """The tolerance is worth something: with another order of qkv the same weights give something else."""
    config, options, io = case("unet_class_headch16_neworder_ssn_updown_sigma")
    weights = GOLDEN / "networks" / "unet_class_headch16_neworder_ssn_updown_sigma" / "weights.safetensors"
    out = load("create_model", weights, {**options, "use_new_attention_order": False})(
        io["x"], io["timesteps"], y=io["y"]
    )
    assert np.abs(out - io["out"]).max() > 1


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
    config, options, _ = case(name)
    save(golden(name), tmp_path / "saved.safetensors")
    saved = load_file(tmp_path / "saved.safetensors")
    original = load_file(GOLDEN / "networks" / name / "weights.safetensors")
    assert saved.keys() == original.keys()
    for key, array in original.items():
        np.testing.assert_array_equal(saved[key], array.astype(np.float32), strict=True)
    again = load(config["made_with"], saved, options)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), golden(name).params, again.params))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_has_our_networks_keys_and_shapes(name):
    assert shapes(name) == published_shapes(name)


def test_every_published_file_is_a_kind():
    assert {path.stem for path in (GOLDEN / "networks").glob("*.tsv")} <= KINDS.keys()


def test_a_published_file_loads_by_its_name_alone_and_saves_its_keys():
    wanted = published_shapes("adm_classifier_128")
    model = load("adm_classifier_128", {key: np.broadcast_to(np.float32(0.5), shape) for key, shape in wanted.items()})
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 42_568_040
    assert {key: array.shape for key, array in model.state_dict().items()} == wanted


@pytest.mark.parametrize(
    "name, kind", [("64x64_diffusion", "create_model"), ("64_256_upsampler", "sr_create_model"),
                   ("64x64_classifier", "create_classifier")],
)  # fmt: skip
def test_the_readmes_flags_make_the_published_network(name, kind):
    published = json.loads(gzip.decompress((GOLDEN / "published_shapes" / f"{name}.json.gz").read_bytes()))
    process = {"diffusion_steps", "noise_schedule", "timestep_respacing", "use_kl", "predict_xstart",
               "rescale_timesteps", "rescale_learned_sigmas"}  # fmt: skip
    flags = {flag: value for flag, value in published["flags"].items() if flag not in process}
    wanted = {key: tuple(shape) for key, shape in published["state_dict_shapes"].items()}
    assert shapes(kind, flags) == wanted


@pytest.mark.parametrize("size, levels", [(512, 7), (256, 6), (128, 5), (64, 4)])
def test_widths_follow_from_the_image_size(size, levels):
    module = blueprint("create_model", {"image_size": size, "num_channels": 32, "num_res_blocks": 1}).module
    assert len(module.channel_mults) == levels
    assert module.attention_factors == (size // 16,)
    assert module.out_channels == 3 and module.num_classes is None


def test_the_two_paths_may_have_other_numbers_of_heads():
    options = {**SMALL, "num_heads": 2}
    weights = random_weights("UNetModel", options)
    x, time = np.ones((1, 16, 16, 3), np.float32) * np.linspace(-1, 1, 16)[:, None, None], [100.0]
    same, four = (load("UNetModel", weights, {**options, "num_heads_upsample": heads})(x, time) for heads in (2, 4))
    unset = load("UNetModel", weights, options)(x, time)
    np.testing.assert_allclose(unset, same, rtol=1e-6)
    assert not np.allclose(unset, four)


def test_resampling_without_convolutions_has_no_parameters():
    with_conv, without = (shapes("UNetModel", {**SMALL, "conv_resample": conv}) for conv in (True, False))
    assert with_conv.keys() - without.keys() == {
        f"{block}.{leaf}" for block in ("input_blocks.2.0.op", "output_blocks.1.2.conv") for leaf in ("weight", "bias")
    }
    options = {**SMALL, "conv_resample": False}
    out = load("UNetModel", random_weights("UNetModel", options), options)(np.ones((2, 16, 16, 3)), [1, 2])
    assert out.shape == (2, 16, 16, 6) and np.isfinite(out).all()


def test_text_may_lack_its_last_norm_and_its_padding():
    options = {**TEXT, "xf_final_ln": False}
    weights = random_weights("Text2ImUNet", options)
    assert not {"final_ln.weight", "padding_embedding"} & weights.keys()
    model = load("Text2ImUNet", weights, options)
    x, time, tokens = np.ones((1, 16, 16, 3)), [5], np.array([[1, 2, 3, 4]])
    out = model(x, time, tokens=tokens)
    np.testing.assert_array_equal(out, model(x, time, tokens=tokens, mask=np.zeros((1, 4), bool)))
    assert not np.allclose(out, model(x, time, tokens=tokens[:, ::-1]))


@pytest.mark.parametrize("kind", ["InpaintText2ImUNet", "SuperResInpaintText2ImUNet", "SuperResInpaintText2ImUnet"])
def test_an_absent_image_to_fill_is_all_zeros(kind):
    options = {**TEXT, "xf_width": 0}
    weights = random_weights(kind, options)
    model = load(kind, weights, options)
    x = np.linspace(-1, 1, 16 * 16 * 3).reshape(1, 16, 16, 3)
    more = {"low_res": x[:, ::4, ::4]} if "SuperRes" in kind else {}
    out = model(x, [5], **more)
    zeros = {"inpaint_image": np.ones_like(x), "inpaint_mask": np.zeros_like(x[..., :1])}
    np.testing.assert_allclose(out, model(x, [5], **more, **zeros), rtol=1e-6)
    ones = {"inpaint_image": np.ones_like(x), "inpaint_mask": np.ones_like(x[..., :1])}
    assert not np.allclose(out, model(x, [5], **more, **ones))


def test_images_stand_in_the_originals_order_behind_the_noisy_one():
    """Only the first convolution reads them: with weights for a single input channel, the output tells which one that is."""
    options = {**TEXT, "xf_width": 0, "attention_resolutions": ()}
    weights = random_weights("SuperResInpaintText2ImUNet", options)
    assert weights["input_blocks.0.0.weight"].shape[1] == 10
    x = np.zeros((1, 16, 16, 3))
    given = {"inpaint_image": x + 0.3, "inpaint_mask": x[..., :1] + 1, "low_res": x[:, :8, :8] + 0.7}
    readers = {(0, 3): {"x": x + 0.5}, (3, 6): {"inpaint_image": x + 0.6}, (7, 10): {"low_res": x[:, :8, :8] - 0.7}}
    for (first, last), change in readers.items():
        kernel = np.zeros_like(weights["input_blocks.0.0.weight"])
        kernel[:, first:last] = weights["input_blocks.0.0.weight"][:, first:last]
        model = load("SuperResInpaintText2ImUNet", {**weights, "input_blocks.0.0.weight": kernel}, options)
        base = model(x, [5], **given)
        for changed in readers.values():
            arguments = {"x": x, **given, **changed}
            moved = not np.allclose(base, model(arguments.pop("x"), [5], **arguments), atol=1e-6)
            assert moved == (changed is change)


def test_what_the_original_never_reads_is_kept():
    options = {**TEXT, "xf_padding": True, "xf_ar": 1.0, "num_classes": 7}
    weights = random_weights("Text2ImUNet", options)
    assert weights["unemb.weight"].shape == (10, 32) and weights["label_emb.weight"].shape == (7, 128)
    saved = load("Text2ImUNet", weights, options).state_dict()
    assert saved.keys() == weights.keys()
    assert all((saved[key] == weights[key]).all() for key in weights)


def test_integer_and_fractional_timesteps_are_taken():
    _, _, io = case("unet_uncond_heads4_legacy")
    model = golden("unet_uncond_heads4_legacy")
    whole, half = np.array([7, 8, 9]), np.array([7.5, 8.5, 9.5])
    np.testing.assert_array_equal(model(io["x"], whole), model(io["x"], whole.astype(np.float64)))
    assert not np.allclose(model(io["x"], whole), model(io["x"], half))


@pytest.mark.parametrize("name", ORIGINALS_BFLOAT16)
def test_bfloat16_errs_as_the_originals_own_does(name):
    """These random networks amplify rounding: rounding their weights alone, computed in float32, moves the output by 0.6 to 9%."""
    config, options, io = case(name)
    weights = GOLDEN / "networks" / name / "weights.safetensors"
    model = load(config["made_with"], weights, options, dtype=jnp.bfloat16)
    out = model(io["x"], io["timesteps"], **{key: io[key] for key in INPUTS if key in io})
    error = np.linalg.norm(out - io["out"]) / np.linalg.norm(io["out"])
    assert 0 < error < 1.5 * ORIGINALS_BFLOAT16[name]


def test_blocks_compute_in_the_dtype_asked_for():
    config, options, io = case("text2im_padding")
    weights = GOLDEN / "networks" / "text2im_padding" / "weights.safetensors"
    model = load(config["made_with"], weights, options, dtype=jnp.bfloat16)
    assert model.module.dtype == model.module.text.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float32)}


def test_parameters_share_no_memory_with_what_they_came_from():
    weights = random_weights("UNetModel", SMALL)
    model = load("UNetModel", weights, SMALL)
    weights["time_embed.0.bias"][:] = 9
    assert not (np.asarray(model.params["time_embed_0"]["bias"]) == 9).any()


def test_saving_what_jit_gave_back_is_the_same():
    model = load("UNetModel", weights := random_weights("UNetModel", SMALL), SMALL)
    params = jax.jit(lambda p: p)(model.params)
    assert all((array == weights[key]).all() for key, array in to_state_dict(params).items())


def test_a_mismatch_lists_what_is_missing_left_over_and_misshapen():
    weights = random_weights("UNetModel", SMALL)
    del weights["out.0.bias"]
    weights["label_emb.weight"] = np.zeros((10, 128))
    weights["out.2.bias"] = np.zeros(3)
    with pytest.raises(UserError) as error:
        load("UNetModel", weights, SMALL)
    assert "missing out.0.bias; left over label_emb.weight" in str(error.value)
    assert "misshapen out.2.bias is (3,) where (6,) is wanted" in str(error.value)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("create_modle", {}, "create_model"),
        ("create_model", {"image_size": 64, "num_channels": 32}, "needs the options num_res_blocks"),
        ("create_model", {"image_size": 64, "num_chanels": 32}, "num_channels"),
        ("create_model", {"image_size": 48, "num_channels": 32, "num_res_blocks": 1}, "channel_mult"),
        ("UNetModel", {**SMALL, "dims": 3}, "dims=2"),
        ("UNetModel", {**SMALL, "num_head_channels": 24}, "24"),
        ("EncoderUNetModel", {**SMALL, "pool": "attention"}, "num_head_channels"),
        ("EncoderUNetModel", {**SMALL, "pool": "average"}, "average"),
    ],
)
def test_a_wrong_kind_or_option_says_what_to_do(kind, options, message):
    with pytest.raises(UserError, match=message):
        load(kind, {}, options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"y": None}, "takes x, timesteps, low_res, y; lacking or unknown: y"),
        ({"tokens": np.zeros((3, 4))}, "lacking or unknown: tokens"),
        ({"x": np.zeros((3, 3, 16, 16))}, r"\[B, H, W, 3\]"),
        ({"timesteps": [1]}, "one per image"),
    ],
)
def test_a_wrong_input_is_named(change, message):
    _, _, io = case("sr_class_headch16_ssn_x2")
    inputs = {name: io[name] for name in ("x", "timesteps", "y", "low_res")}
    with pytest.raises(ValueError, match=message):
        golden("sr_class_headch16_ssn_x2")(**{**inputs, **change})
