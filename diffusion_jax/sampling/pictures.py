"""Given pictures in sampling: reading them, and turning a request for an edit into where sampling starts and what it holds."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, UnidentifiedImageError

from diffusion_jax import editing, grids, images
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Inputs

DEFAULT_STRENGTH = 0.7  # of SDEdit: enough to follow another prompt, little enough to keep the picture's layout
MASKED = (127, 127, 127)  # how the part to be redrawn is shown


@dataclasses.dataclass(frozen=True)
class Edit:
    """What sampling does with given pictures; see sample.py's flags of the same names."""

    init_images: tuple[str, ...] = ()
    mask: str | None = None
    strength: float | None = None
    edit: str | None = None
    resamples: int = 5
    observation_noise: float = 0.1
    invert: bool = False
    interpolate: bool = False


class Given(NamedTuple):
    """The pictures, uint8 [N, H, W, C], and the mask [H, W, 1], True where they are kept; None where there is none."""

    pictures: np.ndarray | None
    mask: np.ndarray | None

    def rows(self) -> list[tuple[str, np.ndarray]]:
        """Rows of a labelled grid that show what was given."""
        if self.pictures is None:
            return []
        rows = [("given", self.pictures)]
        if self.mask is not None:
            shown = np.where(self.mask, self.pictures, np.uint8(MASKED[: self.pictures.shape[-1]]))
            rows.append(("kept", shown.astype(np.uint8)))
        return rows


class Plan(NamedTuple):
    """How an edit is sampled: along which grid, from what, and holding what (one of `generate.EDITS`)."""

    grid: Float[np.ndarray, "N+1"]
    edit: str
    inputs: Inputs
    remark: str


class Draw(NamedTuple):
    """What an edit needs of the model, for `count` images.

    noise: indices -> the first states [N, H, W, C].
    invert: (pictures [N, H, W, C] in [-1, 1], grid) -> the states at grid[0] that lead to them.
    """

    count: int
    noise: Callable[[np.ndarray], np.ndarray]
    invert: Callable[[np.ndarray, np.ndarray], np.ndarray]


def check(edit: Edit) -> None:
    """Raises UserError for flags that do not go together, before anything slow."""
    needs = [
        ("--mask", edit.mask is not None),
        ("--strength", edit.strength is not None),
        ("--edit", edit.edit is not None),
        ("--invert", edit.invert),
    ]
    if not edit.init_images and (flag := next((flag for flag, used in needs if used), None)):
        raise UserError(f"{flag} says what to do with a picture: give one with --init_image.")
    if edit.edit in ("replace", "repaint") and edit.mask is None:
        raise UserError(f"--edit={edit.edit} keeps a part of the picture: say which with --mask.")
    if edit.edit == "product" and edit.observation_noise <= 0:
        raise UserError("--edit=product takes the picture for a noisy one: --observation_noise must be positive.")
    if edit.invert and (edit.mask or edit.edit):
        raise UserError("--invert redraws the whole picture from its own noise; it takes neither --mask nor --edit.")
    wanted = 2 if edit.interpolate else 1
    if edit.interpolate and edit.init_images and not edit.invert:
        raise UserError("--interpolate goes between two pictures by their noise: add --invert.")
    if edit.init_images and len(edit.init_images) != wanted:
        raise UserError(f"give {wanted} --init_image here; got {len(edit.init_images)}.")


def read(edit: Edit, image_shape: tuple[int, int, int]) -> Given:
    """Reads the pictures and the mask, cropped to the middle and resized to the model's size.

    Raises:
      UserError: a file is not there or is no picture.
    """
    if not edit.init_images:
        return Given(None, None)
    shown = np.stack([_open(path, "--init_image", image_shape, Image.Resampling.BICUBIC) for path in edit.init_images])
    if edit.mask is None:
        return Given(shown, None)
    return Given(shown, read_mask(edit.mask, "--mask", image_shape[:2]))


def read_mask(path: str, flag: str, size: tuple[int, int]) -> Bool[np.ndarray, "H W 1"]:
    """What a mask file keeps, at (height, width): True where it is black.

    Raises:
      UserError: it is no picture, or all of one kind.
    """
    redrawn = _open(path, flag, (*size, 1), Image.Resampling.NEAREST) > 127
    if redrawn.all() or not redrawn.any():
        raise UserError(
            f"{flag}={path} is all {'white' if redrawn.all() else 'black'}: paint white what is to be redrawn and black "
            "what stays."
        )
    return ~redrawn


def plan(edit: Edit, given: Given, grid: Float[np.ndarray, "N+1"], draw: Draw) -> Plan:
    """Where sampling starts and what it holds.

    Args:
      edit: the request, checked.
      given: from `read`.
      grid: the times of plain sampling.
      draw: the model's part.
    """
    grid = np.asarray(grid)
    if given.pictures is None:
        if not edit.interpolate:
            return Plan(grid, "none", Inputs(), "")
        ends = draw.noise(np.array([0, draw.count - 1]))
        return Plan(grid, "none", Inputs(latents=_between(ends, draw.count)), ", between two noises")
    pictures = images.to_float(given.pictures)
    picture = np.broadcast_to(pictures[0], (draw.count, *pictures.shape[1:]))
    strength = edit.strength
    if strength is None:
        strength = 1.0 if edit.edit or edit.invert or given.mask is not None else DEFAULT_STRENGTH
    begin = int(editing.first_step(len(grid) - 1, strength))
    if begin == len(grid) - 1:
        raise UserError(
            f"--strength={strength:g} leaves the picture as it is with {len(grid) - 1} steps; use more of either."
        )
    if edit.invert:
        latents = draw.invert(pictures, grid[begin:])
        latents = _between(latents, draw.count) if edit.interpolate else np.repeat(latents, draw.count, axis=0)
        return Plan(
            grid, "none", Inputs(latents=latents, begin=begin), f", from inverted pictures at strength {strength:g}"
        )
    if given.mask is None and edit.edit is None:
        return Plan(grid, "none", Inputs(picture=picture, begin=begin), f", from a picture at strength {strength:g}")
    how = edit.edit or "replace"
    mask = np.ones((*picture.shape[:3], 1), bool) if given.mask is None else given.mask
    mask = np.broadcast_to(mask, (*picture.shape[:3], 1))
    if how == "repaint":
        first = grid[begin]
        grid = np.asarray(grids.resampled(grid, min(10, len(grid) - 1), edit.resamples))
        begin = int(np.argmax(grid <= first))
    return Plan(grid, how, Inputs(picture=picture, mask=mask, begin=begin), f", edit {how} at strength {strength:g}")


def _between(ends: np.ndarray, count: int) -> np.ndarray:
    """`count` states from the first of two to the second."""
    fractions = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    return np.stack([np.asarray(editing.slerp(ends[0], ends[-1], float(fraction))) for fraction in fractions])


def _open(path: str, flag: str, shape: tuple[int, int, int], resample: Image.Resampling) -> np.ndarray:
    """A picture file as uint8 [H, W, C]: the largest middle part of the wanted proportions, resized."""
    height, width, channels = shape
    try:
        with Image.open(path) as file:
            picture = file.convert("RGBA") if channels == 3 else file.convert("L")
    except (UnidentifiedImageError, OSError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is no picture that can be read"
        )
        raise UserError(f"{flag}={path}: {reason}.") from error
    if channels == 3:  # what is transparent shows a white page
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    scale = min(picture.width / width, picture.height / height)
    crop_width, crop_height = round(width * scale), round(height * scale)
    left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
    picture = picture.crop((left, top, left + crop_width, top + crop_height))
    if picture.size != (width, height):
        picture = picture.resize((width, height), resample)
    return np.asarray(picture, np.uint8).reshape(shape)
