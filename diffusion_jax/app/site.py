"""One request from the page to the model and back: following it, keeping its result, reading the editor."""

import asyncio
import dataclasses
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.app import requests, results, view
from diffusion_jax.app.requests import Request
from diffusion_jax.app.results import Results
from diffusion_jax.app.service import Service
from diffusion_jax.app.tickets import Answer
from diffusion_jax.errors import UserError

LOOK_SECONDS = 0.15  # between two looks at how far a request is
MAX_PICTURE_PIXELS = 4096  # a side of a picture in the editor
COLUMNS = ("time", "prompt", "pictures", "guidance", "sampler", "steps", "seed", "edit", "seconds")


class Site(NamedTuple):
    """What the page serves.

    checkpoint, upsampler: as they were given, for the command that repeats a result.
    """

    service: Service
    results: Results
    checkpoint: str
    upsampler: str | None

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the pictures that the models make."""
        return tuple(sorted({self.service.model.image_shape[0], self.service.image_shape[0]}))

    @property
    def examples(self) -> list[str]:
        """Prompts of the checkpoint's own grids."""
        return list(self.service.model.config.sample.prompts)[:6]


async def follow(site: Site, request: Request) -> AsyncIterator[tuple[str, Answer | None]]:
    """Asks, and yields a line of HTML whenever it changes, at last with the answer. Who leaves gives the place up.

    Raises:
      UserError: as `Service.submit`.
    """
    ticket = await asyncio.to_thread(site.service.submit, request)
    said = None
    try:
        while not ticket.answer.done():
            job = ticket.job
            line = view.under_way(job and job.progress, site.service.ahead(ticket), ticket.request.number)
            if line != said:
                yield line, None
            said = line
            await asyncio.sleep(LOOK_SECONDS)
        answer = ticket.answer.result()
        yield view.done(answer), answer
    finally:
        if not ticket.answer.done():
            ticket.cancel()


def kept(site: Site, folder: pathlib.Path, answer: Answer) -> dict[str, Any]:
    """Writes a result to its folder; returns what repeats it, and where its pictures are."""
    request = answer.request
    flags = site.service.step_flags(request.num_steps)
    command = requests.command(request, site.checkpoint, site.upsampler, site.service.condition, flags)
    record = {
        "command": command,
        "time": time.strftime("%H:%M:%S"),
        "request": dataclasses.asdict(request),
        "batch_rows": [made.rows for made in answer.made],
        "batch_sizes": [made.batch_size for made in answer.made],
        "seconds": round(answer.seconds, 3),
        "notes": list(answer.notes),
    }
    return record | {"files": results.save_made(folder, answer.pictures, record)}


def row_of(record: dict[str, Any], condition: str) -> list[Any]:
    """A record's row of the table of recent results, by COLUMNS."""
    asked = record["request"]
    edit = "repainted" if asked["mask"] else f"redrawn, strength {asked['strength']:g}" if asked["picture"] else ""
    edit = ", ".join(filter(None, [edit, "enlarged" * asked["enlarge"]]))
    told = {"text": asked["prompt"], "label": f"class {asked['label']}", "none": ""}[condition]
    scale, seconds = round(asked["guidance_scale"], 2), round(record["seconds"], 1)
    steps = asked["num_steps"]
    return [record["time"], told, asked["number"], scale, asked["sampler"], steps, asked["seed"], edit, seconds]


def painted(editor: dict[str, Any] | None, sides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """The editor's picture at its own size, and what is painted over it (None where nothing is).

    Args:
      editor: its value: background and layers, uint8 RGBA.
      sides: of the pictures that models make, for `results.original_size`.

    Raises:
      UserError: there is no picture, or it is too large.
    """
    if not editor or editor.get("background") is None:
        raise UserError("There is no picture to repaint. Choose one that was made, or drop a file into the editor.")
    background = np.asarray(editor["background"])
    if max(background.shape[:2]) > MAX_PICTURE_PIXELS:
        raise UserError(f"The picture has more than {MAX_PICTURE_PIXELS} pixels a side. Shrink it first.")
    shown = background[..., :3]
    if background.shape[-1] == 4:  # what is transparent shows a white page
        alpha = background[..., 3:].astype(np.float32) / 255
        shown = np.round(shown * alpha + 255 * (1 - alpha)).astype(np.uint8)
    layers = [np.asarray(layer)[..., 3] > 0 for layer in editor.get("layers") or []]
    mask = np.any(layers, axis=0) if layers else np.zeros(shown.shape[:2], bool)
    picture = results.original_size(np.ascontiguousarray(shown), sides)
    return picture, results.shrunk(mask, picture.shape[0]) if mask.any() else None
