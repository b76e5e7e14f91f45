"""A config's loss, optimizer and placement."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_jax import conditions, images, losses, masks, times, weights
from diffusion_jax.build.models import (
    DISCRETE_TIMES,
    TABLE,
    Model,
    decoder,
    encode_text,
    fed,
    learned_variance,
    parameterization,
    pick,
)
from diffusion_jax.denoiser import Cond
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.guidance import drop_condition
from diffusion_jax.keys import fold_in, normal_per_example
from diffusion_jax.models import Params, clip
from diffusion_jax.schedules import Schedule, diffuse
from diffusion_jax.times import LossHistory
from diffusion_jax.training import ema
from diffusion_jax.training.placement import PLACEMENTS, Placement, all_gather, example_indices, make_placement
from diffusion_jax.training.step import Batch, LossPerExample, Metrics, Record, TrainState, make_train_step

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
WEIGHTS: dict[str, Callable[[ConfigDict], Callable[[Float[Array, "B"]], Float[Array, "B"]] | None]] = {
    "none": lambda config: None,
    "min_snr": lambda config: functools.partial(weights.min_snr, gamma=config.diffusion.weight_gamma),
    "p2": lambda config: functools.partial(weights.p2, gamma=config.diffusion.weight_gamma),
    "edm": lambda config: functools.partial(weights.edm_weight, sigma_data=config.diffusion.sigma_data),
    "sigmoid": lambda config: functools.partial(weights.sigmoid_weight, bias=config.diffusion.weight_bias),
}
# Shares of a batch's pictures that find their caption in it, and of captions that find their picture; and the scale.
CLIP_FIGURES = ("image_to_text", "text_to_image", "logit_scale")
OBJECTIVES = ("denoising", *losses.DDPM_LOSSES)


def lr_schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, or a line or a cosine to 0."""
    o = config.optimizer
    if o.decay == "constant":
        after = optax.constant_schedule(o.learning_rate)
    elif o.decay == "cosine":
        after = optax.cosine_decay_schedule(o.learning_rate, max(1, o.decay_steps - o.warmup_steps))
    elif o.decay == "linear":
        after = optax.linear_schedule(o.learning_rate, 0.0, max(1, o.decay_steps - o.warmup_steps))
    else:
        raise unknown_name("config.optimizer.decay", o.decay, ("constant", "linear", "cosine"))
    steps = max(1, o.warmup_steps)
    # The first step already has a rate: (step + 1) / warmup_steps of the whole.
    warmup = optax.linear_schedule(o.learning_rate / steps, o.learning_rate, steps - 1)
    return optax.join_schedules([warmup, after], [o.warmup_steps])


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; of a CLIP then the bound of its learned scale."""
    o = config.optimizer
    adamw = optax.adamw(lr_schedule(config), o.beta1, o.beta2, weight_decay=o.weight_decay)
    before = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm else []
    after = [_bounded_logit_scale()] if config.model.kind == "clip" and config.clip.learn_logit_scale else []
    return optax.chain(*before, adamw, *after) if before or after else adamw


def _bounded_logit_scale() -> optax.GradientTransformation:
    """Holds the learned scale of similarities at 100 at most after every step, as CLIP does."""

    def update(updates: Params, state: optax.OptState, params: Params = None) -> tuple[Params, optax.OptState]:
        room = math.log(clip.MAX_LOGIT_SCALE) - params[clip.LOGIT_SCALE]
        return updates | {clip.LOGIT_SCALE: jnp.minimum(updates[clip.LOGIT_SCALE], room)}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def placement(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Placement:
    """Where steps run.

    Args:
      config: a whole config.
      devices: those of all processes by default; or the devices of a machine to plan for.
    """
    p = config.parallel
    if p.placement not in PLACEMENTS:
        raise unknown_name("config.parallel.placement", p.placement, PLACEMENTS)
    if len(p.mesh) != 3 or any(n != -1 and n < 1 for n in p.mesh) or tuple(p.mesh).count(-1) > 1:
        raise UserError(
            f"config.parallel.mesh={tuple(p.mesh)}: wants devices along data, fsdp, tensor, such as (1,-1,1)."
        )
    try:
        return make_placement(p.placement, devices, tuple(p.mesh))
    except ValueError as error:
        raise UserError(f"config.parallel: {error}") from None


def averages(config: ConfigDict) -> tuple[ema.Share, ...]:
    """Of the parameters, beside the main one: config.ema.more_decays, then config.ema.posthoc_stds.

    Raises:
      UserError: no power function has such a std.
    """
    decays = [lambda step, decay=decay: 1 - ema.decay_at(step, decay) for decay in config.ema.more_decays]
    try:
        gammas = [ema.power_gamma(std) for std in config.ema.posthoc_stds]
    except ValueError as error:
        raise UserError(f"config.ema.posthoc_stds: {error}") from None
    return (*decays, *(functools.partial(ema.power_share, gamma=gamma) for gamma in gammas))


def train_step(
    model: Model, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch, str | None], tuple[TrainState, Metrics]]:
    """The config's train step, for a placement; its state has `averages` more."""
    config = model.config
    loss, more, compares = loss_per_example(model), averages(config), config.model.kind == "clip"
    if compares and config.train.accumulation > 1:
        raise UserError(
            "config.train.accumulation: a CLIP compares all pairs of a batch, which pieces would not see. Set it to 1, and use a "
            "smaller batch or more devices."
        )
    return make_train_step(loss, optimizer, config.ema.decay, config.seed, config.train.accumulation, more, compares)


def figures(model: Model) -> tuple[str, ...]:
    """The names of what the loss tells beside itself, for metrics."""
    return CLIP_FIGURES if model.config.model.kind == "clip" else ()


def loss_per_example(model: Model) -> LossPerExample:
    """The training loss: (params, batch, keys, history) -> (losses [B], record), with conditions dropped at random.

    Raises:
      UserError: a name is unknown, or the config's choices cannot work together.
    """
    d, process = model.config.diffusion, model.process
    draw_time = pick(TIMES, d.time, "config.diffusion.time")(process.schedule, model.config)
    if model.config.model.kind == "clip":
        return _contrastive(model, draw_time)
    judge = objective(model)

    def loss(
        params: Params, batch: Batch, keys: Array, history: LossHistory | tuple[()]
    ) -> tuple[Float[Array, "B"], Record | None]:
        x0 = images.to_float(batch["image"]) if len(model.image_shape) == 3 else batch["image"]
        given = {name: batch[name] for name in model.null_cond}
        cond = _of_picture(model, batch, x0, keys) | drop_condition(
            given, model.null_cond, fold_in(keys, 0), d.cond_dropout
        )
        dropout_keys = fold_in(keys, 3) if model.config.model.dropout else None

        def apply(seen: Array, time: Array, cond: Cond) -> Array:
            return model.network.apply(params, seen, time, cond, dropout_keys)

        network, noise_keys = fed(model, apply), fold_in(keys, 2)
        if draw_time is not None:
            t = draw_time(fold_in(keys, 1))
            each = judge(network, x0, t, noise_keys, cond)
            return each, Record(t, each)
        steps, importance = times.draw(history, fold_in(keys, 1))
        t = times.step_time(steps, d.num_table_steps)
        each = judge(network, x0, t, noise_keys, cond)
        return importance * each, Record(t, each, steps)

    return loss


def _contrastive(model: Model, draw_time: Callable[..., Float[Array, "B"]] | None) -> LossPerExample:
    """A CLIP's loss of noisy pictures, each at a time of its own, and their captions, among all pairs of the batch.

    Source: Nichol et al. 2021 (GLIDE), section 4.4.
    """
    if draw_time is None:
        raise UserError(
            "config.diffusion.time=loss_second_moment: a CLIP's loss is of pairs, not of a time alone. Set time=discrete_uniform."
        )
    schedule = model.process.schedule

    def loss(
        params: Params,
        batch: Batch,
        keys: Array,
        history: LossHistory | tuple[()],
        axis_name: str | None = None,
    ) -> tuple[Float[Array, "B"], Record | None]:
        x0, t = images.to_float(batch["image"]), draw_time(fold_in(keys, 1))
        x_t = diffuse(schedule, x0, normal_per_example(fold_in(keys, 2), x0.shape[1:], x0.dtype), t)
        pictures = fed(model, functools.partial(model.network.apply, params))(x_t, t, {})
        texts = encode_text(model, params, batch["tokens"], batch["mask"])
        scale = clip.logit_scale(params)
        told = losses.contrastive_loss(
            pictures, texts, *all_gather((pictures, texts), axis_name), example_indices(len(t), axis_name), scale
        )
        figures = (told.image_to_text, told.text_to_image, jnp.broadcast_to(scale, t.shape))
        return told.loss, Record(t, told.loss, figures=dict(zip(CLIP_FIGURES, figures, strict=True)))

    return loss


def _of_picture(model: Model, batch: Batch, x0: Array, keys: Array) -> Cond:
    """The parts of the condition that are never dropped: a class without a null one, and what is made of the picture."""
    blank = model.blank_cond
    labelled = "label" in blank.keys() - model.null_cond.keys() or model.config.model.kind == "classifier"
    cond = {"label": batch["label"]} if labelled else {}
    if "low_res" in blank:
        small = conditions.area_downsample(x0, model.config.model.low_res)
        most = model.config.diffusion.low_res_noise
        cond["low_res"] = conditions.noised(fold_in(keys, 5), small, most) if most else small
    if "inpaint_mask" in blank:
        mask = masks.random_masks(fold_in(keys, 4), *x0.shape[1:3])
        cond |= {"inpaint_image": x0, "inpaint_mask": mask}
    return cond


def loss_history(model: Model) -> LossHistory | tuple[()]:
    """The loss history that the train state begins with: () unless the training time is drawn from one."""
    d = model.config.diffusion
    return times.init(d.num_table_steps) if d.time == "loss_second_moment" else ()


def objective(model: Model) -> Callable[..., Float[Array, "B"]]:
    """The config's loss, as (network, x0, t, keys, cond) -> [B]."""
    d, schedule, output = model.config.diffusion, model.process.schedule, model.parameterization
    if model.config.model.kind == "classifier":
        return lambda network, x0, t, keys, cond: losses.classification_loss(
            network, schedule, x0, t, keys, cond["label"]
        )
    _check_objective(model)
    if model.transition is not None:
        transition = model.transition
        return lambda network, *example: losses.categorical_loss(network, transition, *example, kind=d.objective)
    if d.objective == "denoising":
        space = output if d.loss_space == d.parameterization else parameterization(model.config, "loss_space")
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
    parameterization(model.config, "loss_space")
    for field, known in (("objective", OBJECTIVES), ("weight", WEIGHTS), ("distance", losses.DISTANCES)):
        if d[field] not in known:
            raise unknown_name(f"config.diffusion.{field}", d[field], known)
    if d.kind == "discrete":
        return _check_categorical_objective(d)
    if d.schedule.startswith(TABLE) and model.process.schedule(jnp.ones(())).alpha == 0:
        _check_pure_noise(d, learned_variance(model.config))
    if d.objective != "denoising":
        return _check_ddpm_objective(d)
    if learned_variance(model.config):
        raise UserError(
            f"config.diffusion.objective=denoising teaches no variance, and variance={d.variance} is the network's. Use "
            "config.diffusion.objective=mse (improved DDPM's hybrid loss), or variance=small or large."
        )
    if d.weight != "none" and d.loss_space != "eps":
        raise UserError(
            f"config.diffusion.weight={d.weight} is made for the error of eps, but loss_space={d.loss_space}. Set "
            "config.diffusion.loss_space=eps (whatever the network outputs), or weight=none."
        )


def _check_pure_noise(d: ConfigDict, learned: bool) -> None:
    asked_for_x0 = d.loss_space not in ("eps", "score") or d.objective in ("kl", "rescaled_kl") or learned
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
