"""From a checkpoint to pictures and files: what sample.py does, and what evaluation and the page share of it."""

from diffusion_jax.sampling.command import check_upsampler, run
from diffusion_jax.sampling.loading import Loaded, load
from diffusion_jax.sampling.request import MAIN_AVERAGE, Average, Request

__all__ = ["MAIN_AVERAGE", "Average", "Loaded", "Request", "check_upsampler", "load", "run"]
