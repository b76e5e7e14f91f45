"""The quick form of evaluation inside training: a few samples, read by the caption checker and beside real pictures."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import caption_checker, comparison, features
from diffusion_jax.scores import extractors, samples
from diffusion_jax.scores.captions import caption_scorer, captions_can_be_read
from diffusion_jax.training.placement import Placement

AT_A_TIME = 64  # pictures, over all devices
SPLITS = ("validation", "test")


class Evaluation(NamedTuple):
    """names: of the metrics that `figures`, of EMA parameters, has; or some of them."""

    names: tuple[str, ...]
    figures: Callable[[Any], dict[str, float]]


def while_training(model: build.Model, place: Placement) -> Evaluation | None:
    """What config.train.evaluate_every_steps shows, of samples with config.sample's guidance and the config's seed.

    score_*: what samples of captioned scenes show of the first captions of config.evaluate.split.
    fid (fd, of another network than Inception) and kid: of samples beside the split's first pictures, where
    config.evaluate.file names the network's weights; a line says so where it does not.

    Returns:
      None where there is nothing to show.

    Raises:
      UserError: a value of config.evaluate cannot be used.
    """
    e = model.config.evaluate
    if e.split not in SPLITS or e.num_samples < 2:
        raise UserError("config.evaluate.split is validation or test, and config.evaluate.num_samples at least 2.")
    parts = [_captions(model, place)] if captions_can_be_read(model) else []
    if e.file:
        parts.append(_pictures(model, place))
    elif not parts:
        print(
            "note: config.train.evaluate_every_steps shows nothing: FD and KID need config.evaluate.file, the weights of the "
            "network config.evaluate.features, and the caption checker reads text-conditional captioned_scenes alone."
        )
    if not parts:
        return None
    return Evaluation(
        tuple(name for part in parts for name in part.names),
        lambda ema_params: {name: value for part in parts for name, value in part.figures(ema_params).items()},
    )


def _captions(model: build.Model, place: Placement) -> Evaluation:
    config = model.config
    source = samples.source(model, config.evaluate.split)
    examples = [source[i] for i in range(min(config.evaluate.num_samples, len(source)))]
    score = caption_scorer(model, place, examples, _batch_size(len(examples), place))

    def figures(ema_params: Any) -> dict[str, float]:
        found = score(ema_params, config.sample.guidance_scale, config.seed)
        return {f"score_{name}": value for name, value in found.items()}

    return Evaluation(tuple(f"score_{name}" for name in caption_checker.Scores._fields), figures)


def _pictures(model: build.Model, place: Placement) -> Evaluation:
    config, captions = model.config, None
    if len(model.image_shape) != 3:
        raise UserError("config.evaluate.file is for pictures, and this config's data are vectors: leave it empty.")
    extractor = extractors.extractor(config.evaluate.features, config.evaluate.file)
    extract = features.make_extract(extractor, place)
    pictures = samples.real_pictures(model, config.evaluate.split, config.evaluate.num_samples)
    if config.model.condition == "text":
        captions = samples.captions_of_split(model, config.evaluate.split, pictures.count)
    sample, size = samples.make_sample(model, place, pictures.count, captions), _batch_size(pictures.count, place)
    protocol = comparison.Protocol(neighbours=pictures.count)  # too few for neighbours to say anything
    try:
        real = comparison.gather(pictures.name, extract(pictures.batches(size), size))
    except ValueError as error:
        raise UserError(f"config.evaluate.features={config.evaluate.features}, {pictures.name}: {error}") from error

    def figures(ema_params: Any) -> dict[str, float]:
        made = sample(ema_params, config.sample.guidance_scale, config.seed, size)
        gathered = comparison.gather("samples", extract(made, size))
        found = comparison.figures(gathered, real.statistics, real.pool, protocol, extractor.frechet)
        return {name: found[name] for name in (extractor.frechet, "kid")}

    return Evaluation((extractor.frechet, "kid"), figures)


def _batch_size(count: int, place: Placement) -> int:
    return -(-min(AT_A_TIME, count) // place.num_devices) * place.num_devices
