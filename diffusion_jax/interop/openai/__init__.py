"""OpenAI's networks from their own weights, under their own names: guided-diffusion, improved-diffusion, glide-text2im.

    model = load("glide_base", "base.pt")                     # or "create_model" with the original's keyword arguments
    eps_and_variance = model(x, timesteps, tokens=tokens, mask=mask)
    save(model, "base.safetensors")                            # the original's keys and shapes

The network underneath is the house's: `model.network.apply(model.params, x, time, cond)`.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.denoiser import Cond
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.interop import files, openai_clip
from diffusion_jax.interop.openai import kinds, names
from diffusion_jax.models import Network, Params
from diffusion_jax.models.classifier import Classifier, make_classifier
from diffusion_jax.models.unet import UNet, make_network

__all__ = ["KINDS", "OpenAIModel", "load", "save"]


class OpenAIModel(NamedTuple):
    """A U-Net or a classifier that is called as the original is, but for images, which are [B, H, W, C].

    kind: what it was loaded as.
    options: the original constructor's arguments, complete.
    module: our hyper-parameters.
    channels: C of x.
    network: the module as two pure functions, `apply` compiled.
    params: ours, float32.
    unused: the original's arrays that its network never reads, kept for saving.
    """

    kind: str
    options: Mapping[str, Any]
    module: UNet | Classifier
    channels: int
    network: Network
    params: Params
    unused: Mapping[str, np.ndarray]

    def __call__(
        self, x: Float[Array, "B H W C"], timesteps: Float[Array, "B"], **inputs: Any
    ) -> Float[Array, "B H W C_out"] | Float[Array, "B K"]:
        """The network's output [B, H, W, out_channels], or a classifier's logits [B, out_channels].

        Args:
          x: noisy images; in [-1, 1] where clean.
          timesteps: integer or fractional steps of the original's process, 0 (cleanest) to 999.
          inputs: what the original takes: `y` [B]; `low_res` [B, h, w, C]; `tokens`, `mask` [B, L]; `inpaint_image` [B, H, W, C],
            `inpaint_mask` [B, H, W, 1]. A caption is encoded at each call: `cache_text_emb` changes no value.

        Raises:
          ValueError: an input is unknown, lacking or misshapen.
        """
        x, time = jnp.asarray(x, jnp.float32), jnp.asarray(timesteps, jnp.float32)
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"{self.kind} takes images [B, H, W, {self.channels}]; got {x.shape}.")
        if time.shape != x.shape[:1]:
            raise ValueError(f"timesteps must be one per image, {x.shape[:1]}; got {time.shape}.")
        return self.network.apply(self.params, x, time, self.cond(**inputs))

    def cond(self, **inputs: Any) -> Cond:
        """The house's condition from the original's arguments. Raises ValueError if one is unknown, lacking or misshapen."""
        required, optional, module = set(), set(), self.module
        if isinstance(module, UNet):
            required |= {"y"} if module.num_classes is not None else set()
            required |= {"low_res"} if module.low_res else set()
            optional |= {"inpaint_image", "inpaint_mask"} if module.inpaint else set()
            if module.text is not None:
                required |= {"tokens", "mask"} if module.text.padding else {"tokens"}
            if "text_ctx" in self.options:  # the original takes both always, and ignores what it has no use for
                optional |= {"tokens", "mask"}
        given = {name: value for name, value in inputs.items() if value is not None}
        if wrong := (required - given.keys()) | (given.keys() - required - optional):
            takes = ", ".join(
                ["x", "timesteps", *sorted(required), *(f"{name} (optional)" for name in sorted(optional))]
            )
            raise ValueError(f"{self.kind} takes {takes}; lacking or unknown: {', '.join(sorted(wrong))}.")
        cond = {_COND[name][0]: jnp.asarray(value, _COND[name][1]) for name, value in given.items()}
        if isinstance(module, Classifier) or module.text is None:
            cond.pop("tokens", None), cond.pop("mask", None)
        elif cond["tokens"].shape[-1] != module.text.context_length:
            raise ValueError(f"tokens must be [B, {module.text.context_length}]; got {cond['tokens'].shape}.")
        return cond

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters under the original's names and in its layout, float32."""
        return {**names.to_state_dict(self.params), **self.unused}


# The original's argument -> the house's condition, and its type.
_COND = {
    "y": ("label", jnp.int32),
    "tokens": ("tokens", jnp.int32),
    "mask": ("mask", bool),
    "low_res": ("low_res", jnp.float32),
    "inpaint_image": ("inpaint_image", jnp.float32),
    "inpaint_mask": ("inpaint_mask", jnp.float32),
}


def load(kind: str, weights: Any, options: Mapping[str, Any] | None = None, dtype: Any = jnp.float32) -> Any:
    """One of OpenAI's networks from its weights.

    Args:
      kind: a published file ("adm_64_cond", "glide_base", ...; then no option is needed) or an original's constructor
        ("create_model", "SuperResModel", "Text2ImUNet", "create_clip_model", ...): a key of KINDS. A module's name may stand before
        it, with a dot.
      weights: a path (.safetensors or .pt), or a mapping of arrays under the original's keys; of floats of any width. A CLIP's two
        files may be given as `openai_clip.load_clip` takes them.
      options: the constructor's keyword arguments, in its own names; `num_classes` or `n_vocab` too where the original has a
        global or a tokenizer for it. `use_checkpoint` recomputes blocks in the backward pass; `use_fp16` is without effect.
      dtype: what the blocks compute in: jnp.float32 or jnp.bfloat16. Parameters stay float32.

    Returns:
      An `OpenAIModel`, or for CLIP an `openai_clip.OpenAIClip`.

    Raises:
      UserError: the kind or an option is unknown, an option is lacking, or keys are missing, left over or misshapen; it lists them.
    """
    name = kind.rpartition(".")[2]
    if name not in KINDS:
        raise unknown_name("kind of OpenAI network", kind, KINDS)
    return KINDS[name](weights, options, dtype=dtype)


def save(model: Any, path: str | os.PathLike) -> None:
    """Writes what `load` returned as safetensors: the original's keys, shapes and values, in float32."""
    files.write_safetensors(model.state_dict(), path)


def _load(
    weights: Any, options: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, *, kind: str
) -> OpenAIModel:
    _, complete = kinds.complete(kind, options)
    blueprint = kinds.blueprint(kind, options)
    module = blueprint.module.clone(dtype=dtype)
    try:
        if isinstance(module, Classifier):
            network = make_classifier(module, blueprint.image_shape)
        else:
            module = module.clone(text=module.text and module.text.clone(dtype=dtype))
            network = make_network(module, blueprint.image_shape)
    except ValueError as error:
        raise UserError(f"{kind}: {error}") from None
    if isinstance(weights, str | os.PathLike):
        weights = files.read(weights)
    template = jax.eval_shape(network.init, jax.random.key(0))
    params, unused = names.from_state_dict(weights, template, blueprint.unused)
    network = network._replace(apply=jax.jit(network.apply))
    return OpenAIModel(kind, complete, module, blueprint.image_shape[-1], network, params, unused)


# kind -> (weights, options, dtype=) -> a model that has a state_dict.
KINDS: dict[str, Callable[..., Any]] = {
    **{kind: functools.partial(_load, kind=kind) for kind in kinds.NAMES},
    **openai_clip.LOADERS,
}
