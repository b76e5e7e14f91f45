"""FID and its kin, or FD by another network: pictures beside real ones."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm

import diffusion_jax
from diffusion_jax import build, processes
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import comparison, features, kept, sets
from diffusion_jax.sampling import Loaded
from diffusion_jax.scores import extractors, samples
from diffusion_jax.training.placement import Placement, make_placement

DATA = "data:"  # --reference=data:SPLIT


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be compared, and how.

    samples: a folder or npz of pictures; None where a checkpoint makes them.
    reference: a folder, an npz, or data:SPLIT, which is of a checkpoint's own data set; None for the Inception Score alone.
    features, features_file, resize: the network whose features are compared, as `extractors.extractor`.
    num_samples: pictures; of `samples` the first, all of them where it is None.
    split: of the checkpoint's data set, whose captions are sampled.
    seeds: of a checkpoint's samples; each makes sets of its own.
    """

    samples: str | None
    reference: str | None
    features: str
    features_file: str | None
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
    if request.save_statistics and loaded and len(scales) * len(request.seeds) > 1:
        raise UserError("--save_statistics is of one set: give one of --guidance_scales, and one seed.")
    extractor = extractors.extractor(request.features, request.features_file, request.resize)
    place = build.placement(loaded.model.config) if loaded else make_placement("pmap")
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
    record = _record(request, loaded, extractor, made_sets[0].count, _described(stored, pictures))
    for number, made_set in enumerate(made_sets):
        made = gathered(made_set, f"made{number}")
        if request.save_statistics and processes.first():
            sets.write_statistics(request.save_statistics, made.statistics)
        found = comparison.own_figures(made, request.protocol)
        if known := stored or (real and real.statistics):
            try:
                pool = real.pool if real else None
                found |= comparison.figures(made, known, pool, request.protocol, extractor.frechet)
            except ValueError as error:
                raise UserError(f"{known.name} does not fit these features: {error}") from error
        record["figures"][made_set.name] = found
    if loaded and len(request.seeds) > 1:
        record["over_seeds"] = samples.over_seeds(record["figures"], scales, request.seeds)
    if any(record["figures"].values()):
        print(table(record))
    return record


def table(record: dict[str, Any]) -> str:
    """The figures as a table in Markdown: the network in its first cell, then N and the reference of each row."""
    rows = samples.with_spread(record, "figures")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    network, reference = ((record[key] or {}).get("name", "-") for key in ("network", "reference"))
    lines = [f"| {network} | N | beside | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for label, row in rows.items():
        cells = [f"{row[name]:.4f}" if name in row else "-" for name in names]
        lines.append(f"| {label} | {record['made']['num_samples']} | {reference} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counted(batches: Iterator[features.Features], bar: tqdm.tqdm) -> Iterator[features.Features]:
    for batch in batches:
        bar.update(len(batch["pool"]))
        yield batch


def _record(
    request: Request,
    loaded: Loaded | None,
    extractor: features.Extractor,
    count: int,
    reference: dict[str, Any] | None,
) -> dict[str, Any]:
    """The protocol of a comparison, with room for its figures."""
    recipe = {}
    if loaded:
        recipe = {
            "checkpoint": str(loaded.workdir),
            "step": loaded.step,
            "seeds": list(request.seeds),
            "split": request.split,
            "sample": loaded.model.config.sample.to_dict(),
            "network_evaluations": samples.network_evaluations(loaded.model),
        }
    return {
        "figures": {},
        "network": {"name": extractor.name, "sha256": extractor.sha256, **extractor.protocol},
        "protocol": request.protocol._asdict(),
        "reference": reference,
        "made": {"num_samples": count} | recipe,
        "versions": {"diffusion_jax": diffusion_jax.__version__, "jax": jax.__version__, "numpy": np.__version__},
    }


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


def _sampled(loaded: Loaded, place: Placement, request: Request, scales: list[float]) -> list[sets.PictureSet]:
    """A checkpoint's samples, a set for each scale of guidance and seed."""
    model, count, captions = loaded.model, request.num_samples or 0, None
    if model.config.model.condition == "text":
        captions = samples.captions_of_split(model, request.split, count)
    return samples.sampled(model, loaded.params, place, count, captions, scales, request.seeds)


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
    return None, samples.real_pictures(loaded.model, text.removeprefix(DATA))


def _described(statistics: sets.Statistics | None, pictures: sets.PictureSet | None) -> dict[str, Any] | None:
    found = statistics or pictures
    if found is None:
        return None
    return {
        "name": found.name,
        "stored_statistics": sorted(statistics.moments) if statistics else [],
        "pictures": pictures.count if pictures else 0,
    }
