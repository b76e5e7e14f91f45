"""A config's process, network and conventions."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_jax import discrete, losses, posterior, predictions, schedules
from diffusion_jax.build import clip
from diffusion_jax.data import toys
from diffusion_jax.data.bpe import ClipTokenizer
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.denoiser import Cond, Denoiser, feed, make_denoiser
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.guidance import LogProb, clip_similarity
from diffusion_jax.models import Network, Params, attention, unet
from diffusion_jax.models.annotated import AnnotatedUNet, make_annotated
from diffusion_jax.models.classifier import Classifier, make_classifier
from diffusion_jax.models.clip import logit_scale, make_clip, make_text_encoder, unit_length
from diffusion_jax.models.mlp import MLP, make_mlp
from diffusion_jax.models.partition import keep_rows
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
    tokenizer: CaptionTokenizer | ClipTokenizer | None
    network: Network
    process: Process
    parameterization: Parameterization
    null_cond: Cond  # of one example: what classifier-free guidance replaces, and by what
    blank_cond: Cond  # of one example: every entry of the condition; the null ones, class 0 and black pictures
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
    unit = NETWORK_TIME_SCALE / steps if config.diffusion.rescale_times else 1.0
    return Process(schedule, lambda t: unit * schedules.discrete_step(t, steps))


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
NETWORKS = ("unet", "annotated", "classifier", "clip", "mlp")
CONDITIONS = ("text", "label", "none")
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


def model(config: ConfigDict, tokenizer: CaptionTokenizer | ClipTokenizer | None, platform: str | None = None) -> Model:
    """The network, process and conventions of a config.

    Args:
      config: a whole config (configs/default.py's fields).
      tokenizer: of the captions; needed where config.model.condition is "text".
      platform: of the devices that will run it ("cpu", "gpu", "tpu"), this process's own by default.

    Raises:
      UserError: a name or a value in the config cannot be used.
    """
    side = config.data.image_size
    shape = toys.SHAPES.get(config.data.name, (side, side, config.data.channels))
    try:
        process, transition = _process(config), _transition(config)
        null_cond, blank_cond = _conditions(config, tokenizer, shape)
        network = keep_rows(_network(config, tokenizer, shape, platform or jax.default_backend()))
        output = parameterization(config, "parameterization")
    except ValueError as error:
        raise UserError(str(error)) from error
    return Model(config, tokenizer, network, process, output, null_cond, blank_cond, shape, transition)


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


def _conditions(config: ConfigDict, tokenizer: CaptionTokenizer | None, shape: tuple[int, ...]) -> tuple[Cond, Cond]:
    """The null condition and the blank one."""
    m, null_cond, blank = config.model, {}, {}
    if m.kind not in NETWORKS:
        raise unknown_name("config.model.kind", m.kind, NETWORKS)
    if m.condition not in CONDITIONS:
        raise unknown_name("config.model.condition", m.condition, CONDITIONS)
    if m.condition != "none" and m.kind != "unet":
        raise UserError(
            f"config.model.condition={m.condition}: {'a' if m.kind[0] == 'c' else 'an'} {m.kind} takes none. "
            "Set model.condition=none."
        )
    if m.condition == "text":
        assert tokenizer is not None, "a checkpoint of a text model holds its tokenizer, and training makes one"
        tokens, mask = tokenizer.encode([""], config.text.context_length)
        null_cond = {"tokens": tokens[0], "mask": mask[0]}
    elif m.condition == "label" and m.null_class:
        null_cond = {"label": np.int32(config.data.num_classes)}  # the last row of the table
    elif m.condition == "label":
        blank = {"label": np.int32(0)}
    if m.low_res:
        if not 0 < m.low_res < shape[0] or shape[0] % m.low_res:
            raise UserError(f"config.model.low_res={m.low_res} must divide config.data.image_size={shape[0]}, or be 0.")
        blank["low_res"] = np.zeros((m.low_res, m.low_res, shape[-1]), np.float32)
    if m.inpaint:
        blank |= {"inpaint_image": np.zeros(shape, np.float32), "inpaint_mask": np.zeros((*shape[:2], 1), np.float32)}
    return null_cond, null_cond | blank


def input_parts(config: ConfigDict) -> tuple[dict[str, int], int]:
    """What a network's first convolution reads: the channels of each part, in their order, and the side of its patches."""
    m, channels = config.model, config.data.channels
    if m.kind != "unet":
        return unet.input_parts(channels, low_res=False, inpaint=False), 1
    return unet.input_parts(channels, bool(m.low_res), m.inpaint), m.patch_size


def _network(config: ConfigDict, tokenizer: CaptionTokenizer | None, shape: tuple[int, ...], platform: str) -> Network:
    m, num_classes = config.model, toys.NUM_CLASSES.get(config.data.name)
    if (m.kind == "mlp") != (len(shape) == 1):
        fitting = "mlp" if len(shape) == 1 else "unet"
        raise UserError(
            f"config.model.kind={m.kind} does not fit config.data.name={config.data.name}. Set model.kind={fitting}."
        )
    if m.kind == "annotated":
        out_channels = shape[-1] * (2 if learned_variance(config) else 1)
        mults, dtype = tuple(m.channel_mults), _dtype(m.dtype)
        return make_annotated(AnnotatedUNet(out_channels, m.channels, mults, m.norm_groups, dtype=dtype), shape)
    if m.kind == "clip":
        rows, words = config.clip.vocab_size, tokenizer.vocab_size if tokenizer else 0
        if words > rows:
            raise UserError(f"the tokenizer has {words} tokens: set config.clip.vocab_size to as many, from {rows}.")
        return make_clip(*clip.encoders(config, _dtype(m.dtype)), config.clip.learn_logit_scale)
    if m.kind != "mlp":
        network = module(config, tokenizer, platform)
        return make_network(network, shape) if isinstance(network, UNet) else make_classifier(network, shape)
    num_states = None if num_classes is None else num_classes + (config.diffusion.transition == "absorbing")
    multiple = num_classes or (2 if learned_variance(config) else 1)
    return make_mlp(MLP(multiple, m.width, m.depth, m.octaves, num_states), shape[0])


def module(config: ConfigDict, tokenizer: CaptionTokenizer | None, platform: str = "cpu") -> UNet | Classifier:
    """The hyper-parameters of a config's U-Net or classifier, with the attention that suits a platform."""
    if config.model.kind == "unet":
        return _unet(config, tokenizer, platform)
    if config.model.patch_size != 1:
        raise UserError(
            f"config.model.patch_size={config.model.patch_size}: a classifier reads pixels. Set model.patch_size=1."
        )
    return Classifier(**_trunk(config, platform) | {"out_channels": config.data.num_classes}, pool=config.model.pool)


def _unet(config: ConfigDict, tokenizer: CaptionTokenizer | None, platform: str) -> UNet:
    m, text = config.model, None
    if m.condition == "text":
        assert tokenizer is not None, "_conditions has seen to it"
        t = config.text
        text = TextTransformer(
            tokenizer.vocab_size,
            t.context_length,
            t.width,
            t.num_layers,
            t.num_heads,
            _dtype(m.dtype),
            scan_layers=t.scan_layers,
            remat=m.remat,
        )
    return UNet(
        **_trunk(config, platform),
        num_classes=config.data.num_classes + m.null_class if m.condition == "label" else None,
        text=text,
        low_res=bool(m.low_res),
        inpaint=m.inpaint,
        patch_size=m.patch_size,
    )


def _trunk(config: ConfigDict, platform: str) -> dict[str, Any]:
    """What the U-Net and the classifier share."""
    m = config.model
    height = config.data.image_size // m.patch_size
    return {
        "out_channels": config.data.channels * (2 if learned_variance(config) else 1),
        "model_channels": m.channels,
        "channel_mults": tuple(m.channel_mults),
        "num_res_blocks": m.num_res_blocks,
        "attention_factors": tuple(height // resolution for resolution in m.attention_resolutions),
        "num_heads": m.num_heads,
        "num_head_channels": m.head_channels or None,
        "qkv_order": m.qkv_order,
        "adaptive_norm": m.adaptive_norm,
        "norm_groups": m.norm_groups,
        "resblock_updown": m.resblock_updown,
        "dropout": m.dropout,
        "remat": m.remat,
        # Under the placement "sharded" the compiler splits the program, which not every implementation bears.
        "attention": attention.choose(config.model.attention, platform, config.parallel.placement == "sharded"),
        "dtype": _dtype(m.dtype),
    }


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


def log_prob(model: Model, params: Params) -> LogProb:
    """What classifier guidance raises: a classifier's log p(label | x_t), or a CLIP's agreement with the caption.

    `cond` holds the label, or the caption's features under "clip_text" (`text_features`).

    Source: the cond_fn of guided-diffusion's classifier_sample.py and of glide-text2im's clip notebook.
    """

    network = fed(model, functools.partial(model.network.apply, params))

    def encode(x_t: Array, t: Array) -> Array:
        return network(x_t, t, {})

    def of(x_t: Array, t: Array, cond: Cond) -> Float[Array, "B"]:
        if model.config.model.kind == "clip":
            return clip_similarity(encode, cond["clip_text"], logit_scale(params))(x_t, t, cond)
        each = jax.nn.log_softmax(encode(x_t, t).astype(jnp.float32))
        return jnp.take_along_axis(each, cond["label"][:, None], axis=-1)[:, 0]

    return of


def encode_text(model: Model, params: Params, tokens: Array, mask: Array) -> Float[Array, "N D"]:
    """A CLIP's features of captions (`clip.ClipCaptions`), of unit length."""
    encoder = make_text_encoder(clip.encoders(model.config, _dtype(model.config.model.dtype))[1])
    return unit_length(keep_rows(Network(*encoder)).apply(params["text_encoder"], tokens, mask.sum(axis=-1)))


def text_features(model: Model, params: Params, prompts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """A CLIP's features of prompts, of unit length."""
    assert model.tokenizer is not None, "a CLIP's checkpoint holds its tokenizer"
    captions = clip.ClipCaptions(model.tokenizer).encode(prompts, model.config.clip.context_length)
    return np.asarray(jax.jit(functools.partial(encode_text, model))(params, *captions))
