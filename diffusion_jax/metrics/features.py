"""Pictures -> a network's features, over all devices, a batch at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from diffusion_jax.interop import efficientnet as efficientnet_weights
from diffusion_jax.interop import files
from diffusion_jax.interop import inception as inception_weights
from diffusion_jax.models import Params, efficientnet, inception
from diffusion_jax.training.placement import Placement

Features = dict[str, Float[np.ndarray, "B D"]]
Extract = Callable[[Iterable[UInt8[np.ndarray, "B H W C"]], int], Iterator[Features]]


class Extractor(NamedTuple):
    """A network that features are of.

    name, sha256: what it is, for the record; the hash is that of its file of weights, or of its arrays.
    params: of the network.
    apply: (params, uint8 [B, H, W, 3]) -> arrays [B, D] by name. "pool" is what FID, KID and neighbours are of; "spatial"
      sFID's and "logits" the Inception Score's where there are such. A row depends on its picture alone.
    protocol: what else the features depend on, for the record.
    frechet: what the Fréchet distance of its "pool" is called: "fid" of Inception's, "fd" of any other's.
    """

    name: str
    sha256: str
    params: Params
    apply: Callable[[Params, UInt8[Array, "B H W 3"]], dict[str, Float[Array, "B D"]]]
    protocol: dict[str, Any]
    frechet: str = "fid"


def inception_extractor(path: str, resize: str = "tensorflow") -> Extractor:
    """FID's Inception with the weights in a file.

    Args:
      path: as `interop.inception.load`.
      resize: as `models.inception.prepare`.

    Raises:
      UserError: the file is not there, or is another network.
    """
    loaded = inception_weights.load(path)

    def apply(params: Params, images: UInt8[Array, "B H W 3"]) -> dict[str, Float[Array, "B D"]]:
        found = inception.apply(params, images, resize)
        return {name: value for name, value in found._asdict().items() if value is not None}

    protocol = {"resize": f"{resize}, bilinear to {inception.SIDE}"}
    return Extractor("Inception 2015-12-05", loaded.sha256, loaded.params, apply, protocol)


def efficientnet_extractor(path: str) -> Extractor:
    """EfficientNet-Lite0 with the weights in a file, as `interop.efficientnet.load`.

    Raises:
      UserError: the file is not there, or is another network.
    """
    params = efficientnet_weights.load(path)
    protocol = {"resize": f"bicubic to {efficientnet.SIDE}, smoothed where it shrinks"}
    return Extractor("EfficientNet-Lite0", files.sha256(path), params, _efficientnet, protocol, "fd")


def _efficientnet(params: Params, images: UInt8[Array, "B H W 3"]) -> dict[str, Float[Array, "B D"]]:
    return efficientnet.apply(params, images)._asdict()


def make_extract(extractor: Extractor, placement: Placement) -> Extract:
    """A function from batches of pictures to their features; it compiles once for each height and width.

    Args:
      placement: the devices; with several processes all of them call the function, with the same pictures.

    Returns:
      extract(batches, batch_size): the batches are of at most `batch_size` pictures; grey ones are shown as RGB.
      batch_size is the rows that the network sees at a time, a multiple of the placement's devices; what a batch lacks is
      filled up with its last picture, whose features are dropped. It raises ValueError for other arrays.
    """
    params = placement.replicate(extractor.params)
    compiled = placement.map(lambda shared, batch, axis_name: extractor.apply(shared, batch))

    def extract(batches: Iterable[UInt8[np.ndarray, "B H W C"]], batch_size: int) -> Iterator[Features]:
        for batch in batches:
            images = np.asarray(batch)
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
                raise ValueError(f"pictures are uint8 [B, H, W, 1 or 3]; got {images.dtype} {list(images.shape)}.")
            if not 0 < len(images) <= batch_size:
                raise ValueError(f"batches of 1 to {batch_size} pictures; got {len(images)}.")
            images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
            rows = np.minimum(np.arange(batch_size), len(images) - 1)
            found = compiled(params, images[rows])
            yield {name: np.asarray(array)[: len(images)] for name, array in found.items()}

    return extract
