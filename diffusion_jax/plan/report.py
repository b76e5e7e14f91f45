"""An estimate as text, and what would make it fit."""

import math
import re
from typing import Any, NamedTuple

from diffusion_jax.plan import estimate
from diffusion_jax.plan.chips import GIB, Chip
from diffusion_jax.plan.estimate import Mesh, Program
from diffusion_jax.plan.recipe import Recipe

DAY = 86400


class Work(NamedTuple):
    """Operations of the model for one image, and of a whole step as it is written (0 where nothing is compiled)."""

    image_flops: int
    step_flops: int


def of(
    recipe: Recipe, chip: Chip | None, placement: str, mesh: Mesh, program: Program | None, work: Work
) -> dict[str, Any]:
    """All figures of one placement, ready for JSON: sizes in bytes on each chip, times in seconds.

    Args:
      recipe: what is trained.
      chip: None for local devices, of which nothing is known.
      placement, mesh: where.
      program: None where the step was not compiled.
      work: see `Work`.
    """
    state = estimate.state_bytes(recipe, mesh)
    figures = {
        "placement": placement,
        "mesh": mesh._asdict(),
        "state": state,
        "hbm": chip.hbm if chip else None,
        "fits": _fits(chip, sum(state.values()), program),
        "advice": advice(recipe, chip, mesh, program) if chip else [],
    }
    if chip is not None:
        figures["least"] = work.image_flops * recipe.config.train.batch_size / mesh.size / chip.flops
    if program is not None:
        figures["compiled"] = program._asdict()
        if program.collectives is not None:
            figures["compiled"]["collectives"] = {kind: t._asdict() for kind, t in program.collectives.items()}
        figures["step_flops"] = work.step_flops
    if program is not None and chip is not None and not program.refusal:
        figures["time"] = _times(recipe, chip, mesh, program, work)
    return figures


def _fits(chip: Chip | None, state: int, program: Program | None) -> bool | None:
    """None where only the compiler could tell and was not asked."""
    if program is not None:
        return not program.refusal
    return False if chip is not None and state > chip.hbm else None


def _times(recipe: Recipe, chip: Chip, mesh: Mesh, program: Program, work: Work) -> dict[str, float]:
    parts = estimate.seconds(chip, work.step_flops, mesh, program)
    bounds = [parts[part] for part in ("products", "HBM", "links")]
    best, worst = max(bounds), sum(bounds)
    images, flops = recipe.config.train.batch_size, work.image_flops * recipe.config.train.batch_size
    return parts | {
        "best": best,
        "worst": worst,
        "images_per_second_best": images / best,
        "images_per_second_worst": images / worst,
        "share_best": flops / best / mesh.size / chip.flops,
        "share_worst": flops / worst / mesh.size / chip.flops,
    }


def advice(recipe: Recipe, chip: Chip, mesh: Mesh, program: Program | None) -> list[str]:
    """What would make a recipe fit that does not, each with its number; nothing for one that fits."""
    state = sum(estimate.state_bytes(recipe, mesh).values())
    refused = program is not None and bool(program.refusal)
    if state <= chip.hbm and not refused:
        return []
    told = []
    better, least = estimate.smallest(recipe, mesh.size)
    if least < state:
        told.append(
            f"--placement=sharded --config.parallel.mesh={','.join(map(str, better))} leaves {binary(least)} of state on each "
            f"chip instead of {binary(state)}"
        )
    if least > chip.hbm:
        whole = sum(estimate.state_bytes(recipe, Mesh(1, 1, 1)).values())
        told.append(
            f"more chips: the whole state of {binary(whole)} fills {math.ceil(whole / chip.hbm)} of these by itself"
        )
    return told + (_less_kept(recipe, mesh, program.refusal, chip.hbm - state) if refused and state < chip.hbm else [])


def _less_kept(recipe: Recipe, mesh: Mesh, refusal: str, room: float) -> list[str]:
    """Changes that lessen what the backward pass finds kept, of a program that was refused with `room` beside the state."""
    config, told = recipe.config, []
    at_once = config.train.batch_size // mesh.data // mesh.fsdp // config.train.accumulation
    wanted = re.search(r"\(([\d.]+)G\) exceeds", refusal)
    if wanted and at_once > 1:
        parts = [n for n in range(2, at_once + 1) if at_once % n == 0]
        part = next((n for n in parts if float(wanted[1]) * GIB / n < room), at_once)
        told.append(
            f"--config.train.accumulation={config.train.accumulation * part}: {at_once // part} images at a time on each chip "
            f"instead of {at_once}; {wanted[1]} GiB wanted become {float(wanted[1]) / part:.1f} of the {binary(room)} beside the "
            "state, if all of them shrink with the images"
        )
    if config.model.remat in (False, "none"):
        told.append("--config.model.remat=full: blocks are computed again on the way back instead of kept")
    if config.model.dtype == "float32":
        told.append("--config.model.dtype=bfloat16: what blocks keep takes half the room")
    return told


def head(recipe: Recipe, name: str, topology: str, chip: Chip | None, num_devices: int, work: Work) -> str:
    """The lines above all placements."""
    has = f"{num_devices} devices"
    if chip:
        has = f"{num_devices} chips, each of {binary(chip.hbm)} HBM and {metric(chip.flops)}FLOP/s"
    return (
        f"{name} on {topology}: {has}\n"
        f"  {recipe.num_params / 1e6:,.4g} million parameters; {recipe.config.train.batch_size} images a step, "
        f"{metric(work.image_flops)}FLOP each, forward and backward"
    )


def text(figures: dict[str, Any], config: Any) -> str:
    """One placement's lines."""
    mesh, state, compiled = figures["mesh"], figures["state"], figures.get("compiled")
    verdict = {True: "fits", False: "does NOT fit", None: "the state fits; not compiled"}[figures["fits"]]
    if figures["hbm"] is None and compiled is None:
        verdict = "not compiled"
    shape = " x ".join(f"{axis} {n}" for axis, n in mesh.items())
    of_hbm = f" of {binary(figures['hbm'])}" if figures["hbm"] else ""
    kinds = ", ".join(
        f"{kind} {binary(share)}" for kind, share in state.items() if share >= 0.0005 * sum(state.values())
    )
    lines = [
        f"placement {figures['placement']} ({shape}): {verdict}",
        f"  state        {binary(sum(state.values()))}{of_hbm} on each chip: {kinds}",
    ]
    if compiled and compiled["refusal"]:
        lines.append(f"  compiler     {compiled['refusal']} (after {compiled['seconds']:.0f} s)")
    elif compiled:
        lines += _compiled_lines(figures, of_hbm)
    if "time" in figures:
        lines += _time_lines(figures["time"], config)
    elif "least" in figures and figures["fits"] is not False:
        steps, least = config.train.num_steps, figures["least"]
        lines.append(
            f"  step         at least {least:.3g} s for the model's own products at peak rate, {steps * least / DAY:.2g} days of "
            f"{steps:,} steps on {math.prod(mesh.values())} chips"
        )
    return "\n".join(lines + [f"  to fit       {line}" for line in figures["advice"]])


def _compiled_lines(figures: dict[str, Any], of_hbm: str) -> list[str]:
    compiled = figures["compiled"]
    sent = "unknown: the compiler cannot write this program's text, so that the links' time is missing below"
    if compiled["collectives"] is not None:
        exchanges = compiled["collectives"].items()
        sent = "; ".join(f"{kind} {t['calls']} x, {metric(t['bytes'])}B" for kind, t in exchanges) or "none"
    laid_out = compiled["code"] is None
    code = "program not written" if laid_out else f"program {binary(compiled['code'])}"
    return [
        f"  temporaries  {binary(compiled['temporaries'])}: activations, gradients and so on; {code}",
        f"  peak         {binary(compiled['peak'])}{of_hbm}; {'laid out' if laid_out else 'compiled'} in "
        f"{compiled['seconds']:.0f} s",
        f"  exchanges    {sent}",
        f"  products     {metric(figures['step_flops'])}FLOP a step, recomputation included",
    ]


def _time_lines(time: dict[str, float], config: Any) -> list[str]:
    steps, images = config.train.num_steps, config.train.batch_size
    guess = f"; the compiler expects {time['compiler']:.3g} s, exchanges apart" if time["compiler"] else ""
    slow, fast = time["images_per_second_worst"], time["images_per_second_best"]
    share = f"{100 * time['share_worst']:.0f} to {100 * time['share_best']:.0f}%"
    hbm = f"{time['HBM']:.3g}" if time["HBM"] else "unknown"
    return [
        f"  step         at least {time['best']:.3g} s, {time['worst']:.3g} s if nothing overlaps: at peak rates products "
        f"{time['products']:.3g}, HBM {hbm}, links {time['links']:.3g}{guess}",
        f"  so           {slow:,.0f} to {fast:,.0f} images per second, {share} of the chips' peak in the model's own operations",
        f"  the run      {steps:,} steps of {images}: {steps * time['best'] / DAY:.2g} to {steps * time['worst'] / DAY:.2g} days",
    ]


def binary(count: float) -> str:
    """Bytes as text, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"


def metric(count: float) -> str:
    """A number as text, before its unit, in powers of 1000."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 1000 or prefix == "T":
            return f"{count:,.4g} {prefix}"
        count /= 1000
    raise AssertionError("unreachable")
