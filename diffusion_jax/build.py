"""Names in a config -> objects. The only reader of a config inside the package."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_jax import discrete, grids, images, losses, posterior, predictions, schedules, times, weights
from diffusion_jax.data import toys
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.data.pipeline import Example, Source, as_text
from diffusion_jax.denoiser import Cond, Denoiser, feed, make_denoiser
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.generate import COMBINES, EDITS, GUIDANCES, THRESHOLDS, Knobs, Method, make_generate
from diffusion_jax.guidance import drop_condition
from diffusion_jax.keys import fold_in
from diffusion_jax.models import Network, Params
from diffusion_jax.models.mlp import MLP, make_mlp
from diffusion_jax.models.text import TextTransformer
from diffusion_jax.models.unet import UNet, make_network
from diffusion_jax.predictions import PARAMETERIZATIONS, Parameterization
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
from diffusion_jax.times import LossHistory
from diffusion_jax.training.placement import PLACEMENTS, Placement, make_placement
from diffusion_jax.training.step import Batch, LossPerExample, Record

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
    if not config.diffusion.schedule.startswith("ddpm_"):
        raise UserError(
            f"the grid 'respaced' counts the steps of a table, and {config.diffusion.schedule} has none. Use "
            "sample.grid=uniform, or a ddpm_ schedule."
        )
    return grids.respaced(config.diffusion.num_table_steps, config.sample.spacing)


# An x0 network judged in another space is weighed by 1 / t^2 or so: exactly 0 must not be drawn.
MIN_TIME = 1e-3
TIMES: dict[str, Callable[[Schedule, ConfigDict], Callable[..., Float[Array, "B"]] | None]] = {
    "uniform": lambda schedule, config: functools.partial(times.uniform_time, low=MIN_TIME),
    "logit_normal": lambda schedule, config: functools.partial(
        times.logit_normal_time, mean=config.diffusion.time_mean, std=config.diffusion.time_std
    ),
    "log_normal_sigma": lambda schedule, config: functools.partial(
        times.log_normal_sigma_time, schedule=schedule, mean=config.diffusion.time_mean, std=config.diffusion.time_std
    ),
    "discrete_uniform": lambda schedule, config: functools.partial(
        times.discrete_uniform_time, num_steps=config.diffusion.num_table_steps
    ),
    "loss_second_moment": lambda schedule, config: None,  # drawn from the train state's loss history
}
DISCRETE_TIMES = ("discrete_uniform", "loss_second_moment")
WEIGHTS: dict[str, Callable[[ConfigDict], Callable[[Float[Array, "B"]], Float[Array, "B"]] | None]] = {
    "none": lambda config: None,
    "min_snr": lambda config: functools.partial(weights.min_snr, gamma=config.diffusion.weight_gamma),
    "p2": lambda config: functools.partial(weights.p2, gamma=config.diffusion.weight_gamma),
    "edm": lambda config: functools.partial(weights.edm_weight, sigma_data=config.diffusion.sigma_data),
    "sigmoid": lambda config: functools.partial(weights.sigmoid_weight, bias=config.diffusion.weight_bias),
}
OBJECTIVES = ("denoising", *losses.DDPM_LOSSES)
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
        parameterization = _parameterization(config, "parameterization")
    except ValueError as error:
        raise UserError(str(error)) from error
    return Model(config, tokenizer, network, process, parameterization, null_cond, shape, transition)


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
    if d.transition not in discrete.KINDS:
        raise unknown_name("config.diffusion.transition", d.transition, discrete.KINDS)
    return discrete.transition(d.transition, num_classes, schedules.BETAS[d.schedule[len(TABLE) :]](d.num_table_steps))


def _unit_variance(schedule: Schedule, sigma_data: float, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """EDM's c_in: 1 over the standard deviation of x_t."""
    level = schedule(t)
    return 1 / jnp.hypot(level.alpha * sigma_data, level.sigma)


def _parameterization(config: ConfigDict, field: str) -> Parameterization:
    d = config.diffusion
    own = {"edm": predictions.edm(d.sigma_data), "previous": posterior.previous_mean(d.num_table_steps)}
    return pick(PARAMETERIZATIONS | own, d[field], f"config.diffusion.{field}")


def _learned_variance(config: ConfigDict) -> bool:
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
    multiple = num_classes or (2 if _learned_variance(config) else 1)
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
        out_channels=6 if _learned_variance(config) else 3,
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


def lr_schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or a cosine to 0."""
    o = config.optimizer
    if o.decay == "constant":
        after = optax.constant_schedule(o.learning_rate)
    elif o.decay == "cosine":
        after = optax.cosine_decay_schedule(o.learning_rate, max(1, o.decay_steps - o.warmup_steps))
    else:
        raise unknown_name("config.optimizer.decay", o.decay, ("constant", "cosine"))
    steps = max(1, o.warmup_steps)
    # The first step already has a rate: (step + 1) / warmup_steps of the whole.
    warmup = optax.linear_schedule(o.learning_rate / steps, o.learning_rate, steps - 1)
    return optax.join_schedules([warmup, after], [o.warmup_steps])


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW."""
    o = config.optimizer
    adamw = optax.adamw(lr_schedule(config), o.beta1, o.beta2, weight_decay=o.weight_decay)
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw)


def loss_per_example(model: Model) -> LossPerExample:
    """The training loss: (params, batch, keys, history) -> (losses [B], record), with conditions dropped at random.

    Raises:
      UserError: a name is unknown, or the config's choices cannot work together.
    """
    d, process = model.config.diffusion, model.process
    draw_time = pick(TIMES, d.time, "config.diffusion.time")(process.schedule, model.config)
    objective = _objective(model)

    def loss(
        params: Params, batch: Batch, keys: Array, history: LossHistory | tuple[()]
    ) -> tuple[Float[Array, "B"], Record | None]:
        given = {name: batch[name] for name in model.null_cond}
        cond = drop_condition(given, model.null_cond, fold_in(keys, 0), d.cond_dropout)
        dropout_keys = fold_in(keys, 3) if model.config.model.dropout else None

        def apply(seen: Array, time: Array, cond: Cond) -> Array:
            return model.network.apply(params, seen, time, cond, dropout_keys)

        network, noise_keys = _fed(model, apply), fold_in(keys, 2)
        x0 = images.to_float(batch["image"]) if len(model.image_shape) == 3 else batch["image"]
        if draw_time is not None:
            return objective(network, x0, draw_time(fold_in(keys, 1)), noise_keys, cond), None
        steps, importance = times.draw(history, fold_in(keys, 1))
        each = objective(network, x0, times.step_time(steps, d.num_table_steps), noise_keys, cond)
        return importance * each, (steps, each)

    return loss


def _fed(model: Model, apply: Callable[..., Array]) -> Callable[[Array, Float[Array, "*B"], Cond], Array]:
    """A network as (x_t, t in [0, 1], cond) -> raw output; logits [B, D, K] of categorical data."""
    process, transition = model.process, model.transition
    if transition is None:
        return feed(apply, process.network_time, process.input_scale)
    return lambda x_t, t, cond: apply(x_t, process.network_time(t), cond).reshape(*x_t.shape, transition.num_classes)


def loss_history(model: Model) -> LossHistory | tuple[()]:
    """The loss history that the train state begins with: () unless the training time is drawn from one."""
    d = model.config.diffusion
    return times.init(d.num_table_steps) if d.time == "loss_second_moment" else ()


def _objective(model: Model) -> Callable[..., Float[Array, "B"]]:
    """The config's loss, as (network, x0, t, keys, cond) -> [B]."""
    d, schedule, output = model.config.diffusion, model.process.schedule, model.parameterization
    _check_objective(model)
    if model.transition is not None:
        transition = model.transition
        return lambda network, *example: losses.categorical_loss(network, transition, *example, kind=d.objective)
    if d.objective == "denoising":
        space = output if d.loss_space == d.parameterization else _parameterization(model.config, "loss_space")
        weight = WEIGHTS[d.weight](model.config)
        return lambda network, *example: losses.denoising_loss(
            network, output, space, schedule, *example, weight=weight, distance=d.distance
        )
    settings = {"kind": d.objective, "variance": d.variance, "decoder": decoder(model)}
    return lambda network, *example: (
        losses.ddpm_loss(network, output, schedule, d.num_table_steps, *example, **settings).loss
    )


def _check_objective(model: Model) -> None:
    """Refuses choices that cannot work together, with what would."""
    d = model.config.diffusion
    _parameterization(model.config, "loss_space")
    for field, known in (("objective", OBJECTIVES), ("weight", WEIGHTS), ("distance", losses.DISTANCES)):
        if d[field] not in known:
            raise unknown_name(f"config.diffusion.{field}", d[field], known)
    if d.kind == "discrete":
        return _check_categorical_objective(d)
    if d.schedule.startswith(TABLE) and model.process.schedule(jnp.ones(())).alpha == 0:
        _check_pure_noise(d, _learned_variance(model.config))
    if d.objective != "denoising":
        return _check_ddpm_objective(d)
    if _learned_variance(model.config):
        raise UserError(
            f"config.diffusion.objective=denoising teaches no variance, and variance={d.variance} is the network's. Use "
            "config.diffusion.objective=mse (improved DDPM's hybrid loss), or variance=small or large."
        )
    if d.weight != "none" and d.loss_space != "eps":
        raise UserError(
            f"config.diffusion.weight={d.weight} is made for the error of eps, but loss_space={d.loss_space}. Set "
            "config.diffusion.loss_space=eps (whatever the network outputs), or weight=none."
        )


def _check_pure_noise(d: ConfigDict, learned_variance: bool) -> None:
    asked_for_x0 = d.loss_space not in ("eps", "score") or d.objective in ("kl", "rescaled_kl") or learned_variance
    if d.weight == "edm":
        fault = "config.diffusion.weight=edm is infinite"
    elif "velocity" in (d.parameterization, d.loss_space):
        fault = "the velocity is 0 whatever x0 is"
    elif d.parameterization in ("eps", "score") and asked_for_x0:
        fault = f"config.diffusion.parameterization={d.parameterization} says nothing about x0, which this loss judges"
    else:
        return
    raise UserError(
        f"the last step of the schedule {d.schedule} is pure noise, where {fault}. Set config.diffusion.parameterization=v, "
        "loss_space=v and weight=none (or edm, edm and none), or use a table that keeps some signal, such as ddpm_linear."
    )


def _check_categorical_objective(d: ConfigDict) -> None:
    if d.objective not in losses.CATEGORICAL_LOSSES or d.time not in DISCRETE_TIMES:
        raise UserError(
            f"config.diffusion.kind=discrete is trained by its bound, at the steps of its table; got objective={d.objective} and "
            f"time={d.time}. Set config.diffusion.objective=rescaled_kl and time=discrete_uniform or loss_second_moment."
        )


def _check_ddpm_objective(d: ConfigDict) -> None:
    if d.time not in DISCRETE_TIMES:
        raise UserError(
            f"config.diffusion.objective={d.objective} is a loss of a table's steps, and time={d.time} falls between them. Use "
            "config.diffusion.time=discrete_uniform or loss_second_moment, or objective=denoising."
        )
    if d.loss_space != d.parameterization or d.weight != "none" or d.distance != "l2":
        raise UserError(
            f"config.diffusion.objective={d.objective} judges what the network outputs, by the plain square. Set loss_space="
            f"{d.parameterization}, weight=none and distance=l2, or objective=denoising."
        )


def decoder(model: Model) -> str | None:
    """What the last step of a likelihood decodes to; see `likelihood.step_bits`."""
    return "uint8" if len(model.image_shape) == 3 else None


def logits(model: Model, params: Params) -> discrete.Logits:
    """The network of a model of categories, with parameters bound."""
    assert model.transition is not None, "a model of numbers has a denoiser"
    network, num_steps = _fed(model, functools.partial(model.network.apply, params)), model.transition.num_steps
    return lambda x_t, step: network(x_t, step / num_steps, {})


def denoiser(model: Model, params: Params) -> Denoiser:
    """The model's Denoiser with parameters bound."""

    def apply(x_t: Array, time: Array, cond: Cond) -> Array:
        return model.network.apply(params, x_t, time, cond)

    process, learned = model.process, _learned_variance(model.config)
    return make_denoiser(
        apply, model.parameterization, process.schedule, process.network_time, process.input_scale, learned
    )


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


def placement(config: ConfigDict) -> Placement:
    """Where steps run."""
    if config.parallel.placement not in PLACEMENTS:
        raise unknown_name("config.parallel.placement", config.parallel.placement, PLACEMENTS)
    return make_placement(config.parallel.placement)


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
    model: Model, place: Placement, edit: str = "none", method: Sampler | None = None
) -> Callable[..., np.ndarray]:
    """The function that samples images; see `generate.make_generate`.

    Args:
      model: from `model`.
      place: devices.
      edit: one of `generate.EDITS`.
      method: a sampler in place of the config's.

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
    how = Method(
        method or sampler(model),
        sample.guidance,
        sample.guidance_combine,
        sample.guidance_low > 0 or sample.guidance_high < 1,
        sample.threshold,
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
    )


def prompt_cond(model: Model, prompts: Sequence[str]) -> Cond:
    """The condition of each prompt, a tree of arrays [N, ...]."""
    assert model.tokenizer is not None, "only text models have prompts"
    tokens, mask = model.tokenizer.encode(prompts, model.config.text.context_length)
    return {"tokens": tokens, "mask": mask}


def source(config: ConfigDict, split: str = "train") -> Source:
    """The data set's split, prepared first if it can be and is not there yet.

    Raises:
      UserError: the data set's name is unknown.
    """
    return pick(DATA_SOURCES, config.data.name, "config.data.name")(config, split)


def _captioned_scenes(config: ConfigDict, split: str) -> Source:
    from diffusion_jax.data import (
        captioned_scenes,
    )  # TFDS takes most of a second to import, which sampling need not pay

    try:
        builder = captioned_scenes.prepare(
            config.data.dir,
            config.data.image_size,
            config.data.max_objects,
            train_images=config.data.num_train_images,
            spread=config.data.spread,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return builder.as_data_source(split)


def _toy(config: ConfigDict, split: str) -> Source:
    try:
        return toys.SOURCES[config.data.name](split)
    except ValueError as error:
        raise UserError(str(error)) from error


DATA_SOURCES: dict[str, Callable[[ConfigDict, str], Source]] = {
    "captioned_scenes": _captioned_scenes,
    **dict.fromkeys(toys.SOURCES, _toy),
}


def encode_example(model: Model) -> Callable[[Example], Example]:
    """What the train step takes of an example of the data set."""

    def encode(example: Example) -> Example:
        out = {"image": example["image"]}
        if "tokens" in model.null_cond:
            cond = prompt_cond(model, [as_text(example["caption"])])
            out |= {name: value[0] for name, value in cond.items()}
        if "label" in model.null_cond:
            out["label"] = np.int32(example["label"])
        return out

    return encode
