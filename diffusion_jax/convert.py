"""Makes a checkpoint to sample from of OpenAI's published weights.

    python -m diffusion_jax.convert --kind=adm_64_cond 64x64_diffusion.pt runs/adm_64_cond
    python -m diffusion_jax.convert --kind=glide_base --vocabulary=vocab.bpe.gz base.pt runs/glide_base
    python -m diffusion_jax.convert --kind=glide_clip --vocabulary=bpe_simple_vocab_16e6.txt.gz \\
        clip_image_enc.pt clip_text_enc.pt runs/glide_clip
    python sample.py --checkpoint=runs/glide_base --prompt="an oil painting of a corgi"

The weights are a .pt file as published, read without PyTorch and without running any code in it, or safetensors. The
checkpoint holds them in float32 with the recipe configs/KIND.py, which names the model's sampler, steps and guidance.
"""

import importlib
import pathlib
from collections.abc import Sequence

from absl import flags

from diffusion_jax import cli

# The recipes of published files; openai/guided-diffusion, improved-diffusion and glide-text2im name the files.
KINDS = (
    "adm_64_cond",
    "adm_128_cond",
    "adm_256_cond",
    "adm_256_uncond",
    "adm_512_cond",
    "adm_upsampler_64_256",
    "adm_upsampler_128_512",
    "adm_classifier_64",
    "adm_classifier_128",
    "adm_classifier_256",
    "adm_classifier_512",
    "iddpm_cifar10_uncond",
    "iddpm_imagenet64_uncond",
    "glide_base",
    "glide_base_inpaint",
    "glide_upsample",
    "glide_upsample_inpaint",
    "glide_clip",
)
GUIDES = ("glide_clip", *(kind for kind in KINDS if kind.startswith("adm_classifier")))
KIND = flags.DEFINE_enum("kind", None, KINDS, "Which published file the weights are.")
VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "For GLIDE, from openai/glide-text2im: GPT-2's merges, vocab.bpe.gz; for its CLIP, bpe_simple_vocab_16e6.txt.gz.",
)
flags.adopt_module_key_flags(cli)


def convert(kind: str, weights: Sequence[str], out: str, vocabulary: str | None = None) -> None:
    """Writes the checkpoint.

    Args:
      kind: one of KINDS.
      weights: a file of the original's state_dict; of "glide_clip", the image encoder's and the text encoder's.
      out: a folder without a checkpoint.
      vocabulary: the merges of the tokenizer, which models of text need.

    Raises:
      UserError: a file is missing, or is not what the kind asks for; it lists the keys.
    """
    from diffusion_jax.data import bpe
    from diffusion_jax.errors import UserError
    from diffusion_jax.interop import openai
    from diffusion_jax.training import checkpoint

    config, clip = importlib.import_module(f"configs.{kind}").get_config(), kind == "glide_clip"
    text = clip or config.model.condition == "text"
    if text != (vocabulary is not None):
        raise UserError(
            f"{kind} reads captions: give its --vocabulary. See --help."
            if text
            else f"{kind} reads no captions: leave --vocabulary out."
        )
    if len(weights) != 1 + clip:
        raise UserError(
            f"{kind} is {'two files, the image encoder first' if clip else 'one file'}; got {len(weights)}."
        )
    tokenizer = (bpe.load_clip if clip else bpe.load_glide)(vocabulary) if vocabulary else None
    checkpoint.refuse_old(pathlib.Path(out))
    if clip:
        files = dict(zip(("image_encoder", "text_encoder"), weights, strict=True))
        loaded = openai.load("create_clip_model", files)
        params = dict(loaded.params) | {"logit_scale": loaded.logit_scale}
    else:
        params = openai.load(kind, weights[0]).params
    checkpoint.write_weights(pathlib.Path(out), params, config.to_dict(), tokenizer.to_json() if tokenizer else None)


def main(argv: list[str]) -> None:
    from diffusion_jax.errors import UserError

    if len(argv) < 3:
        raise UserError("give the file of weights and a new folder: --kind=KIND WEIGHTS OUT. See --help.")
    *weights, out = argv[1:]
    convert(KIND.value, weights, out, VOCABULARY.value)
    print(f"wrote {out}; next: python sample.py --{'classifier' if KIND.value in GUIDES else 'checkpoint'}={out}")


if __name__ == "__main__":
    flags.mark_flag_as_required("kind")
    cli.run(main)
