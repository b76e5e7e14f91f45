"""ADM's classifier of noisy images: the U-Net's way down and middle, and one of four pools."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.denoiser import Cond
from diffusion_jax.models import Network, Params
from diffusion_jax.models.attention import attend
from diffusion_jax.models.layers import GroupNorm
from diffusion_jax.models.trunk import Told, Trunk, check_trunk

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
SPATIAL_WIDTH = 2048
FEATURES = ("intermediates", "features")  # where a pool leaves what its last layer reads, for whom it may concern


class Classifier(Trunk):
    """ADM's classifier: (x [B, H, W, C], time [B], cond) -> logits [B, out_channels]. The condition is not read.

    pool:
      attention: `AttentionPool` of silu(norm(h)), h the middle's output; ties the network to one image size.
      adaptive: dense(mean over pixels of silu(norm(h))), zero at initialisation.
      spatial: dense(relu(dense(f))), f the means over pixels of every block's output on the way down, and of h.
      spatial_v2: dense(silu(norm(dense(f)))).

    All of a pool is computed in float32; what its last dense layer reads are the features of `make_features`.
    Source: guided-diffusion's `EncoderUNetModel`.
    """

    pool: str = "attention"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, "B"],
        cond: Cond = None,
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B K"]:
        told = Told(self.embed_time(time), None, dropout_keys)
        blocks = self.down(x, told)
        h = self.middle(blocks[-1], told).astype(jnp.float32)
        if self.pool.startswith("spatial"):
            means = [block.astype(jnp.float32).mean((1, 2)) for block in (*blocks, h)]
            f = nn.Dense(SPATIAL_WIDTH, name=f"{self.pool}_in")(jnp.concatenate(means, axis=-1))
            v2 = self.pool == "spatial_v2"
            f = nn.silu(GroupNorm(self.norm_groups, name="spatial_v2_norm")(f)) if v2 else nn.relu(f)
            self.sow(*FEATURES, f)
            return nn.Dense(self.out_channels, name=f"{self.pool}_out")(f)
        h = nn.silu(GroupNorm(self.norm_groups, name="norm_out")(h))
        if self.pool == "attention":
            assert self.num_head_channels, "make_classifier has seen to it"
            return AttentionPool(self.out_channels, self.num_head_channels, name="attention_pool")(h)
        f, zeros = h.mean((1, 2)), nn.initializers.zeros
        self.sow(*FEATURES, f)
        return nn.Dense(self.out_channels, kernel_init=zeros, name="adaptive_out")(f)


class AttentionPool(nn.Module):
    """The pixels' mean attends to itself and to all of them; each has a learned position. qkv is laid out [q|k|v][head][channel].

    Source: guided-diffusion's `AttentionPool2d`, after CLIP's.
    """

    features: int
    head_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        b, height, width, c = x.shape
        x = x.reshape(b, height * width, c)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)  # [B, 1 + N, C]
        x = x + self.param("position_embed", nn.initializers.normal(c**-0.5), x.shape[1:])
        qkv = nn.Dense(3 * c, name="qkv")(x)
        q, k, v = (part.reshape(b, -1, c // self.head_channels, self.head_channels) for part in jnp.split(qkv, 3, -1))
        h = attend(q[:, :1], k, v).reshape(b, c)  # only the mean's answer is wanted
        self.sow(*FEATURES, h)
        return nn.Dense(self.features, name="out")(h)


def make_classifier(module: Classifier, image_shape: tuple[int, int, int]) -> Network:
    """The classifier as a pair of pure functions; `apply` returns logits [B, K].

    Args:
      module: the hyper-parameters.
      image_shape: (H, W, C) of x.

    Raises:
      ValueError: as for a U-Net; or the pool is unknown, or the attention pool lacks num_head_channels.
    """
    check_trunk(module, image_shape)
    if module.pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}; got {module.pool!r}.")
    if module.pool == "attention" and not module.num_head_channels:
        raise ValueError("The attention pool takes its heads from num_head_channels: set it.")

    def init(key: Key[Array, ""]) -> Any:
        return module.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1))["params"]

    def apply(params: Any, x: Array, time: Array, cond: Cond = None, dropout_keys: Array | None = None) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, time, cond, dropout_keys))

    return Network(init, apply)


def make_features(
    module: Classifier,
) -> Callable[[Params, Float[Array, "B H W C"], Float[Array, "B"]], tuple[Float[Array, "B F"], Float[Array, "B K"]]]:
    """(params, x [B, H, W, C], time [B]) -> the pool's features before its last layer [B, F], and the logits [B, K]."""

    def apply(params: Params, x: Array, time: Array) -> tuple[Array, Array]:
        logits, kept = module.apply({"params": params}, x, time, mutable=[FEATURES[0]])
        (features,) = jax.tree.leaves(kept)
        return features, jnp.asarray(logits)

    return apply
