"""Repainting of many pictures, each its own: edit after edit, and beyond the edges of a picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_jax import build, images
from diffusion_jax.denoiser import Cond
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Inputs
from diffusion_jax.sampling import pictures


class Round(NamedTuple):
    """One repainting: the pictures, what of them is kept, and how many rounds there were before, which its noise depends on."""

    pictures: UInt8[np.ndarray, "N H W C"]
    kept: Bool[np.ndarray, "N H W 1"]
    number: int


def plan(this: Round, grid: Float[np.ndarray, "T+1"]) -> pictures.Plan:
    """How a round is sampled: from noise, holding what is kept as `editing.replace_known` does."""
    inputs = Inputs(picture=images.to_float(this.pictures), mask=this.kept)
    return pictures.Plan(np.asarray(grid), "replace", inputs, f", round {this.number}")


def shown(cond: Cond, model: build.Model, this: Round) -> Cond:
    """The condition with what an inpainting network is shown; of other networks as it is."""
    if "inpaint_mask" not in model.blank_cond:
        return cond
    kept = this.kept.astype(np.float32)
    return cond | {"inpaint_image": images.to_float(this.pictures) * kept, "inpaint_mask": kept}


def windows(size: tuple[int, int], border: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """Where a window of a picture's size is laid, one after the other, to draw a border around the picture.

    Each lies half over what is drawn already, or as much more as the border's end makes it; the first go sideways, and what is
    above and below follows, row by row outwards.

    Args:
      size: (height, width) of the picture and the window, even.
      border: from `margins`.

    Returns:
      (top, left) of each window within the whole, in order.
    """
    (height, width), (left, top, right, bottom) = size, border

    def outwards(before: int, after: int, side: int) -> list[int]:
        """Places along one axis, from the picture's own: towards its start, then towards its end."""
        step = side // 2
        down = list(range(before - step, 0, -step)) + [0] * (before > 0)
        up = list(range(before + step, before + after, step)) + [before + after] * (after > 0)
        return [before, *down, *up]

    places = [(y, x) for y in outwards(top, bottom, height) for x in outwards(left, right, width)]
    return places[1:]  # the first is the picture


def margins(values: Sequence[float]) -> tuple[int, int, int, int]:
    """The pixels of a border at the left, top, right and bottom.

    Raises:
      UserError: they are no such four numbers.
    """
    whole = tuple(map(int, values))
    if len(whole) != 4 or whole != tuple(values) or min(whole) < 0 or not any(whole):
        raise UserError(
            f"--outpaint={','.join(f'{value:g}' for value in values)}: wants LEFT,TOP,RIGHT,BOTTOM in whole pixels, such as "
            "16,0,16,0."
        )
    return whole


def canvas(
    picture: UInt8[np.ndarray, "H W C"], border: tuple[int, int, int, int], count: int
) -> tuple[UInt8[np.ndarray, "N h w C"], Bool[np.ndarray, "h w"]]:
    """The picture with a grey border (from `margins`) that is to be drawn, `count` times, and what of it is known."""
    left, top, right, bottom = border
    around = ((top, bottom), (left, right))
    whole = np.pad(picture, (*around, (0, 0)), constant_values=127)
    known = np.pad(np.ones(picture.shape[:2], bool), around)
    return np.repeat(whole[None], count, axis=0), known
