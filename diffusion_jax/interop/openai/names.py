"""OpenAI's parameter names and layouts (guided-diffusion, improved-diffusion, glide-text2im) <-> our U-Net's and classifier's tree.

    kernel of a convolution     [h, w, in, out]  <->  [out, in, h, w]
    kernel of a dense layer     [in, out]        <->  [out, in], where the original has a 1-wide convolution [out, in, 1 (, 1)]
    attention pool's positions  [1 + N, C]       <->  [C, 1 + N]

Anything else is the same in both. The order of qkv's columns is kept: it leaves no trace in a file.
"""

import concurrent.futures
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.models import Params

_RES_BLOCK = {
    "norm_in/norm": "in_layers.0",
    "conv_in": "in_layers.2",
    "emb": "emb_layers.1",
    "norm_out/norm": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
_ATTENTION = {"norm/norm": "norm", "qkv": "qkv", "text_kv": "encoder_kv", "out": "proj_out"}
_TEXT_BLOCK = {
    "norm_attn": "ln_1",
    "qkv": "attn.c_qkv",
    "attn_out": "attn.c_proj",
    "norm_mlp": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}
_TOP = {
    "time_embed_0": "time_embed.0",
    "time_embed_1": "time_embed.2",
    "label_embed": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out/norm": "out.0",
    "conv_out": "out.2",
    "text_pool": "transformer_proj",
    "text/token_embed": "token_embedding",
    "text/norm_out": "final_ln",
    "attention_pool/qkv": "out.2.qkv_proj",
    "attention_pool/out": "out.2.c_proj",
    "adaptive_out": "out.3",
    "spatial_in": "out.0",
    "spatial_out": "out.2",
    "spatial_v2_in": "out.0",
    "spatial_v2_norm/norm": "out.1",
    "spatial_v2_out": "out.3",
}
_MIDDLE = {"mid_res_0": "middle_block.0", "mid_attn": "middle_block.1", "mid_res_1": "middle_block.2"}
_BARE = {
    "text/position_embed": "positional_embedding",
    "text/padding_embed": "padding_embedding",
    "attention_pool/position_embed": "out.2.positional_embedding",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Dense layers that are convolutions with a kernel of one in the original: so many axes of size 1 end their weights.
_CONV1D = re.compile(r".*_attn/(qkv|text_kv|out)/kernel|attention_pool/(qkv|out)/kernel")
_CONV2D = "adaptive_out/kernel"
_THREADS = 4
_COLUMNS = 16


def from_state_dict(
    state_dict: Mapping[str, np.ndarray], template: Params, unused: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Params, dict[str, np.ndarray]]:
    """Our parameters and the unused arrays, in float32, from the original's. Each array is fetched once and converted by itself.

    Args:
      state_dict: arrays under the original's names.
      template: our parameters' shapes, as from `jax.eval_shape(network.init, key)`.
      unused: names and shapes of the original's arrays that our network has no parameters for.

    Raises:
      UserError: keys are missing, left over or misshapen; it lists them.
    """
    paths, structure = _paths(template)
    keys = [original_key(path, paths) for path in paths]
    wanted = {**original_shapes(template), **(unused or {})}
    if wanted.keys() != set(state_dict):
        raise _mismatch(state_dict, wanted)

    def fetch(key: str) -> np.ndarray:
        array = np.asarray(state_dict[key])
        if array.shape != wanted[key]:
            raise _mismatch(state_dict, wanted)
        return array

    def convert(key: str, path: str) -> jax.Array:
        return jax.device_put(_own(_to_ours(fetch(key), path)))

    # NumPy reads and copies without holding the interpreter: threads halve the time, and hold an array each.
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        leaves = list(pool.map(convert, keys, paths))
    kept = {key: np.array(fetch(key), np.float32) for key in unused or {}}
    return jax.tree_util.tree_unflatten(structure, leaves), kept


def to_state_dict(params: Params) -> dict[str, np.ndarray]:
    """Parameters under the original's names and in its layout: the inverse of `from_state_dict`."""
    paths, _ = _paths(params)
    leaves = jax.tree.leaves(params)
    return {
        original_key(path, paths): np.ascontiguousarray(_to_original(np.asarray(leaf), path))
        for path, leaf in zip(paths, leaves, strict=True)
    }


def original_shapes(template: Params) -> dict[str, tuple[int, ...]]:
    """The original's name and shape of each of our parameters: what a file for this network holds."""
    paths, _ = _paths(template)
    empty = np.zeros((), np.float32)
    return {
        original_key(path, paths): _to_original(np.broadcast_to(empty, leaf.shape), path).shape
        for path, leaf in zip(paths, jax.tree.leaves(template), strict=True)
    }


def _own(array: np.ndarray) -> np.ndarray:
    """A float32 copy in row-major order: jax may then share its memory, but never the caller's or a mapped file's."""
    if array.ndim < 2 or array.strides[-1] == array.itemsize:
        return np.array(array, np.float32, order="C")
    # Transposed: a few columns at a time, whose rows stay in the cache, take half the time of all at once.
    out = np.empty(array.shape, np.float32)
    for start in range(0, array.shape[-1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        out[..., columns] = array[..., columns]
    return out


def _mismatch(state_dict: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> UserError:
    found = {
        "missing": [key for key in wanted if key not in state_dict],
        "left over": [key for key in state_dict if key not in wanted],
        "misshapen": [
            f"{key} is {np.shape(state_dict[key])} where {shape} is wanted"
            for key, shape in wanted.items()
            if key in state_dict and np.shape(state_dict[key]) != shape
        ],
    }
    told = "; ".join(f"{what} {_listed(keys)}" for what, keys in found.items() if keys)
    return UserError(
        f"the weights do not fit this network: {told}. Give the kind and the options that they were made with."
    )


def _listed(keys: list[str], most: int = 10) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def original_key(path: str, paths: list[str]) -> str:
    """The original's name of one of our parameters.

    Args:
      path: ours, as "down_1_res/conv_in/kernel".
      paths: all of ours; an upsampling block's number depends on whether there is attention before it.

    Raises:
      KeyError: the path is no part of a U-Net or a classifier.
    """
    if path in _BARE:
        return _BARE[path]
    module, leaf = path.rsplit("/", 1)
    return f"{_original_module(module, paths)}.{_LEAVES[leaf]}"


def _original_module(module: str, paths: list[str]) -> str:
    if module in _TOP:
        return _TOP[module]
    if match := re.fullmatch(r"text/block_(\d+)/(\w+)", module):
        return f"transformer.resblocks.{match[1]}.{_TEXT_BLOCK[match[2]]}"
    block, _, inner = module.partition("/")
    if block in _MIDDLE:
        return f"{_MIDDLE[block]}.{(_ATTENTION if block == 'mid_attn' else _RES_BLOCK)[inner]}"
    match = re.fullmatch(r"(down|up)_(\d+)_(res|attn|resample)", block)
    if match is None:
        raise KeyError(f"{module} is no part of a U-Net")
    direction, index, kind = match.groups()
    stem = f"{'input' if direction == 'down' else 'output'}_blocks.{index}"
    if kind == "attn":
        return f"{stem}.1.{_ATTENTION[inner]}"
    place = 0
    if kind == "resample" and direction == "up":
        place = 2 if any(p.startswith(f"up_{index}_attn/") for p in paths) else 1
    if kind == "resample" and not inner:  # a convolution of its own, not a residual block
        return f"{stem}.{place}.{'op' if direction == 'down' else 'conv'}"
    return f"{stem}.{place}.{_RES_BLOCK[inner]}"


def _paths(tree: Params) -> tuple[list[str], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return ["/".join(part.key for part in path) for path, _ in leaves], structure


def _to_ours(array: np.ndarray, path: str) -> np.ndarray:
    if path.endswith("/kernel"):
        ones = _trailing_ones(path)
        if array.ndim - ones == 4:
            return array.transpose(2, 3, 1, 0)
        return array.reshape(array.shape[:2]).T
    return array.T if path == "attention_pool/position_embed" else array


def _to_original(array: np.ndarray, path: str) -> np.ndarray:
    if path.endswith("/kernel"):
        if array.ndim == 4:
            return array.transpose(3, 2, 0, 1)
        return array.T.reshape(*array.shape[::-1], *[1] * _trailing_ones(path))
    return array.T if path == "attention_pool/position_embed" else array


def _trailing_ones(path: str) -> int:
    return 2 if path == _CONV2D else 1 if _CONV1D.fullmatch(path) else 0
