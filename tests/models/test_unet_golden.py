"""The U-Net against OpenAI's own numbers, on their weights."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_jax.interop.openai import state_dict_keys, unet_params
from diffusion_jax.models.text import TextTransformer
from diffusion_jax.models.unet import UNet, make_network

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "networks"
TOKENS = {"vocab_size": 64, "context_length": 16, "width": 32, "num_layers": 2, "num_heads": 2}
CASES = {
    "unet_class_headch16_neworder_ssn_updown_sigma": UNet(
        out_channels=6,
        model_channels=32,
        channel_mults=(1, 1),
        num_res_blocks=1,
        attention_factors=(1, 2),
        num_head_channels=16,
        qkv_order="new",
        num_classes=10,
    ),
    "unet_uncond_heads4_legacy": UNet(
        out_channels=3,
        model_channels=32,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_factors=(2,),
        num_heads=4,
        adaptive_norm=False,
        resblock_updown=False,
    ),
    "text2im_padding": UNet(
        out_channels=6,
        model_channels=32,
        channel_mults=(1, 1),
        num_res_blocks=1,
        attention_factors=(2,),
        num_head_channels=16,
        dropout=0.1,
        text=TextTransformer(**TOKENS),
    ),
}


def load(case, **changes):
    """Our network with the original's weights, its inputs and numbers."""
    io = dict(np.load(GOLDEN / case / "io.npz"))
    config = json.loads((GOLDEN / case / "config.json").read_text())
    network = make_network(CASES[case].clone(**changes), (16, 16, 3))
    template = jax.eval_shape(network.init, jax.random.key(0))
    params = unet_params(load_file(GOLDEN / case / "weights.safetensors"), template)
    cond = {}
    if "y" in io:
        cond["label"] = jnp.asarray(io["y"], jnp.int32)
    if "tokens" in io:
        cond |= {"tokens": jnp.asarray(io["tokens"], jnp.int32), "mask": jnp.asarray(io["mask"])}
    return network, params, to_nhwc(io["x"]), jnp.asarray(io["timesteps"], jnp.float32), cond, io, config


def to_nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradient_are_the_originals(case):
    network, params, x, time, cond, io, config = load(case)
    tolerance = 10 * config["noise_floor_absmax_onednn_off_1thread"]
    probe = to_nhwc(io["probe"])

    def probed(x):
        out = network.apply(params, x, time, cond)
        return jnp.sum(out * probe), out

    (_, out), grad = jax.jit(jax.value_and_grad(probed, has_aux=True))(x)
    np.testing.assert_allclose(out, to_nhwc(io["out"]), atol=tolerance, rtol=0)
    grad_scale = np.abs(io["grad_x"]).max()
    np.testing.assert_allclose(grad, to_nhwc(io["grad_x"]), atol=max(tolerance, 1e-4 * grad_scale), rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_errs_little_more_than_its_weights_must(case):
    """These random networks amplify rounding: bfloat16 weights alone, computed in float32, move the output by 2 to 9%."""
    network, params, x, time, cond, io, _ = load(case, dtype=jnp.bfloat16)
    exact, rounded = (load(case)[0], jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params))
    want = to_nhwc(io["out"])
    out, unavoidable = (jax.jit(n.apply)(p, x, time, cond) for n, p in ((network, params), (exact, rounded)))
    assert out.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(out - want) < 2.5 * jnp.linalg.norm(unavoidable - want)


@pytest.mark.parametrize("case", CASES)
def test_rematerialisation_changes_no_value(case):
    network, params, x, time, cond, io, config = load(case, remat=True)
    out = jax.jit(network.apply)(params, x, time, cond)
    np.testing.assert_allclose(
        out, to_nhwc(io["out"]), atol=10 * config["noise_floor_absmax_onednn_off_1thread"], rtol=0
    )


PUBLISHED = {
    # guided-diffusion's README, 64x64_diffusion.pt; glide-text2im's model_creation.py, base.pt and upsample.pt
    "adm_64_cond": (
        295_904_454,
        UNet(6, 192, (1, 2, 3, 4), 3, (2, 4, 8), num_head_channels=64, qkv_order="new", dropout=0.1, num_classes=1000),
        (64, 64, 3),
    ),
    "adm_128_cond": (
        421_529_606,
        UNet(6, 256, (1, 1, 2, 3, 4), 2, (4, 8, 16), num_heads=4, num_classes=1000),
        (128, 128, 3),
    ),
    "glide_base": (
        385_030_726,
        UNet(
            6, 192, (1, 2, 3, 4), 3, (2, 4, 8), num_head_channels=64, dropout=0.1,
            text=TextTransformer(50257, 128, 512, 16, 8),
        ),
        (64, 64, 3),
    ),
    "iddpm_cifar10_uncond": (
        52_546_438,
        UNet(6, 128, (1, 2, 2, 2), 3, (2, 4), num_heads=4, resblock_updown=False, dropout=0.3),
        (32, 32, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_parameters_names_and_shapes(name):
    count, module, image_shape = PUBLISHED[name]
    template = jax.eval_shape(make_network(module, image_shape).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(template)) == count
    rows = (GOLDEN / f"{name}.tsv").read_text().splitlines()
    published = {key: np.prod([int(n) for n in shape.split("x")]) for key, shape in (row.split("\t") for row in rows)}
    ours = {key: np.prod(shape) for key, shape in state_dict_keys(template).items()}
    assert ours == published
