"""Names and layouts of glide-text2im's CLIP encoders <-> ours."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.models import Params

_BLOCK = {
    "norm_attn": "f_attn.ln",
    "query": "f_attn.f_q",
    "key": "f_attn.f_k",
    "value": "f_attn.f_v",
    "attn_out": "f_attn.f_c",
    "norm_mlp": "f_mlp.ln",
    "mlp_in": "f_mlp.f_1",
    "mlp_out": "f_mlp.f_2",
}
_TOP = {"norm_in": "blocks.input.ln", "norm_out": "blocks.output.ln", "out": "blocks.output.f"}
_WHOLE = {
    "class_embed": "blocks.input.pred_state",
    "time_embed/embedding": "blocks.input.w_t",
    "token_embed/embedding": "blocks.input.w_voc",
    "position_embed": "blocks.input.w_pos",
    "patch/kernel": "blocks.input.patch_proj",
}
_LEAVES = {"kernel": "w", "bias": "b", "scale": "g"}


def encoder_params(state_dict: Mapping[str, np.ndarray], template: Params, prefix: str = "") -> Params:
    """An encoder's parameters from the original's arrays: dense layers from [out, in], patches from [out, in, h, w].

    Args:
      state_dict: arrays under the original's names.
      template: our parameters' shapes, as from `jax.eval_shape(encoder.init, key)`.
      prefix: of the names in an error.

    Raises:
      UserError: keys are missing, left over or misshapen; it lists them.
    """
    wanted = {original_key(path): (path, leaf) for path, leaf in _leaves(template).items()}
    problems = [f"missing {prefix}{key}" for key in wanted if key not in state_dict]
    problems += [f"left over {prefix}{key}" for key in state_dict if key not in wanted]
    for key, (path, leaf) in wanted.items():
        shape = np.shape(state_dict.get(key, leaf))
        original_shape = np.shape(_transposed(np.broadcast_to(np.float32(0), leaf.shape), path))
        if key in state_dict and shape != original_shape:
            problems.append(f"{prefix}{key} has shape {shape} where {original_shape} is wanted")
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(f"the weights do not fit this CLIP: {'; '.join(problems[:10])}{more}.")
    arrays = [
        jnp.asarray(_transposed(state_dict[key], path, back=True), jnp.float32) for key, (path, _) in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), arrays)


def original_key(path: str) -> str:
    """The original's name of one of an encoder's parameters, given ours, as "block_0/query/kernel".

    >>> original_key("block_0/query/kernel")
    'blocks.block_0.f_attn.f_q.w'
    """
    if path in _WHOLE:
        return _WHOLE[path]
    module, leaf = path.rsplit("/", 1)
    match = re.fullmatch(r"(block_\d+)/(\w+)", module)
    return f"{f'blocks.{match[1]}.{_BLOCK[match[2]]}' if match else _TOP[module]}.{_LEAVES[leaf]}"


def encoder_state_dict(params: Params) -> dict[str, np.ndarray]:
    """An encoder's parameters under the original's names and in its layout: the inverse of `encoder_params`."""
    return {original_key(path): np.ascontiguousarray(_transposed(leaf, path)) for path, leaf in _leaves(params).items()}


def _leaves(params: Params) -> dict[str, Any]:
    return {"/".join(part.key for part in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _transposed(array: Any, path: str, back: bool = False) -> np.ndarray:
    """A kernel from our layout to the original's, or back; anything else as it is."""
    array = np.asarray(array)
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 4:
        return array.transpose((2, 3, 1, 0) if back else (3, 2, 0, 1))
    return array.T
