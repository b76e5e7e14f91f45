"""Figures with their whole protocol: pictures beside real ones, and beside their captions."""

from diffusion_jax.scores.captions import caption_scorer, captions_can_be_read, score_captions
from diffusion_jax.scores.classification import accuracy
from diffusion_jax.scores.pictures import Request, compare, table
from diffusion_jax.scores.retrieval import r_precision
from diffusion_jax.scores.samples import score_table, with_spread

__all__ = [
    "Request",
    "accuracy",
    "caption_scorer",
    "captions_can_be_read",
    "compare",
    "r_precision",
    "score_captions",
    "score_table",
    "table",
    "with_spread",
]
