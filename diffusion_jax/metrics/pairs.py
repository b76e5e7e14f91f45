"""Pictures beside those that they should be, pair by pair: PSNR, SSIM and LPIPS of enlarged or repainted pictures."""

from typing import Any

import jax
import numpy as np
import tqdm

import diffusion_jax
from diffusion_jax.errors import UserError
from diffusion_jax.interop import files
from diffusion_jax.interop import lpips as lpips_weights
from diffusion_jax.metrics import sets
from diffusion_jax.metrics.pixels import psnr, ssim
from diffusion_jax.models.lpips import lpips


def compare(
    samples: str, pairs: str, num_samples: int | None, lpips_file: str | None, batch_size: int
) -> dict[str, Any]:
    """The means over the pairs, with how they came.

    Args:
      samples, pairs: folders or npz of pictures in the same order, of one size.
      num_samples: the first pairs; all of them where it is None.
      lpips_file: weights of LPIPS, as `interop.lpips.load`; None leaves it out.
      batch_size: pairs at a time; it changes the figures by no more than rounding.

    Returns:
      "figures" holds psnr in decibels, ssim and lpips. Equal pictures have no finite PSNR: they are left out of its mean,
      and "equal_pairs" is their number.

    Raises:
      UserError: the files cannot be read, or are no pairs.
    """
    made, truth = (sets.first_of(sets.pictures(path), num_samples) for path in (samples, pairs))
    if made.count != truth.count:
        raise UserError(
            f"{samples} has {made.count} pictures and {pairs} {truth.count}: they are compared in order, one with one."
        )
    params = lpips_weights.load(lpips_file) if lpips_file else None
    found: dict[str, list[np.ndarray]] = {}
    distance = jax.jit(lpips)
    with tqdm.tqdm(total=made.count, desc=made.name, unit="pair", dynamic_ncols=True) as bar:
        for a, b in zip(made.batches(batch_size), truth.batches(batch_size), strict=True):
            rows = np.minimum(np.arange(batch_size), len(a) - 1)  # one program serves the last batch too
            try:
                if a.shape != b.shape:
                    raise ValueError(f"pictures of {_size(a)} and of {_size(b)} are no pairs.")
                values = {"psnr": psnr(a[rows], b[rows]), "ssim": ssim(a[rows], b[rows])}
                if params is not None:
                    values["lpips"] = distance(params, _rgb(a[rows]), _rgb(b[rows]))
            except ValueError as error:
                raise UserError(f"{samples} beside {pairs}: {error}") from error
            for name, value in values.items():
                found.setdefault(name, []).append(np.asarray(value, np.float64)[: len(a)])
            bar.update(len(a))
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    differ = np.isfinite(columns["psnr"])
    columns["psnr"] = columns["psnr"][differ]
    return {
        "figures": {made.name: {name: float(column.mean()) for name, column in columns.items() if column.size}},
        "equal_pairs": int(np.sum(~differ)),
        "network": {"name": _network(params), "sha256": files.sha256(lpips_file)} if lpips_file else None,
        "reference": {"name": truth.name},
        "made": {"num_samples": made.count},
        "versions": {"diffusion_jax": diffusion_jax.__version__, "jax": jax.__version__, "numpy": np.__version__},
    }


def _rgb(images: np.ndarray) -> np.ndarray:
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _size(images: np.ndarray) -> str:
    return f"{images.shape[2]} x {images.shape[1]} pixels in {images.shape[3]} channel(s)"


def _network(params: Any) -> str:
    return f"LPIPS 0.1, {'VGG-16' if 'conv_12' in params['features'] else 'AlexNet'}"
