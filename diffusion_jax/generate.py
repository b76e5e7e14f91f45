"""Conditions -> images, in batches over all devices. Image i depends on (parameters, seed, i, its condition) alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax import images, samplers
from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.guidance import classifier_free, clip_x0
from diffusion_jax.keys import keys_per_example
from diffusion_jax.models import Params
from diffusion_jax.samplers import Sampler
from diffusion_jax.schedules import Schedule
from diffusion_jax.training.placement import Placement

Progress = Callable[[int], None]


def make_generate(
    denoiser_of: Callable[[Params], Denoiser],
    null_cond: Cond,
    schedule: Schedule,
    sampler: Sampler,
    image_shape: tuple[int, int, int],
    placement: Placement,
    clip: bool,
) -> Callable[..., np.ndarray]:
    """A function that samples images.

    The whole sampling loop is one compiled program; parameters, seed, condition, guidance scale and the grid's values
    are its run-time inputs. It compiles once for a batch size and a number of steps.

    Args:
      denoiser_of: params -> Denoiser.
      null_cond: the null condition of one example; {} for a model without condition, which is not guided.
      schedule: the forward process, for clipping.
      sampler: the method.
      image_shape: (H, W, C).
      placement: devices to spread a batch over.
      clip: clamp predicted x0 to [-1, 1].

    Returns:
      generate(params, cond [N, ...], indices [N], seed, guidance_scale, grid, batch_size, progress=None) -> uint8
      [N, H, W, C]. `progress` is called with the steps done since the last call, of (batches) x (steps) in all.
    """

    def program(shared: dict[str, Any], batch: dict[str, Any], axis_name: str | None) -> tuple[Array, Any]:
        keys = keys_per_example(jax.random.key(shared["seed"]), batch["index"])
        denoiser = denoiser_of(shared["params"])
        if jax.tree.leaves(null_cond):
            denoiser = classifier_free(denoiser, null_cond, shared["guidance_scale"])
        if clip:
            denoiser = clip_x0(denoiser, schedule)
        noise = samplers.initial_noise(keys, image_shape)
        fresh = (noise, sampler.init(noise))
        carry = jax.tree.map(lambda new, old: jnp.where(shared["first"] == 0, new, old), fresh, batch["carry"])
        return samplers.run(
            sampler, denoiser, carry, shared["grid"], batch["cond"], keys, shared["first"], shared["last"]
        )

    compiled = placement.map(program)

    def generate(
        params: Params,
        cond: Cond,
        indices: Int[np.ndarray, "N"],
        seed: int,
        guidance_scale: float,
        grid: Float[Array, "T+1"],
        batch_size: int,
        progress: Progress | None = None,
    ) -> np.ndarray:
        num_steps = len(grid) - 1
        # Parts of the loop at a time only where somebody watches.
        stops = np.unique(np.linspace(0, num_steps, 11 if progress else 2).round().astype(int))
        shared = {
            "params": placement.replicate(params),
            "seed": np.uint32(seed),
            "guidance_scale": np.float32(guidance_scale),
            "grid": grid,
        }
        parts = []
        for start in range(0, len(indices), batch_size):
            batch = _padded({"index": np.asarray(indices), "cond": cond}, start, batch_size)
            x = jnp.zeros((batch_size, *image_shape))
            carry = jax.tree.map(
                lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda x: (x, sampler.init(x)), x)
            )
            for first, last in zip(stops, stops[1:], strict=False):
                bounds = {"first": np.int32(first), "last": np.int32(last)}
                carry = compiled(shared | bounds, batch | {"carry": carry})
                if progress:
                    jax.block_until_ready(carry)
                    progress(int(last - first))
            parts.append(images.to_uint8(carry[0])[: len(indices) - start])
        return np.concatenate(parts)

    return generate


def _padded(tree: Any, start: int, size: int) -> Any:
    """Rows start..start + size of every leaf; beyond the end the last row again, so that one program serves all."""

    def rows(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf[np.minimum(np.arange(start, start + size), len(leaf) - 1)]

    return jax.tree.map(rows, tree)
