"""Figures with their whole protocol: FID and its kin of pictures beside real ones, and what samples show of captions."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import UInt8

import diffusion_jax
from diffusion_jax import build, processes
from diffusion_jax.data import faults
from diffusion_jax.data.pipeline import as_text
from diffusion_jax.errors import UserError
from diffusion_jax.generate import Progress
from diffusion_jax.interop.inception import HOW_TO_GET
from diffusion_jax.metrics import caption_checker, comparison, features, kept, sets
from diffusion_jax.models import Params
from diffusion_jax.sampling import Loaded
from diffusion_jax.training.placement import Placement, make_placement

DATA = "data:"  # --reference=data:SPLIT
# Calls of the denoiser in N steps; N for every other sampler.
EVALUATIONS = {"heun": lambda n: 2 * n - 1, "midpoint": lambda n: 2 * n, "plms": lambda n: n + 1}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be compared, and how.

    samples: a folder or npz of pictures; None where a checkpoint makes them.
    reference: a folder, an npz, or data:SPLIT, which is of a checkpoint's own data set; None for the Inception Score alone.
    inception: the file of FID's Inception.
    num_samples: pictures; of `samples` the first, all of them where it is None.
    split: of the checkpoint's data set, whose captions are sampled.
    seeds: of a checkpoint's samples; each makes sets of its own.
    """

    samples: str | None
    reference: str | None
    inception: str | None
    resize: str
    num_samples: int | None
    split: str
    seeds: tuple[int, ...]
    batch_size: int
    save_statistics: str | None
    protocol: comparison.Protocol


def compare(
    request: Request, loaded: Loaded | None, scales: list[float], part: pathlib.Path | None = None
) -> dict[str, Any]:
    """Scores pictures, prints the figures and returns them with their protocol.

    Args:
      loaded: the checkpoint that makes the pictures; None where they are there.
      scales: its guidance scales; each has a set for each seed.
      part: a folder for what is done: after a stop the same request goes on from there. The caller removes it.

    Raises:
      UserError: something is missing, or does not fit.
    """
    if request.inception is None:
        raise UserError(f"figures of pictures need --inception=FILE, the weights of FID's Inception. {HOW_TO_GET}")
    if request.save_statistics and loaded and len(scales) * len(request.seeds) > 1:
        raise UserError("--save_statistics is of one set: give one of --guidance_scales, and one seed.")
    place = build.placement(loaded.model.config) if loaded else make_placement("pmap")
    extractor = features.inception_extractor(request.inception, request.resize)
    extract = features.make_extract(extractor, place)
    batch_size = -(-request.batch_size // place.num_devices) * place.num_devices

    def gathered(pictures: sets.PictureSet, label: str) -> comparison.Gathered:
        def compute(first: int) -> Iterator[features.Features]:
            return extract(pictures.batches(batch_size, first), batch_size)

        with tqdm.tqdm(total=pictures.count, desc=pictures.name, unit="picture", dynamic_ncols=True) as bar:
            try:
                return comparison.gather(pictures.name, _counted(kept.resumed(part, label, compute), bar))
            except ValueError as error:
                raise UserError(f"{pictures.name}: {error}") from error

    made_sets = _sampled(loaded, place, request, scales) if loaded else [_given(request)]
    stored, pictures = _reference(request.reference, loaded)
    if part:
        kept.prepare(part, _depends_on(request, loaded, scales, extractor, batch_size))
    real = gathered(pictures, "real") if pictures else None
    record = {
        "figures": {},
        "network": {"name": extractor.name, "sha256": extractor.sha256, **extractor.protocol},
        "protocol": request.protocol._asdict(),
        "reference": _described(stored, pictures),
        "made": {"num_samples": made_sets[0].count} | (_recipe(loaded, request) if loaded else {}),
        "versions": {"diffusion_jax": diffusion_jax.__version__, "jax": jax.__version__, "numpy": np.__version__},
    }
    for number, made_set in enumerate(made_sets):
        made = gathered(made_set, f"made{number}")
        if request.save_statistics and processes.first():
            sets.write_statistics(request.save_statistics, made.statistics)
        found = comparison.own_figures(made, request.protocol)
        if known := stored or (real and real.statistics):
            try:
                found |= comparison.figures(made, known, real.pool if real else None, request.protocol)
            except ValueError as error:
                raise UserError(f"{known.name} does not fit these features: {error}") from error
        record["figures"][made_set.name] = found
    if loaded and len(request.seeds) > 1:
        record["over_seeds"] = over_seeds(record["figures"], scales, request.seeds)
    if any(record["figures"].values()):
        print(table(record))
    return record


def captions_can_be_read(model: build.Model) -> bool:
    """Whether the caption checker reads a model's samples: they are of captioned scenes, by their text."""
    config = model.config
    return config.data.name == "captioned_scenes" and config.model.condition == "text"


def caption_scorer(
    model: build.Model, place: Placement, examples: list[dict[str, Any]], batch_size: int
) -> Callable[..., dict[str, float]]:
    """What samples of the captions of `examples` show of them, as the caption checker reads it.

    Returns:
      (params, scale of guidance, seed, progress as of `generate`) -> scores by attribute.
    """
    captions, indices = _captions(examples), np.arange(len(examples))
    generate, grid, cond = build.generate(model, place), build.grid(model), build.prompt_cond(model, captions)

    def score(params: Params, scale: float, seed: int, progress: Progress | None = None) -> dict[str, float]:
        knobs = build.knobs(model)._replace(guidance_scale=scale)
        made = generate(params, cond, indices, seed, knobs, grid, batch_size, progress)
        return caption_checker.score(made, captions)

    return score


def score_captions(
    loaded: Loaded, split: str, num_samples: int, scales: list[float], seeds: tuple[int, ...], batch_size: int
) -> dict[str, Any]:
    """Scores by attribute of samples of a split's captions, beside those of its own pictures, with their protocol.

    Args:
      num_samples: the split's first ones; all of them where it has fewer.
      scales, seeds: each pair makes samples of its own.

    Raises:
      UserError: the checker cannot read them.
    """
    config, place = loaded.model.config, build.placement(loaded.model.config)
    if not captions_can_be_read(loaded.model):
        raise UserError(
            "the caption checker reads text-conditional models of captioned_scenes; this checkpoint is another."
        )
    source = _source(loaded, split)
    examples = [source[i] for i in range(min(num_samples, len(source)))]
    batch_size = -(-min(batch_size, len(examples)) // place.num_devices) * place.num_devices
    scorer = caption_scorer(loaded.model, place, examples, batch_size)
    pictures = np.stack([example["image"] for example in examples])
    scores = {"real renders": caption_checker.score(pictures, _captions(examples))}
    steps = -(-len(examples) // batch_size) * (len(build.grid(loaded.model)) - 1)
    with tqdm.tqdm(total=len(scales) * len(seeds) * steps, desc="sample", unit="step", dynamic_ncols=True) as bar:
        for scale, seed in itertools.product(scales, seeds):
            scores[set_name(scale, seed, seeds)] = scorer(loaded.params, scale, seed, bar.update)
    record = {
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "split": split,
        "num_samples": len(examples),
        "seeds": list(seeds),
        "sample": config.sample.to_dict(),
        "jax": jax.__version__,
        "scores": scores,
    }
    return record | ({"over_seeds": over_seeds(scores, scales, seeds)} if len(seeds) > 1 else {})


def _captions(examples: list[dict[str, Any]]) -> list[str]:
    return [as_text(example["caption"]) for example in examples]


def set_name(scale: float, seed: int, seeds: tuple[int, ...]) -> str:
    """What the samples of a scale of guidance and a seed are called; the seed is told where there are several."""
    return f"guidance {scale:g}" + (f", seed {seed}" if len(seeds) > 1 else "")


def over_seeds(
    rows: dict[str, dict[str, float]], scales: list[float], seeds: tuple[int, ...]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and spread over the seeds, for each scale of guidance; `rows` are by `set_name`."""
    return {
        f"guidance {scale:g}": comparison.over_seeds([rows[set_name(scale, seed, seeds)] for seed in seeds])
        for scale in scales
    }


def with_spread(record: dict[str, Any], figures: str) -> dict[str, dict[str, float]]:
    """The rows of a record's figures and, where it has them, those of means and spreads over seeds."""
    more = {
        f"{name}, {which}": row for name, both in record.get("over_seeds", {}).items() for which, row in both.items()
    }
    return record[figures] | more


def table(record: dict[str, Any]) -> str:
    """The figures as a table in Markdown, N and the reference in its first cells."""
    rows = with_spread(record, "figures")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    reference = (record["reference"] or {}).get("name", "-")
    lines = ["| | N | beside | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for label, row in rows.items():
        cells = [f"{row[name]:.4f}" if name in row else "-" for name in names]
        lines.append(f"| {label} | {record['made']['num_samples']} | {reference} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counted(batches: Iterator[features.Features], bar: tqdm.tqdm) -> Iterator[features.Features]:
    for batch in batches:
        bar.update(len(batch["pool"]))
        yield batch


def _depends_on(
    request: Request, loaded: Loaded | None, scales: list[float], extractor: features.Extractor, batch_size: int
) -> dict[str, Any]:
    """All that the features depend on."""
    reference = request.reference
    found = {
        "network": [extractor.name, extractor.sha256, extractor.protocol],
        "samples": kept.file_identity(request.samples) if request.samples else None,
        "reference": reference if not reference or reference.startswith(DATA) else kept.file_identity(reference),
        "num_samples": request.num_samples,
        "batch_size": batch_size,  # it moves the last digits
        "versions": [diffusion_jax.__version__, jax.__version__],
    }
    if loaded is None:
        return found
    config = loaded.model.config
    return found | {
        "checkpoint": [str(loaded.workdir.resolve()), loaded.step, kept.array_identity(loaded.params)],
        "sample": config.sample.to_dict(),
        "data": str(config.data.to_dict()),
        "split": request.split,
        "guidance_scales": scales,
        "seeds": request.seeds,
    }


def _given(request: Request) -> sets.PictureSet:
    """The pictures of --samples, the first of them where so many are asked for."""
    return sets.first_of(sets.pictures(str(request.samples)), request.num_samples)


def _reference(text: str | None, loaded: Loaded | None) -> tuple[sets.Statistics | None, sets.PictureSet | None]:
    """Stored statistics and pictures, whichever there are."""
    if text is None:
        return None, None
    if not text.startswith(DATA):
        statistics = None if pathlib.Path(text).is_dir() else sets.read_statistics(text)
        pictures = sets.read_pictures(text)
        if statistics is None and pictures is None:
            raise UserError(f"{text} has neither pictures (arr_0) nor statistics (mu and sigma).")
        return statistics, pictures
    if loaded is None:
        raise UserError(f"--reference={text} is the data set of a --checkpoint: give one, or a folder or npz.")
    source, encode = _source(loaded, text.removeprefix(DATA)), build.encode_example(loaded.model)
    name = f"{loaded.model.config.data.name}, {text.removeprefix(DATA)}"

    def batches(batch_size: int, first: int = 0) -> Iterator[np.ndarray]:
        for start in range(first, len(source), batch_size):
            rows = range(start, min(start + batch_size, len(source)))
            yield np.stack([faults.named(source, i, encode.image) for i in rows])

    return None, sets.PictureSet(name, len(source), batches)


def _source(loaded: Loaded, split: str) -> Any:
    return processes.first_then_others(lambda: build.source(loaded.model.config, split))


def _sampled(loaded: Loaded, place: Placement, request: Request, scales: list[float]) -> list[sets.PictureSet]:
    """A checkpoint's samples, a set for each scale of guidance and seed; one program serves them all.

    Number i has the caption of example i of the split, or a random class."""
    model, count = loaded.model, request.num_samples or 0
    if model.config.model.low_res or model.config.model.inpaint:
        raise UserError(
            "this checkpoint changes given pictures: sample it by sample.py, and give --samples=FOLDER/samples.npz."
        )
    captions: dict[str, np.ndarray] = {}
    if model.config.model.condition == "text":
        source, encode = _source(loaded, request.split), build.encode_example(model)
        said = [faults.named(source, i % len(source), encode.caption) for i in range(count)]
        captions = build.prompt_cond(model, said)
    generate, grid, params = build.generate(model, place), build.grid(model), place.replicate(loaded.params)

    def batches(scale: float, seed: int, batch_size: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        knobs, cond = build.knobs(model)._replace(guidance_scale=scale), captions
        if model.config.model.condition == "label":
            labels = np.random.default_rng(seed).integers(model.config.data.num_classes, size=count)
            cond = {"label": labels.astype(np.int32)}
        for start in range(first, count, batch_size):
            rows = np.arange(start, min(start + batch_size, count))
            part = jax.tree.map(lambda x, rows=rows: x[rows], cond)
            yield generate(params, part, rows, seed, knobs, grid, batch_size)

    return [
        sets.PictureSet(set_name(scale, seed, request.seeds), count, functools.partial(batches, scale, seed))
        for scale in scales
        for seed in request.seeds
    ]


def _recipe(loaded: Loaded, request: Request) -> dict[str, Any]:
    """How a checkpoint's samples are made, the scale of guidance apart."""
    sample = loaded.model.config.sample
    steps = len(build.grid(loaded.model)) - 1
    calls = EVALUATIONS.get(sample.sampler, lambda n: n)(steps)
    guided = sample.guidance != "none" and (sample.guidance == "autoguidance" or bool(loaded.model.null_cond))
    return {
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "seeds": list(request.seeds),
        "split": request.split,
        "sample": sample.to_dict(),
        "network_evaluations": calls * (2 if guided else 1),
    }


def _described(statistics: sets.Statistics | None, pictures: sets.PictureSet | None) -> dict[str, Any] | None:
    found = statistics or pictures
    if found is None:
        return None
    return {
        "name": found.name,
        "stored_statistics": sorted(statistics.moments) if statistics else [],
        "pictures": pictures.count if pictures else 0,
    }
