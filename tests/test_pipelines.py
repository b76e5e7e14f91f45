"""Whole pipelines of the originals, step by step on their networks: ADM guided and enlarging, GLIDE's two stages and inpainting.

Each step starts from the original's state, since random networks make an ulp grow a thousandfold over a free run.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_cases import give_noise, keys_of

from diffusion_jax import editing, grids, guidance, images, samplers, schedules
from diffusion_jax.denoiser import make_denoiser
from diffusion_jax.interop import openai
from diffusion_jax.predictions import PARAMETERIZATIONS
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim

GOLDEN = pathlib.Path(__file__).parent / "golden"
LINEAR = schedules.from_betas(schedules.linear_betas(1000))
COSINE = schedules.from_betas(schedules.cosine_betas(1000))


def network(case):
    folder = GOLDEN / "networks" / case
    config = json.loads((folder / "config.json").read_text())
    globals_of_the_original = {"num_classes": 10} if config["made_with"] == "create_model" else {}
    if "n_vocab" in config:
        globals_of_the_original["n_vocab"] = config["n_vocab"]
    weights, options = folder / "weights.safetensors", config["kwargs"] | globals_of_the_original
    return openai.load(config["made_with"], weights, options)


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, -3, -1))


def denoiser_of(model, schedule):
    """The original's network as a Denoiser, its learned variance with it."""

    def apply(x_t, time, cond):
        return model.network.apply(model.params, x_t, time, cond)

    def network_time(t):
        return schedules.discrete_step(t, 1000)

    return make_denoiser(apply, PARAMETERIZATIONS["eps"], schedule, network_time, None, True)


def differences(sampler, denoiser, grid, before, after, cond, noise=None):
    """The largest difference of each step from the original's."""
    noise = keys_of(len(before[0])) if noise is None else noise

    @jax.jit
    def step(carry, i):
        return samplers.run(sampler, denoiser, carry, grid, cond, noise, i, i + 1)

    state, found = sampler.init(before[0]), []
    for i in range(len(after)):
        x, state = step((before[i], state), i)
        found.append(float(jnp.abs(x - after[i]).max()))
    return np.array(found)


def run_of(golden, key, start="x_T"):
    """States before and after each step, and the noise if there is any."""
    after = nhwc(golden[f"{key}_samples"])
    noise = (
        nhwc(golden[f"{key.removesuffix('_guided')}_noise"])
        if f"{key.removesuffix('_guided')}_noise" in golden
        else None
    )
    return jnp.concatenate([nhwc(golden[start])[None], after[:-1]]), after, noise


@pytest.fixture(autouse=True)
def given_noise(monkeypatch):
    give_noise(monkeypatch)


@pytest.fixture(scope="module")
def adm():
    return (
        np.load(GOLDEN / "pipeline_adm_classifier_guided.npz"),
        network("unet_class_headch16_neworder_ssn_updown_sigma"),
        network("classifier_attentionpool_headch16"),
    )


def log_prob_of(classifier):
    def log_prob(x_t, t, cond):
        time = jnp.full(len(x_t), schedules.discrete_step(t, 1000))
        each = jax.nn.log_softmax(classifier.network.apply(classifier.params, x_t, time, {}))
        return jnp.take_along_axis(each, cond["label"][:, None], axis=-1)[:, 0]

    return log_prob


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("key", "spacing"), [("ddpm8", "8"), ("ddim10_eta0", "ddim10")])
def test_adm_by_class_with_and_without_its_classifier(adm, key, spacing, guided):
    golden, unet, classifier = adm
    before, after, noise = run_of(golden, key + "_guided" * guided)
    denoiser = guidance.clip_x0(denoiser_of(unet, LINEAR), LINEAR)
    sampler, shift = (ancestral(LINEAR, "learned_range"), "mean") if key == "ddpm8" else (ddim(LINEAR), "score")
    if guided:
        denoiser = guidance.classifier(denoiser, LINEAR, log_prob_of(classifier), 1.0, shift)
    cond = {"label": jnp.asarray(golden["y"], jnp.int32)}
    found = differences(sampler, denoiser, grids.respaced(1000, spacing), before, after, cond, noise)
    floor = np.array(FLOORS["adm_classifier_guided"][key + "_guided" * guided])
    assert (found <= 10 * floor + 2e-5).all(), (found, floor)


def test_the_classifiers_gradient(adm):
    golden, _, classifier = adm
    x, cond = nhwc(golden["x_T"]), {"label": jnp.asarray(golden["y"], jnp.int32)}

    def log_prob(x):
        time = jnp.array([0.0, 500.0, 999.0])
        each = jax.nn.log_softmax(classifier.network.apply(classifier.params, x, time, {}))
        return jnp.take_along_axis(each, cond["label"][:, None], axis=-1).sum()

    wanted = nhwc(golden["cond_fn_gradient_at_x_T_t0_500_999"])
    np.testing.assert_allclose(jax.grad(log_prob)(x), wanted, atol=1e-5 * float(jnp.abs(wanted).max()) + 1e-6)


def test_adm_truncates_where_we_round(adm):
    """ADM's uint8 is the floor; ours is at most one above it."""
    golden = adm[0]
    ours = images.to_uint8(np.moveaxis(golden["ddpm8_guided_samples"][-1], -3, -1)).astype(int)
    theirs = golden["uint8_of_last_ddpm8_guided"].astype(int)
    assert set(np.unique(ours - theirs)) <= {0, 1}


def test_adms_upsampler():
    golden = np.load(GOLDEN / "pipeline_adm_super_resolution.npz")
    before, after, noise = run_of(golden, "ddpm6")
    denoiser = guidance.clip_x0(denoiser_of(network("sr_class_headch16_ssn_x2"), LINEAR), LINEAR)
    cond = {"label": jnp.asarray(golden["y"], jnp.int32), "low_res": nhwc(golden["low_res"])}
    found = differences(
        ancestral(LINEAR, "learned_range"), denoiser, grids.respaced(1000, "6"), before, after, cond, noise
    )
    floor = np.array(FLOORS["adm_super_resolution"]["ddpm6"])
    assert (found <= 10 * floor + 2e-5).all(), (found, floor)


@pytest.fixture(scope="module")
def glide():
    return np.load(GOLDEN / "pipeline_glide.npz")


def captions(golden):
    """Two captions and the empty one: the original's batch is [captions, empty captions]."""
    count = len(golden["tokens"]) // 2
    cond = {"tokens": jnp.asarray(golden["tokens"], jnp.int32), "mask": jnp.asarray(golden["mask"])}
    given, null = ({name: value[part] for name, value in cond.items()} for part in (slice(count), slice(count, None)))
    return count, given, null


@pytest.mark.parametrize("key", ["cfg_ddpm6", "cfg_inpaint_ddpm6"])
def test_glides_base_with_classifier_free_guidance(glide, key):
    before, after, noise = (part[:, : len(glide["tokens"]) // 2] for part in run_of(glide, key))
    count, cond, null = captions(glide)
    inpaint = "inpaint" in key
    unet = network("inpaint_text2im" if inpaint else "text2im_padding")
    denoiser = guidance.classifier_free(denoiser_of(unet, COSINE), null, 3.0)
    if inpaint:
        mask = nhwc(glide["inpaint_mask"])[:count]
        picture = nhwc(glide["inpaint_image"])[:count]
        cond |= {"inpaint_image": picture * mask, "inpaint_mask": mask}
        # What is known is pasted before x0 is clipped; it lies in the range, so that the order does not matter.
        denoiser = editing.replace_known(guidance.clip_x0(denoiser, COSINE), COSINE, picture, mask > 0)
    else:
        denoiser = guidance.clip_x0(denoiser, COSINE)
    found = differences(
        ancestral(COSINE, "learned_range"), denoiser, grids.respaced(1000, "6"), before, after, cond, noise
    )
    floor = np.array(FLOORS["glide"][key])
    assert (found <= 10 * floor + 2e-5).all(), (found, floor)


def test_glides_upsampler_by_ddim_over_fast27(glide):
    before, after, noise = run_of(glide, "upsample_ddim_fast27", "x_T_upsample")
    rounded = images.to_float(images.to_uint8(np.moveaxis(glide["low_res"], -3, -1)))
    np.testing.assert_allclose(rounded, nhwc(glide["low_res_rounded"]), atol=1e-6)
    count = len(before[0])
    cond = {"tokens": jnp.asarray(glide["tokens"][:count], jnp.int32), "mask": jnp.asarray(glide["mask"][:count])}
    denoiser = guidance.clip_x0(denoiser_of(network("sr_text2im_x2"), LINEAR), LINEAR)
    found = differences(
        ddim(LINEAR), denoiser, grids.respaced(1000, "fast27"), before, after, cond | {"low_res": rounded}
    )
    floor = np.array(FLOORS["glide"]["upsample_ddim_fast27"])
    assert (found <= 10 * floor + 2e-5).all(), (found, floor)


# What rounding alone moves each step by: the originals run twice, with and without oneDNN.
FLOORS = {
    "adm_classifier_guided": {
        "ddpm8": [1.6e-05, 5.8e-05, 2.4e-05, 2e-05, 1.5e-05, 1.4e-05, 3.2e-05, 2.4e-07],
        "ddpm8_guided": [1.6e-05, 3.4e-05, 6.1e-05, 2.2e-05, 2.2e-05, 1.2e-05, 0.0011, 3e-07],
        "ddim10_eta0": [1.6e-05, 2.4e-05, 1.1e-05, 1.3e-05, 7.3e-06, 8.6e-06, 4.7e-06, 3.9e-06, 4.9e-06, 1.2e-07],
        "ddim10_eta0_guided": [
            1.5e-05,
            1.3e-05,
            1.2e-05,
            7.9e-06,
            9.7e-06,
            7.4e-06,
            6.3e-06,
            4.9e-06,
            6.4e-06,
            2.4e-07,
        ],
    },
    "adm_super_resolution": {
        "ddpm6": [2.2e-05, 3.1e-05, 1.1e-05, 8.6e-06, 0.00014, 8.9e-08],
    },
    "glide": {
        "cfg_ddpm6": [4.8e-07, 3.7e-05, 1.6e-05, 3.4e-05, 3.5e-05, 1.8e-07],
        "cfg_inpaint_ddpm6": [6e-07, 3.7e-05, 2e-05, 1.9e-05, 5e-05, 4e-07],
        "upsample_ddim_fast27": [
            1.4e-05,
            6e-08,
            1.2e-05,
            1.2e-07,
            4.4e-06,
            4.2e-06,
            1.2e-07,
            4.8e-07,
            4.2e-07,
            4.8e-07,
            3.6e-07,
            4.1e-07,
            5.4e-07,
            4.8e-07,
            6e-07,
            5.7e-07,
            1.2e-07,
            5.4e-07,
            4.2e-07,
            6.6e-07,
            4.2e-07,
            4.2e-07,
            6.9e-07,
            4.2e-07,
            4.2e-07,
            6e-07,
            1.2e-07,
        ],
    },
}
