"""GLIDE's noised CLIP from OpenAI's weights, under the original's names: loading, comparing, guiding and saving back.

    clip = load_clip({"image_encoder": "clip_image_enc.pt", "text_encoder": "clip_text_enc.pt"})
    guide = clip.cond_fn(tokens, text_len, grad_scale=3.0)      # (x_t, timesteps) -> gradient, as GLIDE's cond_fn

For the house's own samplers, `clip.log_prob(tokens, text_len)` goes into `guidance.classifier`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax import guidance, schedules
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.interop import files
from diffusion_jax.interop.openai_clip_keys import encoder_params, encoder_state_dict
from diffusion_jax.models import Params
from diffusion_jax.models.clip import (
    Encoder,
    ImageEncoder,
    TextEncoder,
    make_image_encoder,
    make_text_encoder,
    unit_length,
)

ENCODERS = ("image_encoder", "text_encoder")
# The published model's configuration, which holds for whatever create_clip_model's options leave out.
PUBLISHED_OPTIONS = {
    "logit_scale": 100.0,
    "beta_schedule": "squaredcos_cap_v2",
    "n_timesteps": 1000,
    "image_size": 64,
    "patch_size": 4,
    "n_vocab": 65536,
    "max_text_len": 77,
    "n_embd": 512,
    "n_head_state_text": 64,
    "n_head_text": 8,
    "n_xf_blocks_text": 12,
    "n_head_state_image": 64,
    "n_head_image": 12,
    "n_xf_blocks_image": 12,
}
# An encoder's own constructor: its argument -> create_clip_model's, and the two defaults that it has.
_ARGUMENTS = {
    "image_encoder": {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "n_embd": "n_embd",
        "n_head": "n_head_image",
        "n_xf_blocks": "n_xf_blocks_image",
        "n_head_state": "n_head_state_image",
        "n_timestep": "n_timesteps",
    },
    "text_encoder": {
        "n_bpe_vocab": "n_vocab",
        "max_text_len": "max_text_len",
        "n_embd": "n_embd",
        "n_head": "n_head_text",
        "n_xf_blocks": "n_xf_blocks_text",
        "n_head_state": "n_head_state_text",
    },
}
_ARGUMENT_DEFAULTS = {"n_head_state": 64, "n_timestep": 0}
# kind -> the encoders that such a file holds; the last two are the published files.
KINDS = {
    "create_clip_model": ENCODERS,
    "ImageEncoder": ENCODERS[:1],
    "TextEncoder": ENCODERS[1:],
    "glide_clip_image_enc": ENCODERS[:1],
    "glide_clip_text_enc": ENCODERS[1:],
}


@dataclasses.dataclass(frozen=True, eq=False)
class OpenAIClip:
    """A noised CLIP that is called as the original is, but for images, which are [B, H, W, C].

    options: create_clip_model's, complete.
    network: encoder's name -> `models.clip.Encoder`; one is absent where only the other's file was given.
    params: encoder's name -> parameters.
    prefixed: whether its file's keys begin with "image_encoder." or "text_encoder."; the published files' do not.
    """

    options: Mapping[str, Any]
    network: Mapping[str, Encoder]
    params: Mapping[str, Params]
    prefixed: bool

    @property
    def logit_scale(self) -> Float[Array, ""]:
        """The logarithm of the options' logit_scale; similarities are multiplied by its exponential."""
        return jnp.log(jnp.float32(self.options["logit_scale"]))

    def image_encoder(
        self,
        images: Float[Array, "B H W 3"],
        timesteps: Float[Array, "B"] | None = None,
        return_probe_features: bool = False,
    ) -> Float[Array, "B D"]:
        """Features, not of unit length, of images in 0..255; or what the last norm reads, [B, width]."""
        return self._image_features(jnp.asarray(images, jnp.float32) / 127.5 - 1, timesteps, return_probe_features)

    def text_encoder(
        self, tokens: Int[Array, "B L"], text_len: Int[Array, "B"], return_probe_features: bool = False
    ) -> Float[Array, "B D"]:
        """Features, not of unit length, of captions; arguments as `text_embeddings`."""
        _check_range("tokens", tokens, 0, self.options["n_vocab"] - 1)
        _check_range("text_len", text_len, 1, self.options["max_text_len"])
        inputs = (jnp.asarray(tokens, jnp.int32), jnp.asarray(text_len, jnp.int32))
        return self._encode("text_encoder", *inputs, probe=return_probe_features)

    def image_embeddings(
        self, images: Float[Array, "B H W 3"], timesteps: Float[Array, "B"] | None = None
    ) -> Float[Array, "B D"]:
        """Features of unit length of noisy images.

        Args:
          images: x_t, in [-1, 1] where clean.
          timesteps: the original process's step of each image, 0 (cleanest) to n_timesteps - 1; None where n_timesteps
            is 0. A fractional one takes the nearest: the encoder knows whole steps only.

        Raises:
          ValueError: shapes or steps are not the network's, or there is no image encoder.
        """
        return unit_length(self._image_features(jnp.asarray(images), timesteps))

    def text_embeddings(self, tokens: Int[Array, "B L"], text_len: Int[Array, "B"]) -> Float[Array, "B D"]:
        """Features of unit length of captions.

        Args:
          tokens: of CLIP's vocabulary, start and end included, padded to L = max_text_len; with what does not matter.
          text_len: how many of them are no padding.

        Raises:
          ValueError: shapes, tokens or lengths are not the network's, or there is no text encoder.
        """
        return unit_length(self.text_encoder(tokens, text_len))

    def cond_fn(
        self, tokens: Int[Array, "B L"], text_len: Int[Array, "B"], grad_scale: float
    ) -> Callable[..., Float[Array, "B H W 3"]]:
        """GLIDE's guidance by these captions: (x_t, timesteps, grad_scale=grad_scale) -> gradient, of x_t's shape.

            gradient = grad_scale grad_x exp(logit_scale) <text_embeddings, image_embeddings(x_t, timesteps)>

        One caption alone serves all images. Other keyword arguments are ignored, as by the original.
        """
        similarity = self._similarity(tokens, text_len, lambda timesteps: timesteps)

        def gradient(
            x: Float[Array, "B H W 3"], timesteps: Float[Array, "B"] | None, grad_scale: float = grad_scale, **_: Any
        ) -> Float[Array, "B H W 3"]:
            x = jnp.asarray(x, jnp.float32)
            return grad_scale * jax.grad(lambda x: similarity(x, timesteps, {}).sum())(x)

        return gradient

    def log_prob(self, tokens: Int[Array, "B L"], text_len: Int[Array, "B"]) -> Callable[..., Float[Array, "B"]]:
        """What `guidance.classifier` raises: (x_t, t in [0, 1], cond) -> exp(logit_scale) <text, image>, per example.

        t is told to the encoder as the step of n_timesteps that it is. With the classifier's shift "mean" and the
        ancestral sampler this is GLIDE's guidance.
        """
        steps = self.options["n_timesteps"]

        def step_of(t: Float[Array, "*B"]) -> Float[Array, "*B"] | None:
            return jnp.clip(schedules.discrete_step(jnp.asarray(t), steps), 0, steps - 1) if steps else None

        return self._similarity(tokens, text_len, step_of)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters under the original's names, in its layout and float32: what `load_clip` takes, exactly."""
        arrays = {}
        for encoder, params in self.params.items():
            prefix = f"{encoder}." if self.prefixed else ""
            arrays |= {prefix + key: array for key, array in encoder_state_dict(params).items()}
        return arrays

    def _similarity(self, tokens: Array, text_len: Array, step_of: Callable) -> Callable[..., Float[Array, "B"]]:
        def encode_image(x_t: Float[Array, "B H W 3"], t: Float[Array, "*B"]) -> Float[Array, "B D"]:
            step = step_of(t)
            return self.image_embeddings(x_t, None if step is None else jnp.broadcast_to(step, x_t.shape[:1]))

        return guidance.clip_similarity(encode_image, self.text_embeddings(tokens, text_len), jnp.exp(self.logit_scale))

    def _image_features(self, images: Array, timesteps: Array | None, probe: bool = False) -> Float[Array, "B D"]:
        if timesteps is not None:
            _check_range("timesteps", timesteps, 0, max(self.options["n_timesteps"] - 1, 0))
            timesteps = jnp.asarray(timesteps, jnp.float32)
        return self._encode("image_encoder", jnp.asarray(images, jnp.float32), timesteps, probe=probe)

    def _encode(self, encoder: str, *inputs: Any, probe: bool) -> Float[Array, "B D"]:
        if encoder not in self.network:
            raise ValueError(f"this CLIP was loaded without its {encoder}: give load_clip both files' weights.")
        return self.network[encoder].apply(self.params[encoder], *inputs, probe=probe)


def load_clip(
    weights: Any, options: Mapping[str, Any] | None = None, kind: str = "create_clip_model", dtype: Any = jnp.float32
) -> OpenAIClip:
    """A noised CLIP of glide-text2im, from its weights.

    Args:
      weights: a path (`interop.files.read`) or a mapping of arrays, under the original's keys: one encoder's, or both
        under "image_encoder." and "text_encoder."; or a mapping {"image_encoder": ..., "text_encoder": ...} of such.
      options: of create_clip_model's configuration, whatever differs from the published model's; or the arguments of
        the encoder's own constructor (`n_head`, `n_timestep`, ...), if the weights are one encoder's.
      kind: a key of KINDS. An encoder's constructor has defaults of its own (no timesteps); a published file needs no
        options.
      dtype: what dense layers compute in; parameters stay float32.

    Raises:
      UserError: kind or an option is unknown, an option is lacking, or keys are missing, left over or misshapen; it
        lists them.
      ValueError: the options contradict each other.
    """
    if kind not in KINDS:
        raise unknown_name("kind of CLIP", kind, KINDS)
    state, prefixed = _by_encoder(weights, KINDS[kind])
    options = _complete(dict(options or {}), kind, tuple(state))
    network, params = {}, {}
    for encoder, arrays in state.items():
        made = _make(encoder, options, dtype)
        network[encoder] = made._replace(apply=jax.jit(made.apply, static_argnames="probe"))
        template = jax.eval_shape(made.init, jax.random.key(0))
        params[encoder] = encoder_params(arrays, template, f"{encoder}." if prefixed else "")
    return OpenAIClip(options, network, params, prefixed)


LOADERS = {kind: functools.partial(load_clip, kind=kind) for kind in KINDS}  # kind -> (weights, options) -> OpenAIClip


def _by_encoder(weights: Any, expected: tuple[str, ...]) -> tuple[dict[str, Mapping[str, np.ndarray]], bool]:
    """Encoder -> its arrays without a prefix; and whether they are one file's with prefixes."""
    weights = _read(weights)
    if weights and set(weights) <= set(ENCODERS):
        return {encoder: _read(weights[encoder]) for encoder in ENCODERS if encoder in weights}, len(weights) > 1
    if any(key.startswith(tuple(f"{encoder}." for encoder in ENCODERS)) for key in weights):
        state = {encoder: {} for encoder in expected}
        for key, array in weights.items():
            encoder, _, rest = key.partition(".")
            if encoder not in state:
                raise UserError(f"the weights do not fit this CLIP: left over {key}.")
            state[encoder][rest] = array
        return {encoder: arrays for encoder, arrays in state.items() if arrays}, True
    if len(expected) > 1:
        expected = ("text_encoder",) if "blocks.input.w_voc" in weights else ("image_encoder",)
    return {expected[0]: weights}, False


def _read(weights: Any) -> Mapping[str, Any]:
    return files.read(weights) if isinstance(weights, str | os.PathLike) else weights


def _complete(options: dict[str, Any], kind: str, encoders: tuple[str, ...]) -> dict[str, Any]:
    """create_clip_model's options, complete, from those given in its names or in those of an encoder's constructor."""
    options.pop("device", None)  # the original's; here JAX places arrays
    own_names = kind in ("ImageEncoder", "TextEncoder") or bool(options.keys() - PUBLISHED_OPTIONS.keys())
    if own_names and len(encoders) == 1:
        names = _ARGUMENTS[encoders[0]]
        given = _ARGUMENT_DEFAULTS | options
        if encoders[0] == "text_encoder":
            given.pop("n_timestep")
        if missing := names.keys() - given.keys():
            raise UserError(f"{kind} needs the options {', '.join(sorted(missing))}.")
        unknown, known = given.keys() - names.keys(), names.keys()
    else:
        names, given = {name: name for name in PUBLISHED_OPTIONS}, options
        unknown, known = options.keys() - PUBLISHED_OPTIONS.keys(), PUBLISHED_OPTIONS.keys()
    if unknown:
        raise unknown_name(f"option of {kind}", min(unknown), known)
    return PUBLISHED_OPTIONS | {names[name]: value for name, value in given.items()}


def _make(encoder: str, options: Mapping[str, Any], dtype: Any) -> Encoder:
    part = encoder.partition("_")[0]  # image, text
    heads = options[f"n_head_{part}"]
    shared = {
        "width": heads * options[f"n_head_state_{part}"],
        "num_layers": options[f"n_xf_blocks_{part}"],
        "num_heads": heads,
        "features": options["n_embd"],
        "dtype": dtype,
    }
    if encoder == "text_encoder":
        return make_text_encoder(TextEncoder(options["n_vocab"], options["max_text_len"], **shared))
    sizes = options["image_size"], options["patch_size"]
    return make_image_encoder(ImageEncoder(*sizes, **shared, num_timesteps=options["n_timesteps"]))


def _check_range(name: str, values: Any, low: int, high: int) -> None:
    """An index beyond a table: JAX would clamp it without a word, where the original fails. Unknown while tracing."""
    if isinstance(values, jax.core.Tracer):
        return
    values = np.rint(np.asarray(values))
    if values.size and (values.min() < low or values.max() > high):
        raise ValueError(f"{name} must lie in {low}..{high}; got {values.min():g}..{values.max():g}.")
