"""samplers.py's problem "checkpoint": a guided model of captioned scenes, by the caption checker and a Frechet distance."""

import math
from collections.abc import Callable
from typing import Any

from sampler_runs import make_grid, make_sampler, padded, start_of, steps_within

NUM_FEATURES = 16
RENDERS = 16  # real renders per sample, of the same caption
BATCH_SIZE = 64


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


def measure(
    checkpoint: str, guidance_scale: float, names: list[str], budgets: list[int], count: int, seed: int
) -> dict[str, Any]:
    """The record of these samplers: a row for each sampler and budget, and the scores of real renders."""
    import jax
    import numpy as np
    import tqdm

    from diffusion_jax import build, guidance, images, samplers, sampling
    from diffusion_jax.data.pipeline import as_text
    from diffusion_jax.keys import keys_per_example
    from diffusion_jax.metrics import caption_checker

    loaded = sampling.load(checkpoint, {})
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
    costs = {name: steps_within(make_sampler(name, schedule), budgets) for name in names}
    total = sum(cost for each in costs.values() for _, cost in each.values()) * -(-count // BATCH_SIZE)
    rows: list[dict[str, Any]] = []
    with tqdm.tqdm(total=total, unit="evaluation") as bar:
        for name in names:
            sampler = make_sampler(name, schedule)

            @jax.jit
            def program(params: Any, cond: Any, index: Any, grid: Any, last: Any, sampler: Any = sampler) -> Any:
                denoiser = build.denoiser(model, params)
                denoiser = guidance.classifier_free(denoiser, model.null_cond, guidance_scale)
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
        "guidance_scale": guidance_scale,
        "seed": seed,
        "jax": jax.__version__,
        "real": scores(real[:count]),
        "rows": rows,
    }
