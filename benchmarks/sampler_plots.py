"""The plots and tables of samplers.py's records."""

import math
import pathlib
from typing import Any

from sampler_runs import NOISY

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
    names, schedules = (list(dict.fromkeys(row[key] for row in rows)) for key in ("sampler", "schedule"))
    figure, panels = plt.subplots(2, 2, figsize=(11, 8.6), sharex=True, sharey="col", layout="constrained")
    for line, table in zip(panels, schedules, strict=True):
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
    for table in schedules:
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
