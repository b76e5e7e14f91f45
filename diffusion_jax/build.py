"""Names in a config -> objects. The only reader of a config inside the package."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_jax import grids, images, losses, schedules
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.data.pipeline import Example, Source, as_text
from diffusion_jax.denoiser import Cond, Denoiser, make_denoiser
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.generate import make_generate
from diffusion_jax.guidance import drop_condition
from diffusion_jax.keys import fold_in
from diffusion_jax.models import Network, Params
from diffusion_jax.models.text import TextTransformer
from diffusion_jax.models.unet import UNet, make_network
from diffusion_jax.predictions import PARAMETERIZATIONS, Parameterization
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim
from diffusion_jax.samplers.euler import euler
from diffusion_jax.samplers.heun import heun
from diffusion_jax.schedules import Schedule
from diffusion_jax.training.placement import PLACEMENTS, Placement, make_placement
from diffusion_jax.training.step import Batch, LossPerExample

NETWORK_TIME_SCALE = 1000.0  # continuous times reach the network in DDPM's unit, for which its embedding was made


class Process(NamedTuple):
    """A forward process and how a network is told the time of it."""

    schedule: Schedule
    network_time: Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Model(NamedTuple):
    """All that follows from a config and a tokenizer."""

    config: ConfigDict
    tokenizer: CaptionTokenizer | None
    network: Network
    process: Process
    parameterization: Parameterization
    null_cond: Cond  # of one example
    image_shape: tuple[int, int, int]


def _continuous(schedule: Schedule, config: ConfigDict) -> Process:
    return Process(schedule, lambda t: NETWORK_TIME_SCALE * t)


def _table(betas: Callable[[int], np.ndarray], config: ConfigDict) -> Process:
    steps = config.diffusion.num_table_steps
    return Process(schedules.from_betas(betas(steps)), functools.partial(schedules.discrete_step, num_steps=steps))


SCHEDULES: dict[str, Callable[[ConfigDict], Process]] = {
    "linear_path": functools.partial(_continuous, schedules.linear_path),
    "cosine": functools.partial(_continuous, schedules.cosine),
    "linear": functools.partial(_continuous, schedules.linear),
    "ddpm_linear": functools.partial(_table, schedules.linear_betas),
    "ddpm_cosine": functools.partial(_table, schedules.cosine_betas),
}
SAMPLERS: dict[str, Callable[[Schedule, ConfigDict], Sampler]] = {
    "ancestral": lambda schedule, config: ancestral(schedule),
    "ddim": lambda schedule, config: ddim(schedule, config.sample.eta),
    "euler": lambda schedule, config: euler(schedule),
    "heun": lambda schedule, config: heun(schedule),
}
GRIDS: dict[str, Callable[[ConfigDict], Float[Array, "N+1"]]] = {
    "uniform": lambda sample: grids.uniform(sample.num_steps, sample.start),
    "quadratic": lambda sample: grids.quadratic(sample.num_steps, sample.start),
    "shifted": lambda sample: grids.shifted(sample.num_steps, sample.shift, sample.start),
}
# An x0 network judged in another space is weighed by 1 / t^2 or so: exactly 0 must not be drawn.
MIN_TIME = 1e-3
TIMES: dict[str, Callable[[ConfigDict], Callable[..., Float[Array, "B"]]]] = {
    "uniform": lambda config: functools.partial(losses.uniform_time, low=MIN_TIME),
    "logit_normal": lambda config: functools.partial(
        losses.logit_normal_time, mean=config.diffusion.time_mean, std=config.diffusion.time_std
    ),
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
    shape = (config.data.image_size, config.data.image_size, 3)
    try:
        unet, null_cond = _unet(config, tokenizer)
        network = make_network(unet, shape)
        process = pick(SCHEDULES, config.diffusion.schedule, "config.diffusion.schedule")(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    parameterization = pick(PARAMETERIZATIONS, config.diffusion.parameterization, "config.diffusion.parameterization")
    return Model(config, tokenizer, network, process, parameterization, null_cond, shape)


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
        out_channels=3,
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
    """The training loss: (params, batch, keys) -> [B], with conditions dropped at random."""
    d = model.config.diffusion
    draw_time = pick(TIMES, d.time, "config.diffusion.time")(model.config)
    loss_space = pick(PARAMETERIZATIONS, d.loss_space, "config.diffusion.loss_space")

    def loss(params: Params, batch: Batch, keys: Array) -> Float[Array, "B"]:
        given = {name: batch[name] for name in model.null_cond}
        cond = drop_condition(given, model.null_cond, fold_in(keys, 0), d.cond_dropout)
        dropout_keys = fold_in(keys, 3) if model.config.model.dropout else None

        def apply(x_t: Array, t: Array, cond: Cond) -> Array:
            return model.network.apply(params, x_t, model.process.network_time(t), cond, dropout_keys)

        return losses.denoising_loss(
            apply,
            model.parameterization,
            loss_space,
            model.process.schedule,
            images.to_float(batch["image"]),
            draw_time(fold_in(keys, 1)),
            fold_in(keys, 2),
            cond,
        )

    return loss


def denoiser(model: Model, params: Params) -> Denoiser:
    """The model's Denoiser with parameters bound."""

    def apply(x_t: Array, time: Array, cond: Cond) -> Array:
        return model.network.apply(params, x_t, time, cond)

    return make_denoiser(apply, model.parameterization, model.process.schedule, model.process.network_time)


def grid(model: Model) -> Float[Array, "N+1"]:
    """The times that sampling visits.

    Raises:
      UserError: the name is unknown, a value is out of range, or the network cannot be asked about the first time.
    """
    config = model.config
    try:
        times = pick(GRIDS, config.sample.grid, "config.sample.grid")(config.sample)
    except ValueError as error:
        raise UserError(str(error)) from error
    if config.diffusion.parameterization in ("eps", "score") and model.process.schedule(times[0]).alpha == 0:
        raise UserError(
            f"a network that predicts {config.diffusion.parameterization} says nothing about x0 at pure noise, where the schedule "
            f"{config.diffusion.schedule} has no signal left. Set config.sample.start=0.98, or use ddpm_linear or ddpm_cosine."
        )
    return times


def placement(config: ConfigDict) -> Placement:
    """Where steps run."""
    if config.parallel.placement not in PLACEMENTS:
        raise unknown_name("config.parallel.placement", config.parallel.placement, PLACEMENTS)
    return make_placement(config.parallel.placement)


def generate(model: Model, place: Placement) -> Callable[..., np.ndarray]:
    """The function that samples images; see `generate.make_generate`."""
    config = model.config
    try:
        sampler = pick(SAMPLERS, config.sample.sampler, "sampler")(model.process.schedule, config)
    except ValueError as error:
        raise UserError(str(error)) from error
    return make_generate(
        functools.partial(denoiser, model),
        model.null_cond,
        model.process.schedule,
        sampler,
        model.image_shape,
        place,
        config.sample.clip_x0,
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


DATA_SOURCES: dict[str, Callable[[ConfigDict, str], Source]] = {"captioned_scenes": _captioned_scenes}


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
