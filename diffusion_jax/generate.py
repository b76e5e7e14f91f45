"""Conditions -> images, in batches over all devices. Image i depends on (parameters, seed, i, its condition) alone."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax import editing, guidance, images, samplers
from diffusion_jax.denoiser import Cond, Denoiser
from diffusion_jax.models import Params
from diffusion_jax.predictions import Parameterization, Prediction
from diffusion_jax.samplers import Sampler
from diffusion_jax.schedules import Schedule, level_like
from diffusion_jax.training.placement import Placement

Progress = Callable[[int], None]
PARTS = 10  # in which the loop runs where somebody is told of its progress
GUIDANCES = ("none", "classifier_free", "autoguidance")
COMBINES = ("plain", "rescaled", "projected")
THRESHOLDS = ("none", "clip", "dynamic")
CLASSIFIERS = ("none", *guidance.SHIFTS)
EDITS = ("none", "replace", "repaint", "product")


@dataclasses.dataclass(frozen=True)
class Method:
    """How images are sampled, as far as it is compiled in. Its numbers are `Knobs`, which are not.

    sampler: the method.
    guidance: one of GUIDANCES; a model without null condition is not guided by classifier_free.
    combine: one of COMBINES.
    interval: whether guidance is limited to times in [knobs.guidance_low, knobs.guidance_high].
    threshold: one of THRESHOLDS, for predicted x0.
    classifier: one of CLASSIFIERS: how the gradient of a classifier, or of CLIP, enters.
    edit: one of EDITS: what holds the known part of `Inputs.picture`.
    """

    sampler: Sampler
    guidance: str = "classifier_free"
    combine: str = "plain"
    interval: bool = False
    threshold: str = "clip"
    classifier: str = "none"
    edit: str = "none"


class Knobs(NamedTuple):
    """Run-time numbers of sampling: changing one compiles nothing. Each is what the function that it is given to calls so.

    guidance_scale: one number, or one per image [N].
    """

    guidance_scale: float | Float[np.ndarray, "N"] = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    rescale: float = 0.0
    parallel: float = 0.0
    norm_limit: float = float("inf")
    quantile: float = 0.995
    classifier_scale: float = 1.0
    deviation: float = 0.0
    temperature: float = 1.0


class Inputs(NamedTuple):
    """What sampling may begin from or be guided by, beside the condition; [N, ...] arrays, a row per image.

    null_cond: guided away from, in place of the model's null condition (a negative prompt).
    weak_params: of autoguidance's weak model.
    classifier_params: of the classifier or CLIP.
    picture: float [N, H, W, C] in [-1, 1]; sampling starts from it where `begin` > 0, and `mask` says what of it is kept.
    mask: [N, H, W, 1], True where the picture is kept.
    latents: [N, H, W, C], the state at grid[begin], in place of fresh noise.
    begin: the first step taken.
    end: where the steps end, None at the grid's last time. A grid that is filled up to a fixed length then serves any number
      of steps with one program.
    other_cond: a second condition of each image, as `cond`; `fraction` [N] says how far to go from `cond` to it.
    """

    null_cond: Cond | None = None
    weak_params: Params | None = None
    classifier_params: Params | None = None
    picture: Float[np.ndarray, "N H W C"] | None = None
    mask: Bool[np.ndarray, "N H W 1"] | None = None
    latents: Float[np.ndarray, "N H W C"] | None = None
    begin: int = 0
    end: int | None = None
    other_cond: Cond | None = None
    fraction: Float[np.ndarray, "N"] | None = None


class Watch(NamedTuple):
    """Somebody who is shown the pictures as they form.

    show: called after each part of the loop with (index of the batch's first image, step reached, uint8 [n, H, W, C]): the x0
      that the last step foresaw, for each image of the batch.
    parts: how many parts; each costs a call of the program and no evaluation of the network.
    """

    show: Callable[[int, int, np.ndarray], None]
    parts: int = PARTS


def make_generate(
    denoiser_of: Callable[[Params], Denoiser],
    null_cond: Cond,
    schedule: Schedule,
    image_shape: tuple[int, int, int],
    placement: Placement,
    method: Method,
    rescale_space: Parameterization,
    log_prob_of: Callable[[Params], guidance.LogProb] | None = None,
) -> Callable[..., np.ndarray]:
    """A function that samples images.

    The whole sampling loop is one compiled program; parameters, seed, conditions, knobs, pictures and the grid's values
    are its run-time inputs. It compiles once for a batch size and a number of steps; what makes the first state is a second,
    tiny program.

    Args:
      denoiser_of: params -> Denoiser.
      null_cond: the null condition of one example; {} for a model without condition.
      schedule: the forward process.
      image_shape: (H, W, C).
      placement: devices to spread a batch over.
      method: what is compiled in.
      rescale_space: where `guidance.rescaled` measures the spread.
      log_prob_of: params -> what classifier guidance raises; needed where method.classifier is not "none".

    Returns:
      generate(params, cond [N, ...], indices [N], seed, knobs, grid, batch_size, progress=None, inputs=Inputs(), raw=False,
      watch=None) -> uint8 [N, H, W, C], or with raw float32 as the sampler left it. `seed` is one number, or one per image [N].
      `progress` is called with the steps done since the last call, of (batches) x (steps) in all; `watch` is a Watch.
    """
    remembered = _remembering(method.sampler)

    def start(shared: dict[str, Any], batch: dict[str, Any], axis_name: str | None) -> Array:
        keys = _keys(batch)
        if "picture" in batch:
            return editing.sdedit_start(schedule, batch["picture"], shared["t"], keys)
        level = level_like(schedule, shared["t"], jnp.zeros((1, *image_shape)))
        return shared["temperature"] * samplers.initial_noise(keys, image_shape, level)

    def program(shared: dict[str, Any], batch: dict[str, Any], axis_name: str | None) -> tuple[Array, Any]:
        denoiser = _guided(method, denoiser_of, schedule, rescale_space, shared, batch)
        if method.classifier != "none":  # after the threshold: what a classifier adds is not clipped, as in ADM
            assert log_prob_of is not None, "a classifier's gradient needs the classifier"
            denoiser = _by_classifier(
                method, denoiser, log_prob_of(shared["classifier_params"]), schedule, shared["knobs"]
            )
        denoiser, sampler = _edited(method, remembered, denoiser, schedule, shared["knobs"], batch)
        carry, keys = (batch["x"], batch["state"]), _keys(batch)
        return samplers.run(
            sampler, denoiser, carry, shared["grid"], batch["cond"], keys, shared["first"], shared["last"]
        )

    compiled_start, compiled = placement.map(start), placement.map(program)

    def generate(
        params: Params,
        cond: Cond,
        indices: Int[np.ndarray, "N"],
        seed: int | Int[np.ndarray, "N"],
        knobs: Knobs,
        grid: Float[Array, "T+1"],
        batch_size: int,
        progress: Progress | None = None,
        inputs: Inputs = Inputs(),  # noqa: B008 (a tuple of Nones)
        raw: bool = False,
        watch: Watch | None = None,
    ) -> np.ndarray:
        grid = np.asarray(grid, np.float32)
        end = len(grid) - 1 if inputs.end is None else inputs.end
        # Parts of the loop at a time only where somebody watches.
        count = watch.parts if watch else PARTS if progress else 1
        stops = np.unique(np.linspace(inputs.begin, end, count + 1).round().astype(int))
        at_start = {"t": grid[inputs.begin], "temperature": np.float32(knobs.temperature)}
        shared = _shared(method, placement, params, null_cond, knobs, inputs) | {"grid": grid}
        rows = _rows(method, cond, indices, seed, knobs, inputs)
        first_rows = {"index": rows["index"], "seed": rows["seed"]}
        first_rows |= {"picture": inputs.picture} if inputs.begin else {}
        parts = []
        for offset in range(0, len(indices), batch_size):
            batch, size = _padded(rows, offset, batch_size), min(batch_size, len(indices) - offset)
            if inputs.latents is None:
                x = compiled_start(at_start, _padded(first_rows, offset, batch_size))
            else:
                x = _padded(np.asarray(inputs.latents, np.float32), offset, batch_size)
            carry = x, remembered.init(jnp.asarray(x))
            for first, last in zip(stops, stops[1:], strict=False):
                bounds = {"first": np.int32(first), "last": np.int32(last)}
                carry = compiled(shared | bounds, batch | {"x": carry[0], "state": carry[1]})
                if progress:
                    jax.block_until_ready(carry)
                    progress(int(last - first))
                if watch:
                    watch.show(offset, int(last), images.to_uint8(np.asarray(carry[1].x0)[:size]))
            parts.append(np.asarray(carry[0])[:size])
        made = np.concatenate(parts)
        if method.edit in ("replace", "repaint"):
            made = np.where(
                inputs.mask, inputs.picture, made
            )  # what is known is left to the last bit, by every sampler
        return made if raw else images.to_uint8(made)

    return generate


def _shared(
    method: Method, placement: Placement, params: Params, null_cond: Cond, knobs: Knobs, inputs: Inputs
) -> dict[str, Any]:
    """What all images of a batch share."""
    shared = {
        "params": placement.replicate(params),
        "knobs": jax.tree.map(np.float32, knobs._replace(guidance_scale=1.0)),  # the scale is among the rows
        "null_cond": null_cond if inputs.null_cond is None else inputs.null_cond,
    }
    if method.guidance == "autoguidance":
        shared["weak_params"] = placement.replicate(inputs.weak_params)
    if method.classifier != "none":
        shared["classifier_params"] = placement.replicate(inputs.classifier_params)
    return shared


def _rows(
    method: Method, cond: Cond, indices: np.ndarray, seed: int | np.ndarray, knobs: Knobs, inputs: Inputs
) -> dict[str, Any]:
    """What each image has of its own, [N, ...]: so that those of several requests can be of one batch."""
    count = len(indices)
    rows = {
        "index": np.asarray(indices),
        "cond": cond,
        "seed": np.broadcast_to(np.asarray(seed, np.uint32), count),
        "guidance_scale": np.broadcast_to(np.asarray(knobs.guidance_scale, np.float32), count),
    }
    if method.edit != "none":
        rows |= {"known": inputs.picture, "mask": inputs.mask}
    if inputs.other_cond is not None:
        rows |= {"other_cond": inputs.other_cond, "fraction": np.asarray(inputs.fraction, np.float32)}
    return rows


def _keys(batch: dict[str, Any]) -> Key[Array, "B"]:
    """One key per image, of its seed and its index."""
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(batch["seed"], batch["index"])


class _Remembered(NamedTuple):
    """A sampler's state, and the x0 that the last step foresaw."""

    state: Any
    x0: Float[Array, "B ..."]


def _remembering(sampler: Sampler) -> Sampler:
    """A sampler whose state also holds what it was first told of x0 in its last step; before any step, x itself."""

    def step(denoise, x_t, t, s, keys, remembered):
        told = []

        def heard(x: Array, time: Array) -> Prediction:
            prediction = denoise(x, time)
            told.append(prediction.x0)
            return prediction

        x_s, state = sampler.step(heard, x_t, t, s, keys, remembered.state)
        return x_s, _Remembered(state, told[0])

    return sampler._replace(init=lambda x_t: _Remembered(sampler.init(x_t), x_t), step=step)


def _guided(
    method: Method,
    denoiser_of: Callable[[Params], Denoiser],
    schedule: Schedule,
    space: Parameterization,
    shared: dict[str, Any],
    batch: dict[str, Any],
) -> Denoiser:
    """Network -> guidance -> interval -> between two conditions -> threshold of x0, with the run-time values."""
    knobs, plain = shared["knobs"], denoiser_of(shared["params"])

    def per_image(values: Float[Array, "B"]) -> Float[Array, "B ..."]:
        return values.reshape(-1, *(1,) * (batch["x"].ndim - 1))

    scale = per_image(batch["guidance_scale"])
    combine = {
        "plain": guidance.extrapolate,
        "rescaled": guidance.rescaled(schedule, space, knobs.rescale),
        "projected": guidance.projected(schedule, knobs.parallel, knobs.norm_limit),
    }[method.combine]
    guided = plain
    if method.guidance == "autoguidance":
        guided = guidance.autoguidance(plain, denoiser_of(shared["weak_params"]), scale, combine)
    elif method.guidance == "classifier_free" and shared["null_cond"]:
        guided = guidance.classifier_free(plain, shared["null_cond"], scale, combine)
    if method.interval and guided is not plain:
        guided = guidance.within_interval(guided, plain, knobs.guidance_low, knobs.guidance_high)
    if "other_cond" in batch:
        guided = editing.between(guided, batch["other_cond"], per_image(batch["fraction"]))
    if method.threshold == "dynamic":
        return guidance.dynamic_threshold(guided, schedule, knobs.quantile)
    return guidance.clip_x0(guided, schedule) if method.threshold == "clip" else guided


def _by_classifier(
    method: Method, denoiser: Denoiser, log_prob: guidance.LogProb, schedule: Schedule, knobs: Knobs
) -> Denoiser:
    """Classifier guidance, within the interval of guidance."""
    guided = guidance.classifier(denoiser, schedule, log_prob, knobs.classifier_scale, method.classifier)
    if not method.interval:
        return guided

    def unguided(x_t: Float[Array, "B ..."], t: Float[Array, "*B"], cond: Cond) -> Prediction:
        prediction = denoiser(x_t, t, cond)
        if method.classifier == "mean" and prediction.mean_gradient is None:  # both branches have one
            return prediction._replace(mean_gradient=jnp.zeros_like(x_t))
        return prediction

    return guidance.within_interval(guided, unguided, knobs.guidance_low, knobs.guidance_high)


def _edited(
    method: Method, sampler: Sampler, denoiser: Denoiser, schedule: Schedule, knobs: Knobs, batch: dict[str, Any]
) -> tuple[Denoiser, Sampler]:
    """The denoiser and sampler that hold the known part of a picture."""
    if method.edit == "replace":
        return editing.replace_known(denoiser, schedule, batch["known"], batch["mask"]), sampler
    if method.edit == "product":
        deviation = jnp.where(batch["mask"], knobs.deviation, jnp.inf)
        return editing.posterior_product(denoiser, schedule, batch["known"], deviation, DATA_VARIANCE), sampler
    if method.edit == "repaint":
        return denoiser, editing.repaint(sampler, schedule, batch["known"], batch["mask"])
    return denoiser, sampler


DATA_VARIANCE = 0.25  # of images in [-1, 1], EDM's sigma_data^2


def _padded(tree: Any, start: int, size: int) -> Any:
    """Rows start..start + size of every leaf; beyond the end the last row again, so that one program serves all."""

    def rows(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf[np.minimum(np.arange(start, start + size), len(leaf) - 1)]

    return jax.tree.map(rows, tree)
