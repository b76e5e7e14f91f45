"""A web page that draws pictures from a checkpoint, for several people at once.

    python -m diffusion_jax.app --checkpoint=runs/scenes
    python -m diffusion_jax.app --checkpoint=runs/glide_base --upsampler=runs/glide_upsample --host=0.0.0.0 --port=8000

Needs the extra `app` (pip install -e '.[app]'). The page opens at once; what was asked while the model compiles is answered after.
Requests with the same sampler and number of steps are made in one batch. docs/app.md has the rest.
"""

import importlib.util

from absl import flags

from diffusion_jax import cli
from diffusion_jax.errors import UserError

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A training run's --workdir, or one step of it (DIR/checkpoints/STEP)."
)
UPSAMPLER = flags.DEFINE_string("upsampler", None, "A checkpoint that enlarges what --checkpoint makes.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen at; 0.0.0.0 is open to the network.")
PORT = flags.DEFINE_integer("port", 7860, "The port; 0 takes a free one.", lower_bound=0, upper_bound=65535)
OUT = flags.DEFINE_string("out", "samples/app", "Folder of the results, one each.")
KEEP = flags.DEFINE_integer("keep", 100, "Results that are kept in --out; older ones are removed.", lower_bound=1)
MAX_QUEUE = flags.DEFINE_integer("max_queue", 256, "Pictures that may wait; more are refused.", lower_bound=1)
MAX_NUMBER = flags.DEFINE_integer("max_number", 8, "Most pictures of one request.", lower_bound=1)
MAX_STEPS = flags.DEFINE_integer("max_steps", 100, "Most steps of the sampler.", lower_bound=1)
MAX_GUIDANCE = flags.DEFINE_float("max_guidance", 20, "Largest guidance scale.", lower_bound=0)
BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["4", "16"], "Pictures at a time, over all devices: a batch is filled up to the next of these sizes."
)
flags.adopt_module_key_flags(cli)
flags.mark_flag_as_required("checkpoint")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install -e '.[app]'.")
    sizes = _sizes()
    cli.start()
    from diffusion_jax import sampling  # after the flags are right: JAX takes seconds to import
    from diffusion_jax.app import page
    from diffusion_jax.app.requests import Limits
    from diffusion_jax.app.results import Results
    from diffusion_jax.app.service import Service
    from diffusion_jax.app.site import Site

    limits = Limits(number=MAX_NUMBER.value, steps=MAX_STEPS.value, guidance_scale=MAX_GUIDANCE.value)
    larger = sampling.load(UPSAMPLER.value, {}) if UPSAMPLER.value else None
    service = Service(sampling.load(str(CHECKPOINT.value), {}), larger, limits, sizes, MAX_QUEUE.value)
    results = Results(OUT.value, KEEP.value)
    service.warm()
    try:
        page.serve(Site(service, results, str(CHECKPOINT.value), UPSAMPLER.value), HOST.value, PORT.value)
    finally:
        service.close()


def _sizes() -> list[int]:
    try:
        sizes = [int(text) for text in BATCH_SIZES.value]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UserError(f"--batch_sizes={','.join(BATCH_SIZES.value)}: wants whole numbers from 1, such as 4,16.")
    return sizes


if __name__ == "__main__":
    cli.run(main)
