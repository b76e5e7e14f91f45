"""One attention function: equal to the plain form everywhere, and the implementation that a platform gets."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.attention import attend, choose

AHEAD = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from diffusion_jax.models.attention import attend
device = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices[0]
q, text = (jax.ShapeDtypeStruct((1, n, 2, 64), jnp.bfloat16, sharding=SingleDeviceSharding(device)) for n in (1024, 1152))
grad = jax.grad(lambda *args: attend(*args, "flash").astype(jnp.float32).sum(), (0, 1, 2))
print(jax.jit(grad).lower(q, text, text).compile().as_text().count("tpu_custom_call"))
"""


def inputs(dtype=jnp.float32, keys=9):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(3 * rng.standard_normal((2, n, 3, 8)), dtype) for n in (9, keys, keys))


def exact(q, k, v, is_causal):
    """In float64, an example and a head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.empty_like(q)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        logits = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
        if is_causal:
            logits[np.triu_indices(len(logits), 1)] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h]
    return out


@pytest.mark.parametrize("keys, is_causal", [(9, False), (9, True), (14, False)])
def test_attention_is_the_softmax_of_the_scaled_products(keys, is_causal):
    args = inputs(keys=keys)
    np.testing.assert_allclose(attend(*args, "xla", is_causal), exact(*args, is_causal), atol=1e-5)


def test_gradients_are_those_of_jax_own_attention():
    args, weight = inputs(), jnp.cos(jnp.arange(8.0))
    ours, theirs = (
        jax.grad(lambda *x, fn=fn: (fn(*x) * weight).sum(), (0, 1, 2))(*args)
        for fn in (attend, jax.nn.dot_product_attention)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_large_logits_do_not_overflow():
    q, k, v = inputs()
    assert np.isfinite(attend(1e3 * q, 1e3 * k, v)).all()


def test_bfloat16_errs_by_the_rounding_of_its_weights_and_values():
    args = inputs(jnp.bfloat16)
    out = attend(*args)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), exact(*args, False), atol=0.03)


@pytest.mark.parametrize("implementation", ["cudnn", "flash"])
def test_shapes_that_a_kernel_does_not_take_go_the_plain_way(implementation):
    args = inputs()
    np.testing.assert_array_equal(attend(*args, implementation), attend(*args, "xla"))


@pytest.mark.parametrize(
    "name, platform, partitioned, want",
    [
        ("auto", "cpu", False, "xla"),
        ("auto", "gpu", True, "cudnn"),
        ("auto", "tpu", False, "flash"),
        ("auto", "tpu", True, "xla"),
        ("flash", "tpu", True, "xla"),
        ("xla", "tpu", False, "xla"),
    ],
)
def test_a_platform_gets_its_own_implementation(name, platform, partitioned, want):
    assert choose(name, platform, partitioned) == want


@pytest.mark.parametrize("name, message", [("flash", "for a TPU"), ("cudnn", "for a GPU"), ("other", "one of auto")])
def test_an_implementation_that_is_not_for_the_platform_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        choose(name, "cpu", False)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, TPUs' compiler")
def test_flash_attention_compiles_for_a_tpu_forward_and_backward():
    env = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    env |= {
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", AHEAD], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 3, "one kernel forward, two backward"
