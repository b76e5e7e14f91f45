"""The networks that evaluation takes features of, by name: FID's Inception, EfficientNet-Lite0, a classifier or a CLIP of ours."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from diffusion_jax import build, images, sampling
from diffusion_jax.build.models import fed, module
from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.interop import efficientnet, inception
from diffusion_jax.metrics import features, kept
from diffusion_jax.metrics.features import Extractor
from diffusion_jax.models import Params
from diffusion_jax.models.classifier import make_features

# What each needs, and where it is had.
NETWORKS = {
    "inception": f"the weights of FID's Inception. {inception.HOW_TO_GET}",
    "efficientnet": f"the weights of EfficientNet-Lite0. {efficientnet.HOW_TO_GET}",
    "classifier": "the --workdir of a classifier that train.py trained, as configs/classifier_cifar10.py's.",
}


def extractor(network: str, path: str | None, resize: str = "tensorflow") -> Extractor:
    """A network of `NETWORKS` with its weights.

    Args:
      network: its name.
      path: the file of weights, or of a classifier the checkpoint.
      resize: of Inception, see `models.inception.prepare`.

    Raises:
      UserError: there is no such network, or no such file, or it is of another network.
    """
    if network not in NETWORKS:
        raise unknown_name("feature network", network, NETWORKS)
    if not path:
        raise UserError(f"figures of pictures by {network} need --features_file=FILE: {NETWORKS[network]}")
    if network == "inception":
        return features.inception_extractor(path, resize)
    return features.efficientnet_extractor(path) if network == "efficientnet" else classifier_extractor(path)


def classifier_extractor(path: str) -> Extractor:
    """A classifier of ours: what its last layer reads, and the logits, of clean pictures at its least time.

    Raises:
      UserError: the checkpoint is not there, or is no classifier.
    """
    return of_classifier(_loaded(path, "classifier"))


def of_classifier(loaded: sampling.Loaded) -> Extractor:
    """As `classifier_extractor`, of a classifier that is loaded."""
    model = loaded.model
    encode = make_features(module(model.config, None, jax.default_backend()))

    def apply(params: Params, pictures: UInt8[Array, "B H W 3"]) -> dict[str, Float[Array, "B D"]]:
        pool, logits = _clean(model, lambda x, time, cond: encode(params, x, time), pictures)
        return {"pool": pool, "logits": logits}

    return _extractor(loaded, apply)


def clip_extractor(path: str) -> tuple[Extractor, Callable[[Sequence[str]], Float[np.ndarray, "N D"]]]:
    """A CLIP of ours: the features of clean pictures at its least time ("pool"), and those of captions.

    Raises:
      UserError: the checkpoint is not there, or is no CLIP.
    """
    loaded = _loaded(path, "clip")
    model = loaded.model

    def apply(params: Params, pictures: UInt8[Array, "B H W 3"]) -> dict[str, Float[Array, "B D"]]:
        return {"pool": _clean(model, functools.partial(model.network.apply, params), pictures)}

    return _extractor(loaded, apply), functools.partial(build.text_features, model, loaded.params)


def to_channels(pictures: UInt8[Array, "B H W 3"], channels: int) -> UInt8[Array, "B H W C"]:
    """RGB as it is, or as the grey that training reads: Pillow's luma, (19595 R + 38470 G + 7471 B + 32768) / 65536."""
    if channels == 3:
        return pictures
    weighed = pictures.astype(jnp.int32) * jnp.array([19595, 38470, 7471])
    return ((weighed.sum(-1, keepdims=True) + 32768) >> 16).astype(jnp.uint8)


def _clean(model: build.Model, apply: Callable[..., Any], pictures: UInt8[Array, "B H W 3"]) -> Any:
    """What a network of noisy images gives for clean ones, told the first step of its table."""
    side, (height, width) = model.image_shape[0], pictures.shape[1:3]
    if (height, width) != (side, side):
        raise ValueError(f"pictures are {width} x {height} pixels, and this network reads {side}.")
    x0 = images.to_float(to_channels(pictures, model.image_shape[-1]))
    return fed(model, apply)(x0, jnp.asarray(1 / model.config.diffusion.num_table_steps), {})


def _loaded(path: str, kind: str) -> sampling.Loaded:
    loaded = sampling.load(path, {})
    if loaded.model.config.model.kind != kind:
        raise UserError(f"{path} is no {kind}: its model.kind is {loaded.model.config.model.kind}.")
    return loaded


def _extractor(loaded: sampling.Loaded, apply: Callable[..., Any]) -> Extractor:
    config = loaded.model.config
    name = f"{config.model.kind} of {config.data.name}, {config.data.image_size} pixels"
    protocol = {"checkpoint": str(loaded.workdir), "step": loaded.step, "resize": "none"}
    return Extractor(name, kept.array_identity(loaded.params), loaded.params, apply, protocol, "fd")
