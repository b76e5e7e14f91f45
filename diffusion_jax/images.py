"""Images at the edges: float in [-1, 1] inside, uint8 [0, 255] outside; PNG files and labelled grids."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont


def to_float(images: UInt8[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
    """uint8 -> x / 127.5 - 1, in [-1, 1]; NumPy or JAX arrays."""
    return images.astype(np.float32) / 127.5 - 1


def to_uint8(images: Any) -> UInt8[np.ndarray, "*B H W C"]:
    """[-1, 1] -> uint8, rounded to the nearest as GLIDE does (ADM truncates); values outside are clamped."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def to_pil(image: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    """One image of 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def labelled_grid(
    rows: Sequence[tuple[str, UInt8[np.ndarray, "N H W C"]]], cell_pixels: int = 96, gap_pixels: int = 4
) -> Image.Image:
    """One row of images per label, the label written above its row.

    Args:
      rows: (label, images) pairs; rows may differ in length.
      cell_pixels: side to which small images are enlarged, by a whole factor and without smoothing.
      gap_pixels: white space between images.
    """
    scale = max(1, cell_pixels // max(rows[0][1].shape[1:3]))
    height, width = (side * scale for side in rows[0][1].shape[1:3])
    font = ImageFont.load_default(13)
    text_pixels = 20
    columns = max(len(images) for _, images in rows)
    total_width = (
        max(columns * (width + gap_pixels), max(int(font.getlength(label)) + 2 for label, _ in rows)) + gap_pixels
    )
    canvas = Image.new("RGB", (total_width, len(rows) * (height + text_pixels + gap_pixels) + gap_pixels), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (label, images) in enumerate(rows):
        top = gap_pixels + i * (height + text_pixels + gap_pixels)
        draw.text((gap_pixels, top), label, fill="black", font=font)
        for j, image in enumerate(images):
            tile = to_pil(image).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            left = gap_pixels + j * (width + gap_pixels)
            canvas.paste(tile, (left, top + text_pixels))
            draw.rectangle(
                (left - 1, top + text_pixels - 1, left + width, top + text_pixels + height), outline="#c0c0c0"
            )
    return canvas


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG through a temporary file, so that a stopped run leaves no half picture."""
    path = os.fspath(path)
    image.save(path + ".tmp", format="PNG")
    os.replace(path + ".tmp", path)
