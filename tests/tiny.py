"""Tiny checkpoints with parameters drawn at random, so that every input moves the output."""

import pathlib

import jax
import numpy as np

from configs.scenes import get_config
from diffusion_jax import build
from diffusion_jax.data import bpe
from diffusion_jax.data.captions import CaptionTokenizer
from diffusion_jax.training import checkpoint

VOCABULARY = pathlib.Path(__file__).parent / "golden" / "tokenizer" / "bpe_simple_vocab_16e6.first_48894.txt.gz"
CLIP = {"model.condition": "none", "model.kind": "clip"}


def saved(workdir, **fields):
    """A checkpoint of configs/scenes.py:debug at 16 pixels with other fields, on one device; returns its path."""
    config = get_config("debug")
    config.parallel.placement = "single"
    config.sample.update(num_steps=4, samples_per_prompt=1)
    config.model.update(channels=8, channel_mults=(1,), attention_resolutions=(), norm_groups=4)  # soon compiled
    config.update_from_flattened_dict({"data.image_size": 16, "model.patch_size": 2} | fields)
    tokenizer = None
    if config.model.condition == "text":
        tokenizer = CaptionTokenizer.train(["a large red circle on a white background"], 300)
    if config.model.kind == "clip":
        tokenizer = bpe.load_clip(VOCABULARY)
        config.clip.update(image_width=16, image_layers=1, image_heads=2, text_width=16, text_layers=1, text_heads=2)
        config.clip.update(features=8, vocab_size=tokenizer.vocab_size)
    model = build.model(config, tokenizer)
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.asarray(0.2 * rng.normal(size=leaf.shape), np.float32), template)
    checkpoint.write_weights(workdir, params, config.to_dict(), tokenizer.to_json() if tokenizer else None)
    return str(workdir)
