"""The pictures and the figures of docs/how_it_works.md. No network is trained: the example's denoiser is exact.

    python docs/how_it_works_pictures.py --out=docs/images

Needs matplotlib (pip install -e '.[dev]'). Prints the page's tables; under a minute of processor time.
"""

import io
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import how_it_works_problem as problem

from diffusion_jax import cli, guidance, samplers, schedules
from diffusion_jax.data import scenes
from diffusion_jax.denoiser import Denoiser
from diffusion_jax.images import save_png, to_float, to_uint8
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.ddim import ddim

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

OUT = flags.DEFINE_string("out", "docs/images", "Where the pictures go.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4000, "Points behind each figure.", lower_bound=16)
NUM_STEPS = flags.DEFINE_integer("num_steps", 100, "Steps of the samplers.", lower_bound=2)

INK, GREY, PALE = "#20262c", "#7f8c99", "#dfe3e7"
GUIDED = "#8e3fb8"
ARMS = ("#2c6fd1", "#d1362f", "#e8a100")
TINTS = ("#d3e1f7", "#f7d5d3", "#faeac6")  # of ARMS, for what lies behind
NAMES = ("blue", "red", "amber")
SCALES = (0, 1, 2, 4, 8)


def sample(denoiser: Denoiser, sampler: Sampler | None = None) -> np.ndarray:
    return problem.sample(denoiser, NUM_SAMPLES.value, NUM_STEPS.value, sampler)


# --- How it is drawn ---


def panel(axes: Any, title: str, note: str = "", limit: float = 2.6) -> None:
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=11, color=INK, pad=5)
    axes.set_xlabel(note, fontsize=9.5, color=INK, labelpad=5)
    for spine in axes.spines.values():
        spine.set_color(PALE)


def dots(axes: Any, points: Any, colours: Any, size: float = 3, alpha: float = 0.5) -> None:
    points = np.asarray(points)
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, alpha=alpha, linewidths=0, zorder=1)


def true_arms(axes: Any) -> None:
    """The data, as a pale line per arm."""
    for arm, tint in enumerate(TINTS):
        line = problem.CENTRES[arm == problem.ARM_OF]
        axes.plot(line[:, 0], line[:, 1], color=tint, linewidth=6, solid_capstyle="round", zorder=0)


def quiver(axes: Any, places: np.ndarray, vectors: np.ndarray, colour: str, longest: float, half: float = 1.0) -> None:
    """Arrows whose length grows with a vector's size and is at most longest; half of that at the size `half`."""
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = longest * vectors / (size + half)
    seen = np.linalg.norm(shown, axis=1) > 0.07 * longest  # shorter ones would be dots
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.0058, "minlength": 0.3}
    axes.quiver(*places[seen].T, *shown[seen].T, color=colour, headwidth=4.2, headlength=4.5, zorder=3, **style)


def lattice(limit: float, count: int = 13) -> np.ndarray:
    ticks = np.linspace(-limit, limit, count)
    return np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)


def as_image(figure: Any) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, dpi=130, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)
    return Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE)


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, axes


def colours_of(arms: Any) -> np.ndarray:
    return np.asarray(ARMS)[np.asarray(arms)]


# --- The pictures ---


def forward() -> Any:
    """Points, and one captioned scene, at five times."""
    times = (0.0, 0.15, 0.35, 0.6, 1.0)
    x0, arms = problem.draw(problem.keys_of(900))
    scene = scenes.draw_scene(seed=0, index=3, max_objects=1)
    picture = jnp.asarray(to_float(scenes.render(scene, 32)))[None]
    figure, axes = panels(2, len(times), 11, 4.9)
    for column, t in zip(axes.T, times, strict=True):
        alpha, sigma = problem.SCHEDULE(jnp.float32(t))
        panel(column[0], f"t = {t:g}", f"alpha {alpha:.2f}   sigma {sigma:.2f}", limit=3.2)
        dots(column[0], problem.noised(x0, t), colours_of(arms), 5, 0.6)
        panel(column[1], "", limit=1)
        column[1].imshow(to_uint8(problem.noised(picture, t))[0], extent=(-1, 1, -1, 1), interpolation="nearest")
    axes[0, 0].set_ylabel("900 points", color=INK)
    axes[1, 0].set_ylabel("one picture", color=INK)
    print(f"The picture: {scenes.caption(scenes.describe(scene))}")
    return figure


def denoising() -> Any:
    """The arrows of the exact denoiser at three times, and what it thinks of one point."""
    limit = 2.9
    x0, arms = problem.draw(problem.keys_of(900))
    origin = problem.CENTRES[problem.ARM_OF == problem.WANTED][20:21]
    eps = jnp.asarray([[1.2, -1.6]])
    mark = {"markeredgecolor": "white", "markeredgewidth": 1.2, "linestyle": "none", "zorder": 5}
    figure, axes = panels(1, 3, 11, 4.2)
    for axis, t in zip(axes[0], (0.75, 0.4, 0.15), strict=True):
        panel(axis, f"t = {t:g}", limit=limit)
        true_arms(axis)
        dots(axis, problem.noised(x0, t), colours_of(arms), 5, 0.4)
        places = lattice(0.92 * limit, 12)
        quiver(axis, places, problem.arrows_of(problem.unconditional, places, t), "#4a545e", 0.55)
        one = schedules.diffuse(problem.SCHEDULE, jnp.asarray(origin, jnp.float32), eps, jnp.float32(t))
        guess = problem.unconditional(one, jnp.float32(t), {}).x0
        axis.plot(*np.concatenate([one, guess]).T, color=GUIDED, linewidth=2.2, zorder=4)
        axis.plot(*origin[0], "*", color=GUIDED, markersize=15, label="the x0 that it was", **mark)
        axis.plot(*one[0], "o", color=GUIDED, markersize=9, label="x_t", **mark)
        axis.plot(*guess[0], "s", color=GUIDED, markersize=8, label="the denoiser's x0", **mark)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10, frameon=False
    )
    return figure


def without_noise(gaussian: Any) -> Any:
    return gaussian._replace(variance=jnp.zeros_like(gaussian.variance))


def reverse() -> Any:
    """From the same noise: DDIM, ancestral sampling, and ancestral sampling whose noise is left out."""
    methods = {
        "DDIM": ddim(problem.SCHEDULE),
        "ancestral": ancestral(problem.SCHEDULE),
        "ancestral without its noise": ancestral(problem.SCHEDULE, product=without_noise),
    }
    noise = samplers.initial_noise(problem.keys_of(12, seed=11), (2,))
    figure, axes = panels(1, 3, 11, 4.2)
    print("\n| sampler | spread of all samples | distance from the arms |\n|---|---:|---:|")
    true = problem.measured(np.asarray(problem.draw(problem.keys_of(NUM_SAMPLES.value))[0]))
    print(f"| the data | {true['deviation']:.2f} | {true['distance']:.3f} |")
    for axis, (name, method) in zip(axes[0], methods.items(), strict=True):
        found = problem.measured(sample(problem.unconditional, method))
        print(f"| {name} | {found['deviation']:.2f} | {found['distance']:.3f} |")
        panel(axis, name, f"spread of all samples {found['deviation']:.2f}   (data {true['deviation']:.2f})", 2.7)
        true_arms(axis)
        states = problem.path(method, problem.unconditional, noise, NUM_STEPS.value)
        arms = problem.ARM_OF[problem.nearest(states[-1])[1]]
        shown = slice(None, 3 if name == "ancestral" else None)  # more of these hide each other
        lines = list(states.transpose(1, 0, 2))[shown]
        axis.add_collection(LineCollection(lines, colors=colours_of(arms[shown]), linewidths=1.2, zorder=2))
        axis.scatter(*states[0].T, s=20, facecolors="white", edgecolors=GREY, linewidths=1.1, zorder=3)
        axis.scatter(*states[-1].T, s=26, c=colours_of(arms), edgecolors="white", linewidths=0.8, zorder=4)
    return figure


def guidance_field() -> Any:
    """The arrows without a label, with it, their difference, and what guidance makes of them at one point."""
    t, limit = 0.35, 2.6
    x0, arms = problem.draw(problem.keys_of(700))
    places = lattice(0.92 * limit)
    weak, strong = (
        problem.arrows_of(problem.DENOISER, places, t, label) for label in (problem.NO_LABEL, problem.WANTED)
    )
    figure, axes = panels(1, 4, 13, 3.7)
    titles = (
        "without a label",
        f"with the label {NAMES[problem.WANTED]}",
        "the difference",
        "guidance 4, at one point",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        panel(axis, title, limit=limit)
        true_arms(axis)
        dots(axis, problem.noised(x0, t), colours_of(arms), 5, 0.3)
    quiver(axes[0, 0], places, weak, GREY, 0.5)
    quiver(axes[0, 1], places, strong, ARMS[problem.WANTED], 0.5)
    quiver(axes[0, 2], places, strong - weak, INK, 0.5, float(np.median(np.linalg.norm(strong - weak, axis=1))))
    place = np.array([-0.2, -1.8])
    drawn = (
        ("guided", problem.classifier_free(4.0), GUIDED, (10, 10)),
        ("cond", problem.DENOISER, ARMS[problem.WANTED], (-10, 10)),
        ("uncond", problem.unconditional, GREY, (18, 8)),
    )
    ends, axis = [], axes[0, 3]
    for name, denoiser, colour, offset in drawn:
        ends.append(place + 0.8 * problem.arrows_of(denoiser, place[None], t)[0])
        style = {
            "arrowstyle": "-|>",
            "shrinkA": 0,
            "shrinkB": 0,
            "linewidth": 2.4,
            "mutation_scale": 15,
            "color": colour,
        }
        axis.annotate("", ends[-1], place, arrowprops=style, zorder=4)
        axis.annotate(name, ends[-1], offset, textcoords="offset points", color=colour, fontsize=11, ha="center")
    axis.plot(*np.stack([ends[0], ends[2]]).T, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), zorder=5)
    axis.plot(*place, "o", color=INK, markersize=7, zorder=6)
    return figure


def guidance_scales() -> Any:
    """Where samples go for each guidance scale."""
    figure, axes = panels(1, len(SCALES), 13, 3.1)
    print("\n| guidance scale | right arm | spread along it | distance from the arms |\n|---|---:|---:|---:|")
    for axis, guidance_scale in zip(axes[0], SCALES, strict=True):
        made = sample(problem.classifier_free(guidance_scale))
        found = problem.measured(made)
        print(f"| {guidance_scale} | {found['right']:.3f} | {found['spread']:.2f} | {found['distance']:.3f} |")
        panel(axis, f"w = {guidance_scale}", f"right {100 * found['right']:.0f}%   spread {found['spread']:.2f}", 2.4)
        true_arms(axis)
        dots(axis, made[:1000], colours_of(problem.ARM_OF[problem.nearest(made[:1000])[1]]), 5, 0.6)
    found = problem.measured(sample(problem.classifier_free(SCALES[-1]), ancestral(problem.SCHEDULE)))
    print(f"| {SCALES[-1]}, ancestral | {found['right']:.3f} | {found['spread']:.2f} | {found['distance']:.3f} |")
    return figure


def guidance_ways() -> Any:
    """What each way adds to the unconditional arrows, early and late; behind it, in grey, what the exact classifier adds."""
    figure, axes = panels(2, 4, 11.6, 6.3)
    print("\n| way | t | cosine | length | largest difference |\n|---|---|---:|---:|---:|")
    for line, (t, limit) in zip(axes, ((0.75, 2.9), (0.25, 2.6)), strict=True):
        places = lattice(0.92 * limit, 12)
        agreement = problem.nearness_at(t, NUM_SAMPLES.value)
        exact = problem.arrows_of(problem.ways(1.0)["classifier"], places, t)
        exact = exact - problem.arrows_of(problem.unconditional, places, t)
        half = float(np.median(np.linalg.norm(exact, axis=1)))
        for axis, (name, way) in zip(line, problem.ways(1.0).items(), strict=True):
            found = agreement[name]
            print(f"| {name} | {t} | {found['cosine']:.3f} | {found['length']:.3g} | {found['difference']:.1e} |")
            note = "" if name == "classifier" else f"cosine to the first {found['cosine']:.2f}"
            panel(axis, name if t > 0.5 else "", note, limit)
            true_arms(axis)
            others = name in ("CLIP", "classifier of clean points")
            if others:
                quiver(axis, places, exact, "#b4bcc4", 0.18 * limit, half)
            where, longest = places, 0.18 * limit
            if name == "classifier of clean points":  # zero nearly everywhere: more arrows, to see where it is not
                where, longest = lattice(0.92 * limit, 34), 0.13 * limit
            field = problem.arrows_of(way, where, t) - problem.arrows_of(problem.unconditional, where, t)
            quiver(axis, where, field, GUIDED if others else INK, longest, half)
        line[0].set_ylabel(f"t = {t:g}", color=INK, fontsize=11)
    print("\n| way, w = 2 | right arm | spread along it | distance from the arms |\n|---|---:|---:|---:|")
    for name, way in problem.ways(2.0).items():
        found = problem.measured(sample(guidance.clip_x0(way, problem.SCHEDULE, -2.4, 2.4)))
        print(f"| {name} | {found['right']:.3f} | {found['spread']:.2f} | {found['distance']:.3f} |")
    return figure


PICTURES = (forward, denoising, reverse, guidance_field, guidance_scales, guidance_ways)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for make in PICTURES:
        save_png(as_image(make()), out / f"how_it_works_{make.__name__}.png")


if __name__ == "__main__":
    cli.run(main)
