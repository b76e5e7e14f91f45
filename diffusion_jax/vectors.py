"""Models of data that are vectors (`data.toys`) beside those of images: sampling, pictures, and the bound beside the truth."""

import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax import build, discrete, grids, images, likelihood, processes
from diffusion_jax.data import toys
from diffusion_jax.keys import keys_per_example
from diffusion_jax.models import Params
from diffusion_jax.training.placement import Placement

RADIUS = 2.2  # of the roll's picture, standard deviations
ROLL_PIXELS, ROLL_DATA = 480, 8192
STRIP_PIXELS, STRIP_COLUMNS, MAX_STRIPS = 10, 4, 128


def is_vector(model: build.Model) -> bool:
    """Whether the model's data are vectors."""
    return len(model.image_shape) == 1


def make_draw(model: build.Model, place: Placement) -> Callable[..., np.ndarray]:
    """The function that samples: (params, count, seed, batch_size=None) -> [count, D], floats or categories.

    Sample i depends on (parameters, seed, i) alone. Categories take all steps of their table, whatever the config's sampler.
    """
    if model.transition is None:
        generate, grid, knobs = build.generate(model, place), build.grid(model), build.knobs(model)

        def draw(params: Params, count: int, seed: int, batch_size: int | None = None) -> np.ndarray:
            size = -(-min(batch_size or count, count) // place.num_devices) * place.num_devices
            return generate(params, {}, np.arange(count), seed, knobs, grid, size, raw=True)

        return draw

    transition, num_dims = model.transition, model.image_shape[0]

    @jax.jit
    def program(params: Params, seed: Array, indices: Array) -> Array:
        keys = keys_per_example(jax.random.key(seed), indices)
        return discrete.sample(transition, build.logits(model, params), num_dims, keys)

    def draw_categories(params: Params, count: int, seed: int, batch_size: int | None = None) -> np.ndarray:
        size = min(batch_size or count, count)
        parts = [program(params, np.uint32(seed), np.arange(i, i + size)) for i in range(0, count, size)]
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    return draw_categories


def make_bound(model: build.Model) -> Callable[[Params, np.ndarray, int], Float[np.ndarray, "N"]]:
    """The function (params, x0 [N, D], seed) -> a bound on log2 p(x0) in bits per example: Sohl-Dickstein et al. 2015's K.

    It takes all steps of the table, each with one draw of the noise.
    """

    def bits(params: Params, x0: Array, keys: Array) -> Array:
        if model.transition is not None:
            logits = build.logits(model, params)
            return -discrete.variational_bound(model.transition, logits, x0, keys) / math.log(2)
        d, schedule = model.config.diffusion, model.process.schedule
        grid, denoiser = grids.uniform(d.num_table_steps), build.denoiser(model, params)
        bound = likelihood.variational_bound(denoiser, schedule, x0, grid, {}, keys, d.variance, build.decoder(model))
        return -bound.total * x0.shape[1]

    program = jax.jit(bits)

    def bound(params: Params, x0: np.ndarray, seed: int) -> Float[np.ndarray, "N"]:
        keys = keys_per_example(jax.random.key(np.uint32(seed)), jnp.arange(len(x0)))
        return np.asarray(program(params, x0, keys))

    return bound


def picture(name: str, samples: np.ndarray) -> Image.Image:
    """Samples of a toy problem, drawn.

    Args:
      name: of the data set.
      samples: [N, D] of it. Of points, all over grey data; of bits, the first 128, a strip for each.
    """
    if name == "swiss_roll":
        return _scatter([("#c8c8c8", _roll_data()), ("#c03020", samples)])
    return _strips(samples[:MAX_STRIPS])


class SamplePicture:
    """Writes WORKDIR/samples/step_NNNNNNN.png of fresh samples; what `hooks.SampleGrid` is for images."""

    def __init__(self, model: build.Model, place: Placement, workdir: pathlib.Path):
        """
        Args:
          model: from `build.model`.
          place: devices.
          workdir: the run's directory.
        """
        self._config, self._folder = model.config, workdir / "samples"
        self._draw = make_draw(model, place)

    def __call__(self, step: int, ema_params: Any) -> Image.Image:
        """Samples, writes the picture, and returns it."""
        drawn = self._draw(ema_params, self._config.sample.samples_per_prompt, self._config.seed)
        shown = picture(self._config.data.name, drawn)
        if processes.first():
            self._folder.mkdir(parents=True, exist_ok=True)
            images.save_png(shown, self._folder / f"step_{step:07d}.png")
        return shown


def write_samples(out: pathlib.Path, name: str, samples: np.ndarray, record: dict[str, Any]) -> None:
    """Writes samples.npz (arr_0), grid.png and samples.json into a folder."""
    images.save_png(picture(name, samples), out / "grid.png")
    np.savez(out / "samples.npz", arr_0=samples)
    (out / "samples.json").write_text(json.dumps(record, indent=1) + "\n")


def score(model: build.Model, params: Params, x0: np.ndarray, seed: int) -> dict[str, float]:
    """The bound on x0's log2-likelihood beside what is known, bits per example.

    Returns:
      bound, its standard_error, truth_of_these (the true likelihood of the same x0), truth, null and paper (see `toys.Toy`).
    """
    name = model.config.data.name
    bits, facts = make_bound(model)(params, x0, seed), toys.facts(name)
    return {
        "bound": float(bits.mean()),
        "standard_error": float(bits.std() / math.sqrt(len(bits))),
        "truth_of_these": float(toys.LOG2_LIKELIHOODS[name](x0).mean()),
        **facts._asdict(),
    }


def score_text(scores: dict[str, float]) -> str:
    """`score` as lines of text."""
    lines = (
        ("bound K, this model", f"{scores['bound']:8.3f} +- {scores['standard_error']:.3f}"),
        ("truth, these examples", f"{scores['truth_of_these']:8.3f}"),
        ("truth, all examples", f"{scores['truth']:8.3f}"),
        ("L_null", f"{scores['null']:8.3f}"),
        ("bound K, the 2015 paper", f"{scores['paper']:8.3f}"),
    )
    return "\n".join(f"  {name:26}{value}" for name, value in lines)


@functools.cache
def _roll_data() -> Float[np.ndarray, "N 2"]:
    return toys.swiss_roll().values[:ROLL_DATA]


def _scatter(layers: list[tuple[str, Float[np.ndarray, "N 2"]]]) -> Image.Image:
    canvas = Image.new("RGB", (ROLL_PIXELS, ROLL_PIXELS), "white")
    draw = ImageDraw.Draw(canvas)
    for colour, points in layers:
        at = np.round((points * [1, -1] / RADIUS + 1) / 2 * ROLL_PIXELS)
        inside = (np.abs(points) < RADIUS).all(axis=1)
        draw.point([(int(x), int(y)) for x, y in at[inside]], fill=colour)
    left_out = int((~(np.abs(layers[-1][1]) < RADIUS).all(axis=1)).sum())
    text = f"{len(layers[-1][1])} samples over data" + (f", {left_out} outside" if left_out else "")
    draw.text((4, 2), text, fill="black", font=ImageFont.load_default(13))
    return canvas


def _strips(rows: np.ndarray) -> Image.Image:
    """Rows of bits as strips of squares, in columns."""
    per_column = -(-len(rows) // STRIP_COLUMNS)
    gap, side, length = STRIP_PIXELS, STRIP_PIXELS, rows.shape[1]
    width = STRIP_COLUMNS * (length * side + gap) + gap
    canvas = np.full((per_column * (side + 2) + 2 * gap, width), 255, np.uint8)
    for i, row in enumerate(rows):
        top = gap + (i % per_column) * (side + 2)
        left = gap + (i // per_column) * (length * side + gap)
        canvas[top : top + side, left : left + length * side] = np.repeat(np.where(row > 0, 30, 215), side)[None]
    return Image.fromarray(canvas).convert("RGB")
