"""A config's sampler, grid, guidance and edit."""

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_jax import grids
from diffusion_jax.build.models import TABLE, Model, denoiser, log_prob, pick
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.generate import COMBINES, EDITS, GUIDANCES, THRESHOLDS, Knobs, Method, make_generate
from diffusion_jax.predictions import PARAMETERIZATIONS
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.dpmpp_2m import dpmpp_2m
from diffusion_jax.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from diffusion_jax.samplers.dpmpp_3m_sde import dpmpp_3m_sde
from diffusion_jax.samplers.euler import euler
from diffusion_jax.samplers.euler_ancestral import euler_ancestral
from diffusion_jax.samplers.heun import heun
from diffusion_jax.samplers.lms import lms
from diffusion_jax.samplers.midpoint import midpoint
from diffusion_jax.samplers.plms import plms
from diffusion_jax.samplers.unipc import unipc
from diffusion_jax.schedules import Schedule
from diffusion_jax.training.placement import Placement

SAMPLERS: dict[str, Callable[[Schedule, ConfigDict], Sampler]] = {
    "ancestral": lambda schedule, config: ancestral(schedule, config.diffusion.variance),
    "ddim": lambda schedule, config: ddim(schedule, _own(config.sample.eta, 0.0)),
    "plms": lambda schedule, config: plms(schedule, config.sample.order or 4),
    "euler": lambda schedule, config: euler(schedule),
    "euler_ancestral": lambda schedule, config: euler_ancestral(schedule, _own(config.sample.eta, 1.0)),
    "heun": lambda schedule, config: _heun(schedule, config),
    "midpoint": lambda schedule, config: midpoint(schedule),
    "lms": lambda schedule, config: lms(schedule, config.sample.order or 4),
    "dpmpp_2m": lambda schedule, config: dpmpp_2m(schedule),
    "dpmpp_2m_sde": lambda schedule, config: dpmpp_2m_sde(schedule, _own(config.sample.eta, 1.0)),
    "dpmpp_3m_sde": lambda schedule, config: dpmpp_3m_sde(schedule, _own(config.sample.eta, 1.0)),
    "unipc": lambda schedule, config: unipc(schedule, config.sample.order or 2),
}
GRIDS: dict[str, Callable[[Schedule, ConfigDict], Float[Array, "N+1"]]] = {
    "uniform": lambda schedule, config: grids.uniform(config.sample.num_steps, config.sample.start),
    "quadratic": lambda schedule, config: grids.quadratic(config.sample.num_steps, config.sample.start),
    "shifted": lambda schedule, config: grids.shifted(
        config.sample.num_steps, config.sample.shift, config.sample.start
    ),
    "karras": lambda schedule, config: grids.karras(
        schedule, config.sample.num_steps, config.sample.sigma_min, config.sample.sigma_max, config.sample.rho
    ),
    "logsnr": lambda schedule, config: grids.logsnr_uniform(
        schedule,
        config.sample.num_steps,
        -2 * math.log(config.sample.sigma_max),
        -2 * math.log(config.sample.sigma_min),
    ),
    "respaced": lambda schedule, config: _respaced(config),
}


def _own(value: float, default: float) -> float:
    """A sampler's own default where the config leaves it to the sampler by a negative value."""
    return default if value < 0 else value


def _heun(schedule: Schedule, config: ConfigDict) -> Sampler:
    coordinate = "edm_sigma" if config.diffusion.schedule == "edm" else "path"
    return heun(schedule, coordinate, churn=config.sample.churn, num_steps=config.sample.num_steps)


def _respaced(config: ConfigDict) -> Float[Array, "N+1"]:
    if not config.diffusion.schedule.startswith(TABLE):
        raise UserError(
            f"the grid 'respaced' counts the steps of a table, and {config.diffusion.schedule} has none. Use "
            "sample.grid=uniform, or a ddpm_ schedule."
        )
    return grids.respaced(config.diffusion.num_table_steps, config.sample.spacing)


def grid(model: Model) -> Float[Array, "N+1"]:
    """The times that sampling visits.

    Raises:
      UserError: the name is unknown, a value is out of range, or the network cannot be asked about the first time.
    """
    config, schedule = model.config, model.process.schedule
    try:
        times = pick(GRIDS, config.sample.grid, "config.sample.grid")(schedule, config)
    except ValueError as error:
        raise UserError(str(error)) from error
    silent = schedule(times[0]).alpha == 0
    if silent and config.diffusion.parameterization in ("eps", "score"):
        raise UserError(
            f"a network that predicts {config.diffusion.parameterization} says nothing about x0 at pure noise, where the schedule "
            f"{config.diffusion.schedule} has no signal left. Set config.sample.start=0.98, or use ddpm_linear or ddpm_cosine"
            f"{' without zero_terminal_snr' if config.diffusion.zero_terminal_snr else ''}."
        )
    if silent and config.sample.sampler in ("lms", "plms"):
        raise UserError(
            f"the sampler {config.sample.sampler} divides by alpha, which is 0 where {config.diffusion.schedule} starts. "
            "Set sample.start=0.98 or sample.grid=karras, or choose another sampler."
        )
    return times


def knobs(model: Model) -> Knobs:
    """The run-time numbers of sampling that the config holds."""
    sample = model.config.sample
    return Knobs(
        guidance_scale=sample.guidance_scale,
        guidance_low=sample.guidance_low,
        guidance_high=sample.guidance_high,
        rescale=sample.guidance_rescale,
        parallel=sample.apg_parallel,
        norm_limit=sample.apg_norm or math.inf,
        quantile=sample.threshold_quantile,
        classifier_scale=sample.classifier_scale,
        temperature=sample.temperature,
    )


def sampler(model: Model) -> Sampler:
    """The config's sampling method.

    Raises:
      UserError: the name is unknown, or a value cannot be used.
    """
    try:
        return pick(SAMPLERS, model.config.sample.sampler, "sampler")(model.process.schedule, model.config)
    except ValueError as error:
        raise UserError(str(error)) from error


def generate(
    model: Model,
    place: Placement,
    edit: str = "none",
    method: Sampler | None = None,
    classifier: Model | None = None,
) -> Callable[..., np.ndarray]:
    """The function that samples images; see `generate.make_generate`.

    Args:
      model: from `model`.
      place: devices.
      edit: one of `generate.EDITS`.
      method: a sampler in place of the config's.
      classifier: guides by its gradient: the mean's shift for a sampler that has one (ancestral), the score's for the others.

    Raises:
      UserError: a name is unknown, or a value cannot be used.
    """
    sample = model.config.sample
    for name, value, known in (
        ("guidance", sample.guidance, GUIDANCES),
        ("guidance_combine", sample.guidance_combine, COMBINES),
        ("threshold", sample.threshold, THRESHOLDS),
        ("edit", edit, EDITS),
    ):
        if value not in known:
            raise unknown_name(name, value, known)
    chosen = method or sampler(model)
    shift = "mean" if chosen.uses_mean_gradient else "score"
    how = Method(
        chosen,
        sample.guidance,
        sample.guidance_combine,
        sample.guidance_low > 0 or sample.guidance_high < 1,
        sample.threshold,
        shift if classifier else "none",
        edit,
    )
    return make_generate(
        functools.partial(denoiser, model),
        model.null_cond,
        model.process.schedule,
        model.image_shape,
        place,
        how,
        PARAMETERIZATIONS["v"],
        functools.partial(log_prob, classifier) if classifier else None,
    )
