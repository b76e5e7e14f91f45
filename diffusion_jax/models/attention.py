"""Attention, the one function of all networks here, by the implementation that suits the machine and the shapes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "flash")
FLASH_TOKENS = 1024  # below, XLA's form is as fast on a TPU and the kernel has nothing to save
FLASH_BLOCK = 128  # the kernel takes whole blocks of queries and of keys
CUDNN_WIDTH = 128  # most channels of a head


def choose(name: str, platform: str, partitioned: bool) -> str:
    """The implementation that `name` means on a platform: "xla", "cudnn" or "flash".

    Args:
      name: one of IMPLEMENTATIONS; auto is cuDNN on a GPU, Pallas' flash attention on a TPU and XLA elsewhere.
      platform: of the devices that will run it ("cpu", "gpu", "tpu"), which need not be those of this machine.
      partitioned: whether the compiler shall split the program over devices. It cannot split a Pallas kernel, so that
        flash attention is then XLA's form.

    Raises:
      ValueError: the name is unknown, or the implementation is not for the platform.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be one of {', '.join(IMPLEMENTATIONS)}; got {name!r}.")
    needs = {"cudnn": "gpu", "flash": "tpu"}
    if name == "auto":
        name = next((own for own, where in needs.items() if where == platform), "xla")
    elif needs.get(name, platform) != platform:
        raise ValueError(
            f"attention={name} is for a {needs[name].upper()}, and this is a {platform.upper()}: use auto."
        )
    return "xla" if name == "flash" and partitioned else name


def attend(
    q: Float[Array, "B N heads D"],
    k: Float[Array, "B M heads D"],
    v: Float[Array, "B M heads D"],
    implementation: str = "xla",
    is_causal: bool = False,
) -> Float[Array, "B N heads D"]:
    """softmax(q k^T / sqrt(D)) v, logits and softmax in float32; what jax.nn.dot_product_attention computes.

    Args:
      q, k, v: of one type; heads side by side.
      implementation: "xla", or "cudnn" (16-bit types, D a multiple of 8 up to 128) or "flash" (1024 tokens and more,
        whole blocks of 128); where a kernel does not take the shapes, XLA's form is used.
      is_causal: query n sees the keys up to n alone.
    """
    if implementation == "cudnn" and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= CUDNN_WIDTH:
        return jax.nn.dot_product_attention(q, k, v, is_causal=is_causal, implementation="cudnn")
    if (
        implementation == "flash"
        and q.shape[1] >= FLASH_TOKENS
        and not (q.shape[1] % FLASH_BLOCK or k.shape[1] % FLASH_BLOCK)
    ):
        return _flash(q, k, v, is_causal)
    return _plain(q, k, v, is_causal)


def _plain(q: Array, k: Array, v: Array, is_causal: bool) -> Array:
    """The sum over keys is divided, not the weights: a division per channel and not per key; heads lie before tokens."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if is_causal:
        logits = jnp.where(jnp.tri(*logits.shape[-2:], dtype=bool), logits, -jnp.inf)
    # Subtracting the largest logit changes no value, so that no gradient need pass it.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype).swapaxes(1, 2)


def _flash(q: Array, k: Array, v: Array, is_causal: bool) -> Array:
    """Pallas' kernel for TPUs: the logits are never written to memory."""
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return flash_attention(q, k, v, causal=is_causal, sm_scale=q.shape[-1] ** -0.5).swapaxes(1, 2)
