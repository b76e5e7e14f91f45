"""Pictures from files: to the channels, the size and the crop that a network takes.

Whatever a file holds becomes uint8 RGB or grey. The resizing is ADM's, so that figures can be compared with its own.
"""

import io
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from diffusion_jax.data.faults import BadExample

CROPS = ("centre", "random", "none")
_MODES = {1: "L", 3: "RGB"}


class Framing(NamedTuple):
    """How a picture comes to the network's shape.

    crop: "centre" or "random" square of the picture, or "none": the whole picture, squeezed to a square.
    random_crop_min: random: the least side of the square as a share of the picture's short side; ADM's classifiers take 0.8.
    flip: whether half of the pictures are mirrored, left for right.
    """

    crop: str = "centre"
    random_crop_min: float = 0.8
    flip: bool = False


def decode(data: bytes, channels: int = 3) -> UInt8[np.ndarray, "H W C"]:
    """A file's picture, upright: EXIF's orientation is applied.

    16-bit grey is divided by 257; palettes are looked up; what is transparent lies over white; CMYK and other colour spaces are
    converted as Pillow does, without colour profiles; of an animation the first frame counts. Grey is Pillow's luma.

    Args:
      data: a PNG, JPEG, WebP or any other file that Pillow reads.
      channels: 3 for RGB, 1 for grey.

    Raises:
      BadExample: there is no whole picture in it; the text says why, not where.
    """
    if not data:
        raise BadExample("is empty (zero bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _array(_to_mode(ImageOps.exif_transpose(image), _MODES[channels]))
    except BadExample:
        raise
    except (
        Exception
    ) as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more on damage
        reason = " ".join(str(error).split()).replace(" <_io.BytesIO object", " the data <")
        raise BadExample(
            f"cannot be read as a picture ({reason.split(' the data <')[0] or type(error).__name__})"
        ) from error


def to_channels(image: UInt8[np.ndarray, "H W D"], channels: int) -> UInt8[np.ndarray, "H W C"]:
    """An array of 1, 3 or 4 channels (grey, RGB, RGBA) as one of 1 or 3; RGBA lies over white."""
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] == channels:
        return image
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or image.dtype != np.uint8:
        raise BadExample(f"is no picture: {image.dtype} of shape {image.shape}, not uint8 with 1, 3 or 4 channels")
    return _array(_to_mode(_pil(image), _MODES[channels]))


def frame(
    image: UInt8[np.ndarray, "H W C"], size: int, framing: Framing, rng: np.random.Generator | None
) -> UInt8[np.ndarray, "S S C"]:
    """The square picture of `size` pixels per side.

    Args:
      image: of any height and width.
      size: pixels per side.
      framing: the crop and whether to mirror.
      rng: decides a random crop and the mirroring; None takes the centre and does not mirror, as for evaluation.
    """
    if framing.crop == "none":
        square = _squeeze(image, size)
    elif framing.crop == "random" and rng is not None:
        square = random_crop(image, size, rng, framing.random_crop_min)
    else:
        square = centre_crop(image, size)
    if framing.flip and rng is not None and rng.random() < 0.5:
        square = square[:, ::-1]
    return np.ascontiguousarray(square)


def centre_crop(image: UInt8[np.ndarray, "H W C"], size: int) -> UInt8[np.ndarray, "S S C"]:
    """The short side brought to `size`, then the middle square.

    Source: guided-diffusion's `center_crop_arr`.
    """
    if image.shape[:2] == (size, size):
        return image
    small = shrink(image, size)
    top, left = (small.shape[0] - size) // 2, (small.shape[1] - size) // 2
    return small[top : top + size, left : left + size]


def random_crop(
    image: UInt8[np.ndarray, "H W C"], size: int, rng: np.random.Generator, least: float = 0.8
) -> UInt8[np.ndarray, "S S C"]:
    """The short side brought to a random length from `size` to `size / least`, then a square at a random place.

    Source: guided-diffusion's `random_crop_arr`, with min_crop_frac = least and max_crop_frac = 1.
    """
    small = shrink(image, int(rng.integers(size, math.ceil(size / least), endpoint=True)))
    top = int(rng.integers(small.shape[0] - size, endpoint=True))
    left = int(rng.integers(small.shape[1] - size, endpoint=True))
    return small[top : top + size, left : left + size]


def shrink(image: UInt8[np.ndarray, "H W C"], short_side: int) -> UInt8[np.ndarray, "h w C"]:
    """The picture with its short side at `short_side` pixels: halved by means of 2 x 2 (BOX) while it is at least twice that, then
    BICUBIC. The last stage makes small pictures larger too.

    Source: guided-diffusion's image_datasets.py.
    """
    pil = _pil(image)
    while min(pil.size) >= 2 * short_side:
        pil = pil.resize((pil.width // 2, pil.height // 2), Image.Resampling.BOX)
    scale = short_side / min(pil.size)
    return _array(pil.resize((round(pil.width * scale), round(pil.height * scale)), Image.Resampling.BICUBIC))


def _squeeze(image: UInt8[np.ndarray, "H W C"], size: int) -> UInt8[np.ndarray, "S S C"]:
    pil = _pil(image)
    while min(pil.size) >= 2 * size:
        pil = pil.resize((pil.width // 2, pil.height // 2), Image.Resampling.BOX)
    return (
        image
        if pil.size == (size, size) == image.shape[:2]
        else _array(pil.resize((size, size), Image.Resampling.BICUBIC))
    )


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which some readers widen to 32
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip((values + 128) // 257, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise BadExample("holds floating-point numbers, whose white is not known; store 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _pil(image: Any) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _array(image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
    array = np.array(image)  # a copy: Pillow's own memory is read-only
    return array[..., None] if array.ndim == 2 else array
