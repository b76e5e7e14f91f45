"""OpenAI's parameter names (guided-diffusion, improved-diffusion, glide-text2im) <-> our U-Net's tree."""

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
}
_MIDDLE = {"mid_res_0": "middle_block.0", "mid_attn": "middle_block.1", "mid_res_1": "middle_block.2"}
_BARE = {"text/position_embed": "positional_embedding", "text/padding_embed": "padding_embedding"}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def unet_params(state_dict: Mapping[str, np.ndarray], template: Params) -> Params:
    """Parameters of our U-Net from an OpenAI state_dict.

    Convolutions go from [out, in, h, w] to [h, w, in, out], dense layers (and 1-wide Conv1d) from [out, in] to [in, out].
    The order of qkv's columns is kept: it leaves no trace in a file, so that UNet.qkv_order must say which it is.

    Args:
      state_dict: arrays under the original's names.
      template: our parameters' shapes, as from `jax.eval_shape(network.init, key)`.

    Returns:
      float32 parameters.

    Raises:
      UserError: keys are missing, left over or misshapen; it lists them.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    paths = ["/".join(part.key for part in path) for path, _ in leaves]
    keys = [original_key(path, paths) for path in paths]
    problems = [f"missing {key}" for key in keys if key not in state_dict]
    problems += [f"left over {key}" for key in state_dict if key not in set(keys)]
    arrays = []
    for key, (_, leaf) in zip(keys, leaves, strict=True):
        array = _to_flax(np.asarray(state_dict[key], np.float32), leaf.ndim, key) if key in state_dict else None
        if array is not None and array.shape != leaf.shape:
            problems.append(
                f"{key} has shape {state_dict[key].shape}, which gives {array.shape} where {leaf.shape} is wanted"
            )
        arrays.append(array)
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(f"the weights do not fit this network: {'; '.join(problems[:10])}{more}.")
    return jax.tree_util.tree_unflatten(structure, arrays)


def original_key(path: str, paths: list[str]) -> str:
    """The original's name of one of our parameters.

    Args:
      path: ours, as "down_1_res/conv_in/kernel".
      paths: all of ours; an upsampling block's number depends on whether there is attention before it.

    Raises:
      KeyError: the path is none of a U-Net's.
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


def _to_flax(array: np.ndarray, ndim: int, key: str) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 3 and ndim == 2:  # Conv1d with a kernel of one
        return array[..., 0].T
    if array.ndim == 2 and ("embedding" in key or key == "label_emb.weight"):
        return array
    return array.T


def state_dict_keys(template: Params) -> dict[str, Any]:
    """Our parameters' shapes under the original's names: what a file for this network holds."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(template)
    paths = ["/".join(part.key for part in path) for path, _ in leaves]
    return {original_key(path, paths): leaf.shape for path, (_, leaf) in zip(paths, leaves, strict=True)}
