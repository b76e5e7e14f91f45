"""Which sampler for how many network evaluations: on data with an exact denoiser, and on a trained checkpoint.

    python benchmarks/samplers.py --problem=mixture --json=mixture.json
    python benchmarks/samplers.py --problem=checkpoint --checkpoint=runs/scenes --json=checkpoint.json
    python benchmarks/samplers.py --problem=mixture --redraw=mixture.json          # the plot and the table again

Draws docs/images/samplers_PROBLEM.png and prints the tables of docs/samplers.md. Evaluations of the denoiser are counted, not
taken from a formula. All samplers begin from the same noise.

mixture: five Gaussians in the plane, deviation about 0.5 as images have. Left, the root-mean-square distance of a deterministic
sampler's result from the solution of the probability-flow ODE from the same start (1,000 steps of UniPC); right, for every
sampler, the sliced Wasserstein distance from the data: over 32 directions, the mean distance of the sorted samples from the exact
quantiles. Each sampler is shown on the grid of GRIDS that gives it the lowest such error, in the geometric mean over the budgets.

checkpoint: a text-conditional model of captioned scenes, guided. The caption checker's scores, and a Frechet distance on 16 fixed
random-convolution features (not FID): two layers of random 3 x 3 convolutions, their mean and deviation over the picture, on the 16
principal axes of real renders, each scaled to unit variance. It is taken from other real renders of the same captions, and depends
on the number of samples: compare within one run.
"""

import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from diffusion_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
PROBLEM = flags.DEFINE_enum("problem", None, ["mixture", "checkpoint"], "What is sampled.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A training run of captioned scenes, for --problem=checkpoint.")
BUDGETS = flags.DEFINE_list("budgets", None, "Network evaluations at most. [mixture: 6 to 64, checkpoint: 6,10,20]")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", None, "Samples. [mixture: 20000, checkpoint: 128]", lower_bound=2)
GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", 1.5, "Of --problem=checkpoint.")
SAMPLERS = flags.DEFINE_list("samplers", None, "Only these. [all]")
SEED = flags.DEFINE_integer("seed", 0, "Of all noise.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
REDRAW = flags.DEFINE_string("redraw", None, "A file of --json: draws and prints it, without measuring.")
OUT = flags.DEFINE_string("out", str(ROOT / "docs" / "images"), "A folder for the plot.")
flags.adopt_module_key_flags(cli)

MIXTURE_BUDGETS = (6, 8, 12, 16, 24, 32, 48, 64)
CHECKPOINT_BUDGETS = (6, 10, 20)
MIXTURE_SCHEDULES = ("linear_path", "ddpm_linear")
GRIDS = {"linear_path": ("uniform", "logsnr"), "ddpm_linear": ("uniform", "quadratic", "logsnr")}
NOISY = ("ancestral", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde")
NEED_SIGNAL = ("lms", "plms")  # divide by alpha: where it is 0 at time 1, their uniform grids start at EARLIEST
EARLIEST = 0.99
REFERENCE_STEPS = 1000
DIRECTIONS = 32
NUM_FEATURES = 16
RENDERS = 16  # real renders per sample, of the same caption
BATCH_SIZE = 64
FAMILIES = {
    "first order": ("ddim", "euler"),
    "two evaluations a step": ("heun", "midpoint"),
    "multistep": ("plms", "lms", "dpmpp_2m", "unipc"),
    "with noise": NOISY,
}
STYLES = {
    "ddim": ("#7f8c99", "o"),
    "euler": ("#20262c", "s"),
    "heun": ("#1b9e4b", "^"),
    "midpoint": ("#8fbf2f", "v"),
    "plms": ("#e8a100", "D"),
    "lms": ("#d1362f", "X"),
    "dpmpp_2m": ("#2c6fd1", "o"),
    "unipc": ("#8e3fb8", "P"),
    "ancestral": ("#a0704a", "o"),
    "euler_ancestral": ("#4d3422", "s"),
    "dpmpp_2m_sde": ("#6fb2ee", "o"),
    "dpmpp_3m_sde": ("#16b3b0", "D"),
}


# The problems


def mixture() -> tuple[Any, Any, Any]:
    """Weights [K], means [K, 2] and deviations [K] of the data."""
    import numpy as np

    weights = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    means = np.array([[-0.5, -0.4], [0.55, -0.35], [0.1, 0.6], [-0.6, 0.4], [0.6, 0.45]])
    return weights, means, np.array([0.2, 0.1, 0.15, 0.12, 0.08])


def mixture_denoiser(schedule: Callable[..., Any]) -> Callable[..., Any]:
    """The exact denoiser of `mixture`: each component's posterior mean, by the component's posterior probability."""
    import jax
    import jax.numpy as jnp

    from diffusion_jax.predictions import Prediction

    weights, means, deviations = map(jnp.asarray, mixture())

    def denoise(x_t: Any, t: Any, cond: Any) -> Prediction:
        alpha, sigma = schedule(jnp.asarray(t, x_t.dtype))
        total = alpha**2 * deviations**2 + sigma**2
        offset = x_t[:, None] - alpha * means
        share = jax.nn.softmax(jnp.log(weights / total) - jnp.sum(offset**2, -1) / (2 * total))[..., None]
        surprise = offset / total[:, None]
        x0 = jnp.sum(share * (means + alpha * deviations[:, None] ** 2 * surprise), 1)
        return Prediction(x0, jnp.sum(share * sigma * surprise, 1))

    return denoise


@functools.cache
def quantiles(count: int) -> tuple[Any, Any]:
    """Directions [2, D], and the quantiles [count, D] of the mixture along each."""
    import numpy as np
    from scipy.special import ndtr

    weights, means, deviations = mixture()
    angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    axes = np.stack([np.cos(angles), np.sin(angles)])
    places, levels, columns = np.linspace(-3, 3, 6001), (np.arange(count) + 0.5) / count, []
    for centres in (means @ axes).T:
        cdf = ndtr((places[:, None] - centres) / deviations) @ weights
        inside = (cdf > 1e-12) & (cdf < 1 - 1e-12)
        columns.append(np.interp(levels, cdf[inside], places[inside]))
    return axes, np.stack(columns, 1)


def sliced_wasserstein(samples: Any) -> float:
    """The mean distance between sorted projections of samples [N, 2] and the exact quantiles of the projected mixture."""
    import numpy as np

    axes, exact = quantiles(len(samples))
    return float(np.abs(np.sort(np.asarray(samples) @ axes, 0) - exact).mean())


def true_samples(count: int, seed: int) -> Any:
    import numpy as np

    weights, means, deviations = mixture()
    rng = np.random.default_rng(seed)
    which = rng.choice(len(weights), count, p=weights)
    return means[which] + deviations[which, None] * rng.normal(size=(count, 2))


# What all samplers share


def make_sampler(name: str, schedule: Callable[..., Any]) -> Any:
    """A registered sampler with its own defaults."""
    from configs.default import get_config
    from diffusion_jax import build

    return build.SAMPLERS[name](schedule, get_config())


def make_grid(name: str, schedule: Callable[..., Any], num_steps: int, start: float) -> Any:
    import numpy as np

    from configs.default import get_config
    from diffusion_jax import build

    config = get_config()
    config.sample.update(num_steps=num_steps, start=start)
    return np.asarray(build.GRIDS[name](schedule, config))


def start_of(name: str, schedule: Callable[..., Any]) -> float:
    import jax.numpy as jnp

    return EARLIEST if name in NEED_SIGNAL and float(schedule(jnp.ones(())).alpha) == 0 else 1.0


def padded(grid: Any, length: int) -> Any:
    """A grid with its last time repeated, so that one compiled program runs grids of every length."""
    import numpy as np

    return np.append(grid, np.full(length - len(grid), grid[-1]))


def steps_within(sampler: Any, budgets: list[int]) -> dict[int, tuple[int, int]]:
    """For each budget of evaluations the most steps within it, and how many evaluations they make; counted in a run."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import samplers
    from diffusion_jax.predictions import Prediction

    calls: list[int] = []

    def denoiser(x_t: Any, t: Any, cond: Any) -> Prediction:
        jax.debug.callback(lambda: calls.append(1))
        return Prediction(x_t / 2, x_t / 2)

    keys, x = jax.random.split(jax.random.key(0), 1), jnp.ones((1, 1))

    @jax.jit
    def program(grid: Any, last: Any) -> Any:
        return samplers.run(sampler, denoiser, (x, sampler.init(x)), grid, {}, keys, 0, last)[0]

    found = {}
    for budget in budgets:
        for num_steps in range(budget, 0, -1):
            calls.clear()
            jax.block_until_ready(program(padded(np.linspace(0.9, 0, num_steps + 1), max(budgets) + 1), num_steps))
            jax.effects_barrier()
            if len(calls) <= budget:
                found[budget] = num_steps, len(calls)
                break
    return found


def chosen_samplers() -> list[str]:
    from diffusion_jax import build

    return SAMPLERS.value or list(build.SAMPLERS)


# The mixture


def measure_mixture(budgets: list[int], count: int, seed: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    from diffusion_jax import samplers, schedules
    from diffusion_jax.keys import keys_per_example
    from diffusion_jax.samplers.unipc import unipc

    tables = {"linear_path": schedules.linear_path, "ddpm_linear": schedules.from_betas(schedules.linear_betas(1000))}
    keys = keys_per_example(jax.random.key(seed), jnp.arange(count))
    floor = float(np.mean([sliced_wasserstein(true_samples(count, seed + 1 + i)) for i in range(8)]))
    rows, longest = [], max(*budgets, 2) + 1
    costs: dict[str, dict[int, tuple[int, int]]] = {}
    for table in MIXTURE_SCHEDULES:
        schedule, denoiser = tables[table], mixture_denoiser(tables[table])

        def noise_at(t: float, schedule: Any = schedule) -> Any:
            return samplers.initial_noise(keys, (2,), schedule(jnp.asarray(t)))

        def solution(t: float, schedule: Any = schedule, denoiser: Any = denoiser) -> Any:
            lambdas = -2 * np.log([float(schedules.edm_sigma(schedule(jnp.asarray(min(t, 0.99999)))))])[0]
            times = np.asarray(schedules.time_at(schedule, jnp.linspace(lambdas, 20.0, REFERENCE_STEPS)))
            grid = jnp.asarray(np.concatenate([[t] if times[0] < t else [], times, [0.0]]))
            method = unipc(schedule, 3)
            return jax.jit(lambda x: samplers.sample(method, denoiser, x, grid, {}, keys))(noise_at(t))

        exact: dict[float, Any] = {}
        for name in chosen_samplers():
            sampler = make_sampler(name, schedule)
            if name not in costs:
                costs[name] = steps_within(sampler, budgets)

            @jax.jit
            def program(x: Any, grid: Any, last: Any, sampler: Any = sampler, denoiser: Any = denoiser) -> Any:
                return samplers.run(sampler, denoiser, (x, sampler.init(x)), grid, {}, keys, 0, last)[0]

            for budget in budgets:
                num_steps, evaluations = costs[name][budget]
                for grid_name in GRIDS[table]:
                    grid = make_grid(grid_name, schedule, num_steps, start_of(name, schedule))
                    t = round(float(grid[0]), 12)
                    made = np.asarray(program(noise_at(grid[0]), padded(grid, longest), num_steps))
                    row = {"schedule": table, "sampler": name, "grid": grid_name, "budget": budget}
                    row |= {"steps": num_steps, "evaluations": evaluations, "wasserstein": sliced_wasserstein(made)}
                    if name not in NOISY:
                        if t not in exact:
                            exact[t] = np.asarray(solution(grid[0]))
                            print(
                                f"{table}: the solution from {t:g} is {sliced_wasserstein(exact[t]):.4f} from the data"
                            )
                        row["rms"] = float(np.sqrt(np.mean(np.sum((made - exact[t]) ** 2, -1))))
                    rows.append(row)
            print(table, name, flush=True)
    return {
        "problem": "mixture",
        "num_samples": count,
        "seed": seed,
        "floor": floor,
        "jax": jax.__version__,
        "rows": rows,
    }


def best_grids(rows: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """For each schedule and sampler, the grid whose errors have the lowest geometric mean over the budgets."""
    errors: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        errors.setdefault((row["schedule"], row["sampler"], row["grid"]), []).append(row.get("rms", row["wasserstein"]))
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for (table, name, grid), values in errors.items():
        score = sum(map(math.log, values)) / len(values)
        if score < best.get((table, name), (math.inf, ""))[0]:
            best[table, name] = score, grid
    return {key: grid for key, (_, grid) in best.items()}


# The checkpoint


def random_features(pictures: Any) -> Any:
    """The mean and deviation over the picture of two fixed layers of random convolutions: uint8 [N, H, W, 3] -> [N, 128]."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def layer(x: Any, channels: int, seed: int) -> Any:
        kernel = np.random.default_rng(seed).normal(size=(3, 3, x.shape[-1], channels)) * math.sqrt(2 / 9 / x.shape[-1])
        kernel = jnp.asarray(kernel, jnp.float32)
        return jax.nn.relu(
            jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )

    maps = layer(layer(jnp.asarray(pictures, jnp.float32) / 127.5 - 1, 32, 0), 64, 1)
    return np.asarray(jnp.concatenate([maps.mean((1, 2)), maps.std((1, 2))], 1), np.float64)


def frechet_to(pictures: Any) -> Callable[[Any], float]:
    """The Frechet distance of pictures from these, on the principal axes of these in units of their own deviations."""
    import numpy as np
    from scipy import linalg

    features = random_features(pictures)
    mean = features.mean(0)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    axes = vectors[:, -NUM_FEATURES:] / np.sqrt(values[-NUM_FEATURES:])

    def distance(others: Any) -> float:
        placed = (random_features(others) - mean) @ axes  # the reference has mean 0 and covariance 1 here
        covariance = np.cov(placed.T)
        root = linalg.sqrtm(covariance)
        return float(np.sum(placed.mean(0) ** 2) + np.trace(covariance + np.eye(NUM_FEATURES) - 2 * np.real(root)))

    return distance


def other_renders(captions: list[str], count: int) -> Any:
    """For each of the first captions RENDERS later examples with the same caption, again and again where there are fewer."""
    import numpy as np

    later: dict[str, list[int]] = {}
    for i, caption in enumerate(captions[count:], count):
        later.setdefault(caption, []).append(i)
    used = dict.fromkeys(later, 0)
    chosen = []
    for caption in captions[:count]:
        for _ in range(RENDERS if caption in later else 0):
            chosen.append(later[caption][used[caption] % len(later[caption])])
            used[caption] += 1
    return np.array(chosen)


def measure_checkpoint(budgets: list[int], count: int, seed: int) -> dict[str, Any]:
    import jax
    import numpy as np
    import tqdm

    from diffusion_jax import build, guidance, images, samplers, sampling
    from diffusion_jax.data.pipeline import as_text
    from diffusion_jax.errors import UserError
    from diffusion_jax.keys import keys_per_example
    from diffusion_jax.metrics import caption_checker

    if not CHECKPOINT.value:
        raise UserError("--problem=checkpoint needs --checkpoint=RUN, a training run of captioned scenes.")
    loaded = sampling.load(CHECKPOINT.value, {})
    model, schedule = loaded.model, loaded.model.process.schedule
    source = build.source(model.config, "validation")
    examples = [source[i] for i in range(len(source))]
    real, captions = np.stack([each["image"] for each in examples]), [as_text(each["caption"]) for each in examples]
    count = min(count, len(examples) // 2)
    distance = frechet_to(real[other_renders(captions, count)])
    captions = captions[:count]

    def scores(pictures: Any) -> dict[str, float]:
        read = caption_checker.score(pictures, captions)
        wanted = {name: read[name] for name in ("colour", "shape", "colour_and_shape")}
        return wanted | {"frechet": distance(pictures)}

    cond = build.prompt_cond(model, captions)
    longest = max(budgets) + 1
    costs = {name: steps_within(make_sampler(name, schedule), budgets) for name in chosen_samplers()}
    total = sum(cost for each in costs.values() for _, cost in each.values()) * -(-count // BATCH_SIZE)
    rows: list[dict[str, Any]] = []
    with tqdm.tqdm(total=total, unit="evaluation") as bar:
        for name in chosen_samplers():
            sampler = make_sampler(name, schedule)

            @jax.jit
            def program(params: Any, cond: Any, index: Any, grid: Any, last: Any, sampler: Any = sampler) -> Any:
                denoiser = build.denoiser(model, params)
                denoiser = guidance.classifier_free(denoiser, model.null_cond, GUIDANCE_SCALE.value)
                keys = keys_per_example(jax.random.key(seed), index)
                level = schedule(grid[:1].reshape(1, 1, 1, 1))
                x = samplers.initial_noise(keys, model.image_shape, level)
                clipped = guidance.clip_x0(denoiser, schedule)
                return samplers.run(sampler, clipped, (x, sampler.init(x)), grid, cond, keys, 0, last)[0]

            for budget in budgets:
                num_steps, evaluations = costs[name][budget]
                grid = make_grid("uniform", schedule, num_steps, start_of(name, schedule)).astype(np.float32)
                parts = []
                for first in range(0, count, BATCH_SIZE):
                    index = np.minimum(np.arange(first, first + BATCH_SIZE), count - 1)
                    part = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], cond)
                    parts.append(np.asarray(program(loaded.params, part, index, padded(grid, longest), num_steps)))
                    bar.update(evaluations)
                made = images.to_uint8(np.concatenate(parts)[:count])
                row = {"sampler": name, "grid": "uniform", "budget": budget, "steps": num_steps}
                rows.append(row | {"evaluations": evaluations} | scores(made))
    return {
        "problem": "checkpoint",
        "checkpoint": str(loaded.workdir),
        "step": loaded.step,
        "num_samples": count,
        "num_real": count * RENDERS,
        "guidance_scale": GUIDANCE_SCALE.value,
        "seed": seed,
        "jax": jax.__version__,
        "real": scores(real[:count]),
        "rows": rows,
    }


# Plots and tables


def in_families(names: list[str]) -> list[str]:
    """The names in the order of the legends, those of no family last."""
    known = [name for members in FAMILIES.values() for name in members]
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def line_style(name: str) -> dict[str, Any]:
    colour, marker = STYLES.get(name, ("#888888", "o"))
    noisy, hollow = name in NOISY, name in ("euler", "euler_ancestral")  # these may lie on another's line
    return {
        "color": colour,
        "marker": marker,
        "linestyle": (0, (4, 1.5)) if noisy else "-",
        "linewidth": 1.1 if hollow else 1.7,
        "markersize": 8 if hollow else 5,
        "markerfacecolor": "none" if hollow else colour,
        "zorder": 3 if hollow else 2,
    }


def draw_curves(axes: Any, curves: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in curves.items():
        places, values = zip(*sorted(points), strict=True)
        axes.plot(places, values, **line_style(name))


def finish(figure: Any, panels: list[Any], names: list[str], ticks: list[int], path: pathlib.Path) -> None:
    """Ticks that say the budgets, one legend for each family of samplers below the panels, and the file."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
        axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for i, (title, members) in enumerate(FAMILIES.items()):
        handles = [Line2D([], [], label=name, **line_style(name)) for name in members if name in names]
        legend = figure.legend(
            handles=handles, title=title, loc="upper left", bbox_to_anchor=(0.05 + 0.24 * i, 0.0), frameon=False
        )
        legend.get_title().set_fontweight("bold")
        legend._legend_box.align = "left"
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)
    print(f"wrote {path}\n")


def draw_mixture(record: dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib.pyplot as plt

    rows, grids = record["rows"], best_grids(record["rows"])
    shown = [row for row in rows if grids[row["schedule"], row["sampler"]] == row["grid"]]
    names = list(dict.fromkeys(row["sampler"] for row in rows))
    figure, panels = plt.subplots(2, 2, figsize=(11, 8.6), sharex=True, sharey="col", layout="constrained")
    for line, table in zip(panels, MIXTURE_SCHEDULES, strict=True):
        for axes, measure in zip(line, ("rms", "wasserstein"), strict=True):
            curves: dict[str, list[tuple[float, float]]] = {}
            for row in shown:
                if row["schedule"] == table and measure in row:
                    curves.setdefault(row["sampler"], []).append((row["evaluations"], row[measure]))
            draw_curves(axes, curves)
            axes.set_yscale("log")
        line[0].set_ylabel("RMS distance from the ODE's solution")
        line[1].set_ylabel("sliced Wasserstein distance from the data")
        line[0].set_title(f"{table}: deterministic samplers", loc="left")
        line[1].set_title(f"{table}: all samplers", loc="left")
        line[1].axhspan(1e-9, record["floor"], color="#dddddd", zorder=0, linewidth=0)
        line[1].text(
            0.02,
            record["floor"] * 0.93,
            "as near as true samples",
            va="top",
            color="#666666",
            fontsize=9,
            transform=line[1].get_yaxis_transform(),
        )
    panels[0, 1].set_ylim(bottom=0.75 * min(record["floor"], *(row["wasserstein"] for row in shown)))
    for axes in panels[1]:
        axes.set_xlabel("network evaluations")
    finish(figure, list(panels.flat), names, [6, 8, 12, 16, 24, 32, 48, 64], path)
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    budgets = [budget for budget in (8, 16, 32, 64) if budget in budgets] or budgets
    for table in MIXTURE_SCHEDULES:
        print(f"{table}, at most so many evaluations:\n")
        heads = [f"{what}, {budget}" for what in ("data", "ODE") for budget in budgets]
        print(f"| sampler | grid | {' | '.join(heads)} |")
        print("|---|---|" + "---:|" * 2 * len(budgets))
        for name in in_families(names):
            own = {row["budget"]: row for row in shown if row["schedule"] == table and row["sampler"] == name}
            cells = [f"{own[budget]['wasserstein']:.4f}" for budget in budgets]
            cells += [f"{own[budget]['rms']:.4f}" if "rms" in own[budget] else "-" for budget in budgets]
            print(f"| {name} | {grids[table, name]} | {' | '.join(cells)} |")
        print()


def draw_checkpoint(record: dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib.pyplot as plt

    rows, real = record["rows"], record["real"]
    names, budgets = (list(dict.fromkeys(row[key] for row in rows)) for key in ("sampler", "budget"))
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axes, measure in zip(panels, ("colour_and_shape", "frechet"), strict=True):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            curves.setdefault(row["sampler"], []).append((row["evaluations"], row[measure]))
        draw_curves(axes, curves)
        axes.set_xlabel("network evaluations")
    panels[0].set_title("colour and shape right (more is better)", loc="left")
    panels[0].set_ylabel("share of samples")
    panels[0].set_ylim(bottom=0)
    panels[1].set_title("Frechet distance on random-convolution features", loc="left")
    panels[1].set_ylabel("distance from real renders (less is better)")
    panels[1].set_yscale("log")
    panels[1].set_ylim(bottom=0.8 * min(real["frechet"], *(row["frechet"] for row in rows)))
    panels[1].set_yticks(ticks := [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5])
    panels[1].set_yticklabels([f"{tick:g}" for tick in ticks])
    panels[1].set_ylim(top=1.2 * max(row["frechet"] for row in rows))
    panels[0].text(
        0.98,
        0.04,
        f"standard error of one point: {math.sqrt(0.24 / record['num_samples']):.2f}",
        ha="right",
        color="#666666",
        fontsize=9,
        transform=panels[0].transAxes,
    )
    panels[1].axhline(real["frechet"], color="#999999", linestyle=":")
    panels[1].text(
        0.98,
        real["frechet"] * 1.04,
        "real renders",
        va="bottom",
        ha="right",
        color="#666666",
        fontsize=9,
        transform=panels[1].get_yaxis_transform(),
    )
    finish(figure, list(panels), names, budgets, path)
    titles = {"colour": "colour", "shape": "shape", "colour_and_shape": "both", "frechet": "Frechet"}
    print("| sampler | " + " | ".join(f"{title}, {budget}" for title in titles.values() for budget in budgets) + " |")
    print("|---|" + "---:|" * len(titles) * len(budgets))
    for name in in_families(names):
        own = {row["budget"]: row for row in rows if row["sampler"] == name}
        print(f"| {name} | " + " | ".join(f"{own[budget][key]:.2f}" for key in titles for budget in budgets) + " |")
    print("real renders: " + ", ".join(f"{title} {real[key]:.2f}" for key, title in titles.items()))


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    cli.use_compilation_cache()
    budgets = [int(text) for text in BUDGETS.value or ()]
    if REDRAW.value:
        record = json.loads(pathlib.Path(REDRAW.value).read_text())
    elif PROBLEM.value == "mixture":
        record = measure_mixture(budgets or list(MIXTURE_BUDGETS), NUM_SAMPLES.value or 20000, SEED.value)
    else:
        record = measure_checkpoint(budgets or list(CHECKPOINT_BUDGETS), NUM_SAMPLES.value or 128, SEED.value)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    draw = draw_mixture if record["problem"] == "mixture" else draw_checkpoint
    draw(record, out / f"samplers_{record['problem']}.png")


if __name__ == "__main__":
    flags.mark_flag_as_required("problem")
    cli.run(main)
