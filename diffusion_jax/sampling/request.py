"""What sample.py is asked for, and what of it does not go together."""

import dataclasses
from typing import Any, NamedTuple

from diffusion_jax.errors import UserError
from diffusion_jax.sampling import pictures, rounds, stages


class Average(NamedTuple):
    """Which average of the parameters: one that the run kept, by its decay, or one of any relative std, of its snapshots."""

    decay: float | None = None
    std: float | None = None


MAIN_AVERAGE = Average()


@dataclasses.dataclass(frozen=True)
class Request:
    """What to sample; see sample.py's flags. `overrides` are fields of config.sample, None where the config's hold, and
    `upsampler_overrides` those of the upsampler's. `rounds` are (caption, mask file) of edits that follow each other."""

    checkpoint: str
    prompts: tuple[str, ...]
    labels: tuple[int, ...]
    num_samples: int | None
    overrides: dict[str, Any]
    seed: int
    batch_size: int | None
    out: str
    overwrite: bool = False
    negative_prompt: str | None = None
    weak_checkpoint: str | None = None
    classifier: str | None = None
    upsampler: str | None = None
    upsampler_overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    base_samples: str | None = None
    average: Average = MAIN_AVERAGE
    edit: pictures.Edit = pictures.Edit()
    interpolate_prompts: bool = False
    outpaint: tuple[float, ...] | None = None
    rounds: tuple[tuple[str, str], ...] = ()
    rerank: str | None = None
    best: int = 1
    animation: bool = False


def check(request: Request) -> None:
    """Raises UserError for what does not go together, before anything slow."""
    pictures.check(request.edit)
    edit = request.edit
    if request.interpolate_prompts and (len(request.prompts) != 2 or edit.interpolate or request.classifier):
        raise UserError("--interpolate_prompts goes between two --prompt, without --interpolate and --classifier.")
    if request.outpaint:
        if edit != pictures.Edit(init_images=edit.init_images) or not edit.init_images:
            raise UserError("--outpaint draws a border around one --init_image; it takes no other flag of editing.")
        rounds.margins(request.outpaint)
        if request.upsampler or request.rounds or request.rerank or request.animation or request.interpolate_prompts:
            raise UserError("--outpaint makes pictures of another size than the model's: enlarge or edit them after.")
    if request.rounds and (edit.interpolate or request.interpolate_prompts or request.upsampler):
        raise UserError(
            "--then_prompt edits what was made; leave --interpolate, --interpolate_prompts and --upsampler out."
        )
    if request.rerank and (request.base_samples or request.interpolate_prompts):
        raise UserError(
            "--rerank chooses among samples of a caption; leave --base_samples and --interpolate_prompts out."
        )
    if request.rerank and request.best > (request.num_samples or stages.NUM_SAMPLES):
        raise UserError(
            f"--best={request.best} are more than --num_samples={request.num_samples or stages.NUM_SAMPLES}."
        )
