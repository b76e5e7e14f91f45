"""Names in a config -> objects. The only reader of a config below the commands."""

from diffusion_jax.build.data import DATA_SOURCES, encode_example, source
from diffusion_jax.build.models import (
    SCHEDULES,
    Model,
    Process,
    decoder,
    denoiser,
    input_parts,
    log_prob,
    logits,
    model,
    prompt_cond,
    text_features,
)
from diffusion_jax.build.sampling import GRIDS, SAMPLERS, generate, grid, knobs, sampler
from diffusion_jax.build.training import (
    averages,
    loss_history,
    loss_per_example,
    lr_schedule,
    objective,
    optimizer,
    placement,
    train_step,
)

__all__ = [
    "DATA_SOURCES",
    "GRIDS",
    "SAMPLERS",
    "SCHEDULES",
    "Model",
    "Process",
    "averages",
    "decoder",
    "denoiser",
    "encode_example",
    "generate",
    "grid",
    "input_parts",
    "knobs",
    "log_prob",
    "logits",
    "loss_history",
    "loss_per_example",
    "lr_schedule",
    "model",
    "objective",
    "optimizer",
    "placement",
    "prompt_cond",
    "sampler",
    "source",
    "text_features",
    "train_step",
]
