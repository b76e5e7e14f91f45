"""What a visitor may ask for, within bounds; what is out of them is answered with a sentence."""

import dataclasses
import shlex
from typing import Any, NamedTuple

from diffusion_jax.errors import UserError

MAX_SEED = 2**32 - 1


class Limits(NamedTuple):
    """Bounds of one request.

    number: pictures.
    steps: of the sampler.
    guidance_scale: upper end; the lower is 0.
    prompt_characters: length of the prompt.
    """

    number: int = 8
    steps: int = 100
    guidance_scale: float = 20.0
    prompt_characters: int = 500


@dataclasses.dataclass(frozen=True)
class Request:
    """One wish. Values are as the page sends them until `checked` has seen them.

    prompt, label: the condition, as the model takes it.
    number: pictures.
    guidance_scale, num_steps, sampler, seed: as sample.py's flags.
    enlarge: whether the upsampler follows.
    picture, mask: files; white of the mask is redrawn. Without a mask the whole picture is redrawn.
    strength: how far the picture goes back to noise, in (0, 1].
    """

    prompt: str = ""
    label: int = 0
    number: int = 4
    guidance_scale: float = 1.0
    num_steps: int = 20
    sampler: str = "ddim"
    seed: int = 0
    enlarge: bool = False
    picture: str | None = None
    mask: str | None = None
    strength: float = 1.0


def checked(request: Request, limits: Limits, samplers: tuple[str, ...]) -> Request:
    """The request with whole numbers for whole numbers.

    Args:
      request: as it came.
      limits: the bounds.
      samplers: the names there are.

    Raises:
      UserError: one sentence, of what was wrong and what may be asked.
    """
    if not isinstance(request.prompt, str):
        raise UserError("The prompt must be text.")
    prompt = " ".join(request.prompt.split())
    if len(prompt) > limits.prompt_characters:
        raise UserError(
            f"The prompt has {len(prompt)} characters; at most {limits.prompt_characters} are read. Shorten it."
        )
    if request.sampler not in samplers:
        raise UserError(f"There is no sampler {str(request.sampler)[:40]!r}. There are {', '.join(samplers)}.")
    if request.mask is not None and request.picture is None:
        raise UserError("There is no picture to repaint. Put one into the editor first.")
    return dataclasses.replace(
        request,
        prompt=prompt,
        label=_whole("class", request.label, 0, MAX_SEED),
        number=_whole("number of pictures", request.number, 1, limits.number),
        num_steps=_whole("number of steps", request.num_steps, 1, limits.steps),
        seed=_whole("seed", request.seed, 0, MAX_SEED),
        guidance_scale=_within("guidance scale", request.guidance_scale, 0, limits.guidance_scale),
        strength=_within("strength", request.strength, 0, 1),
        enlarge=bool(request.enlarge),
    )


def _within(what: str, value: Any, low: float, high: float) -> float:
    wanted = f"The {what} must be a number from {low:g} to {high:g}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{wanted}; got {'nothing' if value is None else repr(value)[:40]}.") from None
    if not low <= number <= high:  # so is NaN
        raise UserError(f"{wanted}; got {number:g}.")
    return number


def _whole(what: str, value: Any, low: int, high: int) -> int:
    number = _within(what, value, low, high)
    if number != int(number):
        raise UserError(f"The {what} must be a whole number; got {number:g}.")
    return int(number)


def command(
    request: Request, checkpoint: str, upsampler: str | None, condition: str, step_flags: dict[str, Any]
) -> str:
    """The sample.py command line that makes a request's pictures again.

    Args:
      request: checked.
      checkpoint, upsampler: as the server was told.
      condition: the model's: text, label or none.
      step_flags: what says the steps to sample.py: num_steps, or spacing of a table's grid.
    """
    flags: dict[str, Any] = {"checkpoint": checkpoint}
    if condition == "text":
        flags["prompt"] = request.prompt
    elif condition == "label":
        flags["label"] = request.label
    flags |= {"num_samples": request.number, "seed": request.seed, "sampler": request.sampler} | step_flags
    if condition != "none":
        flags["guidance_scale"] = f"{request.guidance_scale:g}"
    if request.picture:
        flags |= {"init_image": request.picture, "strength": f"{request.strength:g}"}
    if request.mask:
        flags["mask"] = request.mask
    if request.enlarge and upsampler:
        flags["upsampler"] = upsampler
    words = [f"--{name}={shlex.quote(str(value))}" for name, value in flags.items()]
    return " ".join(["python sample.py", *words])
