"""A checkpoint, read for sampling: config, tokenizer and an average of the parameters."""

import pathlib
from typing import Any, NamedTuple

import jax

from configs.default import get_config as default_config
from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.models import Params
from diffusion_jax.sampling.request import MAIN_AVERAGE, Average
from diffusion_jax.training import checkpoint, posthoc


class Loaded(NamedTuple):
    """A checkpoint, ready to sample from."""

    workdir: pathlib.Path
    step: int
    model: build.Model
    params: Params  # an average


def load(path: str, overrides: dict[str, Any], average: Average = MAIN_AVERAGE) -> Loaded:
    """Reads a checkpoint: config, tokenizer and EMA parameters; of a work directory, the newest that is not damaged.

    Args:
      path: a work directory or one of its checkpoints.
      overrides: fields of config.sample to change; None leaves one.
      average: the main one by default.

    Raises:
      UserError: it is not there, or damaged, or a value cannot be used.
    """
    return checkpoint.read_newest(path, lambda workdir, step: _load(workdir, step, overrides, average))


def _load(workdir: pathlib.Path, step: int, overrides: dict[str, Any], average: Average) -> Loaded:
    saved, text = checkpoint.read_texts(workdir, step)
    config = default_config()  # fields that came after the checkpoint keep their defaults, which change nothing
    for group, fields in _tuples(saved).items():
        if isinstance(fields, dict):
            known = {name: value for name, value in fields.items() if name in config.get(group, {})}
            if isinstance(known.get("remat"), bool):  # as checkpoints had it before the policies had names
                known["remat"] = "full" if known["remat"] else "none"
            config[group].update(known)
        elif group in config:
            config[group] = fields
    config.sample.update({name: value for name, value in overrides.items() if value is not None})
    model = build.model(config, build.tokenizer(config.model.kind, text))
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    if average.std is not None:
        return Loaded(workdir, step, model, posthoc.reconstruct(workdir, step, average.std, template))
    more = config.ema.more_decays
    if average.decay in (None, config.ema.decay):
        return Loaded(workdir, step, model, checkpoint.read_ema(workdir, step, template))
    if average.decay not in more:
        kept = ", ".join(f"{decay:g}" for decay in (config.ema.decay, *more))
        raise UserError(
            f"--ema_decay={average.decay:g}: the run kept averages of decay {kept} (config.ema.more_decays)."
        )
    count = len(build.averages(config))
    return Loaded(
        workdir, step, model, checkpoint.read_average(workdir, step, template, more.index(average.decay), count)
    )


def _tuples(value: Any) -> Any:
    """JSON knows no tuples; a config knows no lists."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
