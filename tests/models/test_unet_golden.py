"""The U-Net's other ways to compute, against OpenAI's own numbers; tests/interop/test_openai.py has the plain way."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_jax.interop.openai.names import from_state_dict
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
    params, _ = from_state_dict(load_file(GOLDEN / case / "weights.safetensors"), template)
    cond = {}
    if "y" in io:
        cond["label"] = jnp.asarray(io["y"], jnp.int32)
    if "tokens" in io:
        cond |= {"tokens": jnp.asarray(io["tokens"], jnp.int32), "mask": jnp.asarray(io["mask"])}
    return network, params, to_nhwc(io["x"]), jnp.asarray(io["timesteps"], jnp.float32), cond, io, config


def to_nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_errs_little_more_than_its_weights_must(case):
    """These random networks amplify rounding: bfloat16 weights alone, computed in float32, move the output by 2 to 9%."""
    network, params, x, time, cond, io, _ = load(case, dtype=jnp.bfloat16)
    exact, rounded = (load(case)[0], jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params))
    want = to_nhwc(io["out"])
    out, unavoidable = (jax.jit(n.apply)(p, x, time, cond) for n, p in ((network, params), (exact, rounded)))
    assert out.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(out - want) < 2.5 * jnp.linalg.norm(unavoidable - want)


@pytest.mark.parametrize("policy", ["full", "dots"])
@pytest.mark.parametrize("case", CASES)
def test_rematerialisation_changes_no_value(case, policy):
    network, params, x, time, cond, io, config = load(case, remat=policy)
    out = jax.jit(network.apply)(params, x, time, cond)
    np.testing.assert_allclose(
        out, to_nhwc(io["out"]), atol=10 * config["noise_floor_absmax_onednn_off_1thread"], rtol=0
    )
