"""Random parts of a picture to repaint, which an inpainting network is trained on: 1 where the picture is given, 0 to repaint.

Each kind is a function of a key: an example's mask depends on its own key alone, and is made on the device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

STROKES = 8  # straight pieces of a stroke


def random_masks(keys: Key[Array, "B"], height: int, width: int) -> Float[Array, "B H W 1"]:
    """A mask per key, of a kind drawn with the shares in KINDS.

    Args:
      keys: one per example.
      height, width: in pixels.

    Source: the inpainting fine-tune of Nichol et al. 2021 (GLIDE), section 4.3, which erases "random regions" and tells no more.
    """
    kinds, shares = list(KINDS), jnp.array(list(KINDS.values()))

    def one(key: Key[Array, ""]) -> Float[Array, "H W"]:
        kind_key, shape_key = jax.random.split(key)
        kind = jax.random.choice(kind_key, len(kinds), p=shares)
        # Where examples are mapped over, a switch computes every branch anyway.
        erased = jnp.stack([make(shape_key, height, width) for make in kinds])[kind]
        return 1.0 - erased

    return jax.vmap(one)(keys)[..., None]


def box(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "H W"]:
    """A rectangle whose sides are each an eighth to all of the picture's, anywhere in it."""
    size_key, place_key = jax.random.split(key)
    extent = jax.random.uniform(size_key, (2,), minval=0.125, maxval=1.0)
    start = jax.random.uniform(place_key, (2,)) * (1 - extent)
    y, x = _centres(height, width)
    return _between(y, start[0], extent[0]) & _between(x, start[1], extent[1])


def half(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "H W"]:
    """All beyond a line that is parallel to a side: the left, right, upper or lower quarter to three quarters."""
    side_key, share_key = jax.random.split(key)
    share = jax.random.uniform(share_key, minval=0.25, maxval=0.75)
    y, x = _centres(height, width)
    sides = jnp.stack(jnp.broadcast_arrays(x < share, x > 1 - share, y < share, y > 1 - share))
    return sides[jax.random.randint(side_key, (), 0, 4)]


def stroke(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "H W"]:
    """A brush's free way through the picture: straight pieces that turn at random, with round ends, of one thickness.

    The brush is a tenth to a quarter of the shorter side thick, a piece a tenth to four tenths of it long; at the picture's edge
    the way turns back.
    """
    start_key, first_key, turn_key, length_key, brush_key = jax.random.split(key, 5)
    side = min(height, width)
    radius = side * jax.random.uniform(brush_key, minval=0.05, maxval=0.125)
    direction = 2 * jnp.pi * jax.random.uniform(first_key) + jnp.cumsum(jax.random.normal(turn_key, (STROKES,)))
    length = side * jax.random.uniform(length_key, (STROKES,), minval=0.1, maxval=0.4)
    size = jnp.array([height, width])
    start = jax.random.uniform(start_key, (2,)) * size
    steps = length[:, None] * jnp.stack([jnp.sin(direction), jnp.cos(direction)], axis=-1)
    ends = (start + jnp.cumsum(steps, axis=0)) % (2 * size)
    ends = jnp.minimum(ends, 2 * size - ends)  # [STROKES, 2], mirrored at the edges
    starts = jnp.concatenate([start[None], ends[:-1]])
    y, x = _centres(height, width)
    near = _distance_squared(y * height, x * width, starts, ends) <= radius**2
    return near.any(0)


def whole(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "H W"]:
    """All of the picture, so that the network still makes pictures of captions alone."""
    return jnp.ones((height, width), bool)


# What is erased -> how often.
KINDS = {box: 0.3, half: 0.2, stroke: 0.3, whole: 0.2}


def _centres(height: int, width: int) -> tuple[Float[Array, "H 1"], Float[Array, "1 W"]]:
    """The pixels' centres, in units of the picture's sides."""
    return ((jnp.arange(height) + 0.5) / height)[:, None], ((jnp.arange(width) + 0.5) / width)[None]


def _between(x: Array, start: Array, extent: Array) -> Array:
    return (start <= x) & (x <= start + extent)


def _distance_squared(
    y: Float[Array, "H 1"], x: Float[Array, "1 W"], starts: Float[Array, "S 2"], ends: Float[Array, "S 2"]
) -> Float[Array, "S H W"]:
    """From each pixel to each straight piece."""
    (y0, x0), (dy, dx) = (part.T[..., None, None] for part in (starts, ends - starts))
    along = ((y - y0) * dy + (x - x0) * dx) / jnp.maximum(dy**2 + dx**2, 1e-9)
    along = jnp.clip(along, 0, 1)
    return (y - y0 - along * dy) ** 2 + (x - x0 - along * dx) ** 2
