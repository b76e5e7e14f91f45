"""A recipe's train step and the shapes that it takes, without data and without an array."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.plan import flops
from diffusion_jax.training.step import TrainState, init_state


class Recipe(NamedTuple):
    """What a config trains.

    step: training/run.py's.
    state, batch: trees of ShapeDtypeStruct; the batch is the global one.
    """

    config: ConfigDict
    model: build.Model
    step: Callable[..., Any]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))


class _AnyWords(NamedTuple):
    """A tokenizer of the right size that knows no words: shapes need none."""

    vocab_size: int

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)


def recipe(config: ConfigDict, platform: str | None = None) -> Recipe:
    """The recipe of a whole config.

    Args:
      config: all fields.
      platform: of the chips, whose own kernels its network may then call; None is none, so that all can be counted.

    Raises:
      UserError: a name or a value in it cannot be used, as train.py would say.
    """
    reads_captions = config.model.condition == "text" or config.model.kind == "clip"
    tokenizer: Any = _AnyWords(config.text.vocab_size) if reads_captions else None
    built = config.copy_and_resolve_references()
    if platform is None:
        built.model.attention = "xla"
    model, optimizer = build.model(built, tokenizer, platform), build.optimizer(config)
    step, averages = build.train_step(model, optimizer), len(build.averages(config))
    make = functools.partial(
        init_state, model.network.init, optimizer, config.seed, build.loss_history(model), averages
    )
    return Recipe(config, model, step, jax.eval_shape(make), _batch(model, config.train.batch_size))


def _batch(model: build.Model, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    blank = {"image": np.zeros(model.image_shape, _dtype(model)), "caption": "a word", "label": 0}
    example = build.encode_example(model)(blank)
    return {name: jax.ShapeDtypeStruct((size, *np.shape(leaf)), leaf.dtype) for name, leaf in example.items()}


def _dtype(model: build.Model) -> Any:
    """Of the data set's examples."""
    if len(model.image_shape) == 3:
        return np.uint8
    return np.float32 if model.transition is None else np.int32


def image_flops(recipe: Recipe) -> int:
    """The model's operations for one image, forward and backward: three times the network's forward ones.

    A CLIP's image has its caption with it. The backward pass has two products for each forward one. What is recomputed to
    save memory is not counted, so that a share of the peak in these operations compares programs, whatever they recompute.
    """
    model, numbers = recipe.model, np.float32 if recipe.model.transition is None else np.int32
    x, time = jax.ShapeDtypeStruct((1, *model.image_shape), numbers), jax.ShapeDtypeStruct((1,), np.float32)
    cond = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *np.shape(leaf)), leaf.dtype), model.blank_cond)
    forward = flops.count(model.network.apply, recipe.state.params, x, time, cond)
    if model.config.model.kind == "clip":  # whose network's own is the picture's half
        caption = (jax.ShapeDtypeStruct((1, *recipe.batch[name].shape[1:]), np.int32) for name in ("tokens", "mask"))
        forward += flops.count(functools.partial(build.encode_text, model), recipe.state.params, *caption)
    return 3 * forward


def step_flops(recipe: Recipe) -> int:
    """Operations of one step of the whole batch as it is written, recomputation included."""
    return flops.count(functools.partial(recipe.step, axis_name=None), recipe.state, recipe.batch)
