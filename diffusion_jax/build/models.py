"""A config's process, network and conventions."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_jax import discrete, losses, posterior, predictions, schedules
from diffusion_jax.data import toys
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.denoiser import Cond, Denoiser, feed, make_denoiser
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.models import Network, Params
from diffusion_jax.models.mlp import MLP, make_mlp
from diffusion_jax.models.text import TextTransformer
from diffusion_jax.models.unet import UNet, make_network
from diffusion_jax.predictions import PARAMETERIZATIONS, Parameterization
from diffusion_jax.schedules import Schedule

NETWORK_TIME_SCALE = 1000.0  # continuous times reach the network in DDPM's unit, for which its embedding was made


class Process(NamedTuple):
    """A forward process, how a network is told the time of it, and by what x_t is scaled before it sees it (None is 1)."""

    schedule: Schedule
    network_time: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    input_scale: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None


class Model(NamedTuple):
    """All that follows from a config and a tokenizer."""

    config: ConfigDict
    tokenizer: CaptionTokenizer | None
    network: Network
    process: Process
    parameterization: Parameterization
    null_cond: Cond  # of one example
    image_shape: tuple[int, ...]  # (H, W, C), or (D,) of data that are vectors
    transition: discrete.Transition | None = None  # of categorical data, in place of the Gaussian process


def _continuous(schedule: Schedule, power: float, config: ConfigDict) -> Process:
    return Process(_shifted(schedule, power, config), lambda t: NETWORK_TIME_SCALE * t)


def _edm(config: ConfigDict) -> Process:
    schedule = _shifted(functools.partial(schedules.edm, sigma_max=config.diffusion.sigma_max), math.inf, config)
    return Process(schedule, lambda t: jnp.log(schedules.edm_sigma(schedule(t))) / 4)


def _table(betas: Callable[[int], np.ndarray], config: ConfigDict) -> Process:
    steps = config.diffusion.num_table_steps
    table = betas(steps)
    if config.diffusion.zero_terminal_snr:
        table = schedules.zero_terminal_snr(table)
    schedule = _shifted(schedules.from_betas(table), 2, config)
    return Process(schedule, functools.partial(schedules.discrete_step, num_steps=steps))


def _shifted(schedule: Schedule, power: float, config: ConfigDict) -> Schedule:
    shift = config.diffusion.schedule_shift
    return schedule if shift == 1 else schedules.shifted(schedule, shift, power)


TABLE = "ddpm_"  # begins the names of schedules that are tables of betas
SCHEDULES: dict[str, Callable[[ConfigDict], Process]] = {
    "linear_path": functools.partial(_continuous, schedules.linear_path, 1),
    "cosine": functools.partial(_continuous, schedules.cosine, 2),
    "linear": functools.partial(_continuous, schedules.linear, 2),
    "sigmoid": functools.partial(_continuous, schedules.sigmoid, 2),
    "edm": _edm,
} | {TABLE + name: functools.partial(_table, betas) for name, betas in schedules.BETAS.items()}
DISCRETE_TIMES = ("discrete_uniform", "loss_second_moment")
KINDS = ("gaussian", "discrete")
NETWORKS = ("unet", "mlp")
# Values of config.diffusion's fields that speak of the steps of a table.
NEED_A_TABLE: dict[str, Sequence[Any]] = {
    "zero_terminal_snr": (True,),
    "parameterization": ("previous",),
    "loss_space": ("previous",),
    "variance": ("learned", "learned_range"),
    "objective": losses.DDPM_LOSSES,
    "time": DISCRETE_TIMES,
    "kind": ("discrete",),
}


def pick(table: dict[str, Any], name: str, what: str) -> Any:
    """table[name].

    Raises:
      UserError: the name is not there; it lists the nearest and all.
    """
    if name not in table:
        raise unknown_name(what, name, table)
    return table[name]


def model(config: ConfigDict, tokenizer: CaptionTokenizer | None) -> Model:
    """The network, process and conventions of a config.

    Args:
      config: a whole config (configs/default.py's fields).
      tokenizer: of the captions; needed where config.model.condition is "text".

    Raises:
      UserError: a name or a value in the config cannot be used.
    """
    side = config.data.image_size
    shape = toys.SHAPES.get(config.data.name, (side, side, 3))
    try:
        process, transition = _process(config), _transition(config)
        network, null_cond = _network(config, tokenizer, shape)
        output = parameterization(config, "parameterization")
    except ValueError as error:
        raise UserError(str(error)) from error
    return Model(config, tokenizer, network, process, output, null_cond, shape, transition)


def _process(config: ConfigDict) -> Process:
    d = config.diffusion
    if min(d.sigma_data, d.sigma_max) <= 0:
        raise UserError(
            f"config.diffusion.sigma_data and sigma_max must be positive; got {d.sigma_data} and {d.sigma_max}."
        )
    process = pick(SCHEDULES, d.schedule, "config.diffusion.schedule")(config)
    for field, values in NEED_A_TABLE.items():
        if d[field] in values and not d.schedule.startswith(TABLE):
            raise UserError(
                f"config.diffusion.{field}={d[field]} needs a table of betas, which the schedule {d.schedule} has not. Use "
                f"config.diffusion.schedule=ddpm_linear or another ddpm_ schedule, or another {field}."
            )
    if "edm" not in (d.schedule, d.parameterization):
        return process
    return process._replace(input_scale=functools.partial(_unit_variance, process.schedule, d.sigma_data))


def _transition(config: ConfigDict) -> discrete.Transition | None:
    d, num_classes = config.diffusion, toys.NUM_CLASSES.get(config.data.name)
    if d.kind not in KINDS:
        raise unknown_name("config.diffusion.kind", d.kind, KINDS)
    if (d.kind == "discrete") != (num_classes is not None):
        fitting = "gaussian" if num_classes is None else "discrete"
        raise UserError(
            f"config.diffusion.kind={d.kind} does not fit config.data.name={config.data.name}. Set diffusion.kind={fitting}."
        )
    if num_classes is None:
        return None
    if d.zero_terminal_snr or d.schedule_shift != 1:
        raise UserError(
            "config.diffusion.zero_terminal_snr and schedule_shift speak of signal and noise, which categories have not. Leave "
            "them at False and 1 with diffusion.kind=discrete."
        )
    if d.transition not in discrete.KINDS:
        raise unknown_name("config.diffusion.transition", d.transition, discrete.KINDS)
    return discrete.transition(d.transition, num_classes, schedules.BETAS[d.schedule[len(TABLE) :]](d.num_table_steps))


def _unit_variance(schedule: Schedule, sigma_data: float, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """EDM's c_in: 1 over the standard deviation of x_t."""
    level = schedule(t)
    return 1 / jnp.hypot(level.alpha * sigma_data, level.sigma)


def parameterization(config: ConfigDict, field: str) -> Parameterization:
    d = config.diffusion
    own = {"edm": predictions.edm(d.sigma_data), "previous": posterior.previous_mean(d.num_table_steps)}
    return pick(PARAMETERIZATIONS | own, d[field], f"config.diffusion.{field}")


def learned_variance(config: ConfigDict) -> bool:
    variance = config.diffusion.variance
    if variance not in posterior.VARIANCES:
        raise unknown_name("config.diffusion.variance", variance, posterior.VARIANCES)
    return variance.startswith("learned")


def _network(config: ConfigDict, tokenizer: CaptionTokenizer | None, shape: tuple[int, ...]) -> tuple[Network, Cond]:
    m, num_classes = config.model, toys.NUM_CLASSES.get(config.data.name)
    if m.kind not in NETWORKS:
        raise unknown_name("config.model.kind", m.kind, NETWORKS)
    if (m.kind == "mlp") != (len(shape) == 1):
        fitting = "mlp" if len(shape) == 1 else "unet"
        raise UserError(
            f"config.model.kind={m.kind} does not fit config.data.name={config.data.name}. Set model.kind={fitting}."
        )
    if m.kind == "unet":
        unet, null_cond = _unet(config, tokenizer)
        return make_network(unet, shape), null_cond
    if m.condition != "none":
        raise UserError(f"config.model.condition={m.condition}: an mlp takes none. Set model.condition=none.")
    num_states = None if num_classes is None else num_classes + (config.diffusion.transition == "absorbing")
    multiple = num_classes or (2 if learned_variance(config) else 1)
    return make_mlp(MLP(multiple, m.width, m.depth, m.octaves, num_states), shape[0]), {}


def _unet(config: ConfigDict, tokenizer: CaptionTokenizer | None) -> tuple[UNet, Cond]:
    m, text, num_classes, null_cond = config.model, None, None, {}
    if m.condition == "text":
        assert tokenizer is not None, "a checkpoint of a text model holds its tokenizer, and training makes one"
        length = config.text.context_length
        text = TextTransformer(
            tokenizer.vocab_size,
            length,
            config.text.width,
            config.text.num_layers,
            config.text.num_heads,
            _dtype(m.dtype),
        )
        tokens, mask = tokenizer.encode([""], length)
        null_cond = {"tokens": tokens[0], "mask": mask[0]}
    elif m.condition == "label":
        num_classes = config.data.num_classes + 1  # the last row is the null class
        null_cond = {"label": np.int32(config.data.num_classes)}
    elif m.condition != "none":
        raise unknown_name("config.model.condition", m.condition, ("text", "label", "none"))
    height = config.data.image_size // m.patch_size
    unet = UNet(
        out_channels=6 if learned_variance(config) else 3,
        model_channels=m.channels,
        channel_mults=tuple(m.channel_mults),
        num_res_blocks=m.num_res_blocks,
        attention_factors=tuple(height // resolution for resolution in m.attention_resolutions),
        num_heads=m.num_heads,
        num_head_channels=m.head_channels or None,
        qkv_order=m.qkv_order,
        adaptive_norm=m.adaptive_norm,
        norm_groups=m.norm_groups,
        resblock_updown=m.resblock_updown,
        dropout=m.dropout,
        num_classes=num_classes,
        text=text,
        patch_size=m.patch_size,
        remat=m.remat,
        dtype=_dtype(m.dtype),
    )
    return unet, null_cond


def _dtype(name: str) -> Any:
    return pick({"float32": jnp.float32, "bfloat16": jnp.bfloat16}, name, "config.model.dtype")


def fed(model: Model, apply: Callable[..., Array]) -> Callable[[Array, Float[Array, "*B"], Cond], Array]:
    """A network as (x_t, t in [0, 1], cond) -> raw output; logits [B, D, K] of categorical data."""
    process, transition = model.process, model.transition
    if transition is None:
        return feed(apply, process.network_time, process.input_scale)
    return lambda x_t, t, cond: apply(x_t, process.network_time(t), cond).reshape(*x_t.shape, transition.num_classes)


def decoder(model: Model) -> str | None:
    """What the last step of a likelihood decodes to; see `likelihood.step_bits`."""
    return "uint8" if len(model.image_shape) == 3 else None


def logits(model: Model, params: Params) -> discrete.Logits:
    """The network of a model of categories, with parameters bound."""
    assert model.transition is not None, "a model of numbers has a denoiser"
    network, num_steps = fed(model, functools.partial(model.network.apply, params)), model.transition.num_steps
    return lambda x_t, step: network(x_t, step / num_steps, {})


def denoiser(model: Model, params: Params) -> Denoiser:
    """The model's Denoiser with parameters bound."""

    def apply(x_t: Array, time: Array, cond: Cond) -> Array:
        return model.network.apply(params, x_t, time, cond)

    process, learned = model.process, learned_variance(model.config)
    return make_denoiser(
        apply, model.parameterization, process.schedule, process.network_time, process.input_scale, learned
    )


def prompt_cond(model: Model, prompts: Sequence[str]) -> Cond:
    """The condition of each prompt, a tree of arrays [N, ...]."""
    assert model.tokenizer is not None, "only text models have prompts"
    tokens, mask = model.tokenizer.encode(prompts, model.config.text.context_length)
    return {"tokens": tokens, "mask": mask}
