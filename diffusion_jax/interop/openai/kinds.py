"""OpenAI's constructors, in their own names and defaults, and its published files -> our modules."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.errors import UserError, unknown_name
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.text import TextTransformer
from diffusion_jax.models.unet import UNet

Options = Mapping[str, Any]
_REQUIRED = object()


class Blueprint(NamedTuple):
    """What a kind and its options come to.

    module: our network.
    image_shape: (H, W, C) of x; the smallest that halves often enough where the network takes every size.
    unused: names and shapes of the original's parameters that its network never reads; they are kept for saving.
    """

    module: UNet | Classifier
    image_shape: tuple[int, int, int]
    unused: dict[str, tuple[int, ...]]


# ---- The originals' arguments and defaults ------------------------------------------------------------------------------
_UNET = {
    **dict.fromkeys(
        ("in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions"), _REQUIRED
    ),
    "dropout": 0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "use_fp16": False,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
}
_ADM = {"image_size": None, **_UNET, "use_new_attention_order": False}  # iDDPM's has no image_size
_ENCODER = {**_ADM, "image_size": _REQUIRED, "pool": "adaptive"}
del _ENCODER["num_classes"]
_TEXT2IM = {
    **dict.fromkeys(("text_ctx", "xf_width", "xf_layers", "xf_heads", "xf_final_ln"), _REQUIRED),
    "tokenizer": None,  # the original asks it for n_vocab alone
    "n_vocab": 50257,
    "cache_text_emb": False,
    "xf_ar": 0.0,
    "xf_padding": False,
    "share_unemb": False,
    **_UNET,
}
_CREATE_MODEL = {
    **dict.fromkeys(("image_size", "num_channels", "num_res_blocks"), _REQUIRED),
    "channel_mult": "",
    "learn_sigma": False,
    "class_cond": False,
    "use_checkpoint": False,
    "attention_resolutions": "16",
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "dropout": 0,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "num_classes": 1000,  # the original's global NUM_CLASSES
}
_CREATE_CLASSIFIER = {
    "image_size": 64,
    "classifier_use_fp16": False,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
    "num_classes": 1000,
}
_SR_CREATE_MODEL = {"large_size": _REQUIRED, "small_size": None, **_CREATE_MODEL}
for _name in ("image_size", "channel_mult", "use_new_attention_order"):
    del _SR_CREATE_MODEL[_name]
_MULTS_BY_SIZE = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),  # improved-diffusion's; guided-diffusion has no such size
}
_SR_MULTS_BY_SIZE = {**_MULTS_BY_SIZE, 512: (1, 1, 2, 2, 4, 4)}


# ---- Constructors -> modules --------------------------------------------------------------------------------------------
def _unet(o: Options, **more: Any) -> Blueprint:
    # The original may also be given fewer heads on the way up; -1 is as many.
    up = None if o["num_heads_upsample"] == -1 else o["num_heads_upsample"]
    fields = {"num_heads_up": up, "num_classes": o["num_classes"], **more}
    side = 2 ** (len(o["channel_mult"]) - 1)
    return Blueprint(UNet(**_trunk(o), **fields), (side, side, o["in_channels"]), {})


def _encoder(o: Options) -> Blueprint:
    module = Classifier(**_trunk(o), pool=o["pool"])
    return Blueprint(module, (o["image_size"], o["image_size"], o["in_channels"]), {})


def _text2im(o: Options, **more: Any) -> Blueprint:
    text, unused = None, {}
    if o["num_classes"] is not None:  # the original has the table but adds the caption in its place
        unused["label_emb.weight"] = (o["num_classes"], 4 * o["model_channels"])
    if o["xf_width"]:
        text = TextTransformer(
            vocab_size=o["n_vocab"],
            context_length=o["text_ctx"],
            width=o["xf_width"],
            num_layers=o["xf_layers"],
            num_heads=o["xf_heads"],
            padding=bool(o["xf_padding"]),
            final_norm=bool(o["xf_final_ln"]),
        )
        if o["xf_ar"]:  # an autoregressive head, for training alone
            unused |= {"unemb.weight": (o["n_vocab"], o["xf_width"]), "unemb.bias": (o["n_vocab"],)}
    unet = _unet({**o, "num_classes": None}, text=text, **more)
    return unet._replace(unused=unused)


def _trunk(o: Options) -> dict[str, Any]:
    """The flags that our U-Net and classifier share. use_fp16 says how the original computes; here a dtype does."""
    if o["dims"] != 2:
        raise UserError(f"dims={o['dims']}: only images have a network here. Set dims=2.")
    return {
        "out_channels": o["out_channels"],
        "model_channels": o["model_channels"],
        "channel_mults": tuple(o["channel_mult"]),
        "num_res_blocks": o["num_res_blocks"],
        "attention_factors": tuple(o["attention_resolutions"]),
        "num_heads": o["num_heads"],
        "num_head_channels": None if o["num_head_channels"] == -1 else o["num_head_channels"],
        "qkv_order": "new" if o.get("use_new_attention_order") else "legacy",
        "adaptive_norm": bool(o["use_scale_shift_norm"]),
        "resblock_updown": bool(o["resblock_updown"]),
        "resample_conv": bool(o["conv_resample"]),
        "dropout": float(o["dropout"]),
        "remat": "full" if o["use_checkpoint"] else "none",
    }


def _create_model(o: Options) -> Blueprint:
    return _unet(_by_flags(o, o["image_size"], _MULTS_BY_SIZE, _ADM))


def _sr_create_model(o: Options) -> Blueprint:
    return _unet(_by_flags({"channel_mult": "", **o}, o["large_size"], _SR_MULTS_BY_SIZE, _ADM), low_res=True)


def _create_classifier(o: Options) -> Blueprint:
    short = {name.removeprefix("classifier_"): value for name, value in o.items()}
    short |= {
        "num_channels": short["width"],
        "num_res_blocks": short["depth"],
        "num_head_channels": 64,
        "channel_mult": "",
    }
    options = _by_flags(short, o["image_size"], _MULTS_BY_SIZE, _ENCODER)
    return _encoder({**options, "out_channels": o["num_classes"]})


def _by_flags(o: Options, size: int, mults_by_size: Mapping[int, tuple], defaults: Options) -> dict[str, Any]:
    """A constructor's options from the flags of a script, which tell resolutions in pixels and leave the widths to the size."""
    mults = o["channel_mult"]
    if isinstance(mults, str) and mults:
        mults = [float(mult) for mult in mults.split(",")]
    if not mults and size not in mults_by_size:
        raise UserError(f"image size {size}: the original has widths for {sorted(mults_by_size)}. Set channel_mult.")
    resolutions = o["attention_resolutions"]
    resolutions = resolutions.split(",") if isinstance(resolutions, str) else resolutions
    return {
        **defaults,
        **{name: value for name, value in o.items() if name in defaults},
        "image_size": size,
        "in_channels": 3,
        "out_channels": 6 if o.get("learn_sigma") else 3,
        "model_channels": o["num_channels"],
        "channel_mult": tuple(mults) if mults else mults_by_size[size],
        "attention_resolutions": [size // int(resolution) for resolution in resolutions],
        "num_classes": o["num_classes"] if o.get("class_cond") else None,
    }


_CONSTRUCTORS = {
    "UNetModel": (_ADM, _unet),
    "SuperResModel": (_ADM, lambda o: _unet(o, low_res=True)),
    "EncoderUNetModel": (_ENCODER, _encoder),
    "Text2ImUNet": (_TEXT2IM, _text2im),
    "SuperResText2ImUNet": (_TEXT2IM, lambda o: _text2im(o, low_res=True)),
    "InpaintText2ImUNet": (_TEXT2IM, lambda o: _text2im(o, inpaint=True)),
    "SuperResInpaintText2ImUNet": (_TEXT2IM, lambda o: _text2im(o, low_res=True, inpaint=True)),
    "create_model": (_CREATE_MODEL, _create_model),
    "sr_create_model": (_SR_CREATE_MODEL, _sr_create_model),
    "create_classifier": (_CREATE_CLASSIFIER, _create_classifier),
}
_CONSTRUCTORS["SuperResInpaintText2ImUnet"] = _CONSTRUCTORS["SuperResInpaintText2ImUNet"]  # the original's spelling


# ---- Published files: the flags of the originals' READMEs and notebooks -------------------------------------------------
_ADM_FLAGS = {
    "num_channels": 256,
    "num_res_blocks": 2,
    "learn_sigma": True,
    "class_cond": True,
    "attention_resolutions": "32,16,8",
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
_SR_FLAGS = {**_ADM_FLAGS, "num_channels": 192}
_IDDPM_FLAGS = {
    "num_channels": 128,
    "num_res_blocks": 3,
    "learn_sigma": True,
    "attention_resolutions": "16,8",
    "num_heads": 4,
    "use_scale_shift_norm": True,
}
_GLIDE_OPTIONS = {
    "text_ctx": 128,
    "xf_width": 512,
    "xf_layers": 16,
    "xf_heads": 8,
    "xf_final_ln": True,
    "xf_padding": True,
    "in_channels": 3,
    "model_channels": 192,
    "out_channels": 6,
    "num_res_blocks": 3,
    "attention_resolutions": (2, 4, 8),
    "dropout": 0.1,
    "channel_mult": (1, 2, 3, 4),
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
_GLIDE_UP_OPTIONS = {
    **_GLIDE_OPTIONS,
    "num_res_blocks": 2,
    "attention_resolutions": (8, 16, 32),
    "channel_mult": (1, 1, 2, 2, 4, 4),
}
_ADM_64 = {"num_channels": 192, "num_res_blocks": 3, "dropout": 0.1, "use_new_attention_order": True}
PUBLISHED = {
    "adm_64_cond": ("create_model", {**_ADM_FLAGS, **_ADM_64, "image_size": 64}),
    "adm_128_cond": ("create_model", {**_ADM_FLAGS, "image_size": 128, "num_heads": 4, "num_head_channels": -1}),
    "adm_256_cond": ("create_model", {**_ADM_FLAGS, "image_size": 256}),
    "adm_256_uncond": ("create_model", {**_ADM_FLAGS, "image_size": 256, "class_cond": False}),
    "adm_512_cond": ("create_model", {**_ADM_FLAGS, "image_size": 512}),
    "adm_classifier_64": ("create_classifier", {"image_size": 64, "classifier_depth": 4}),
    "adm_classifier_128": ("create_classifier", {"image_size": 128}),
    "adm_classifier_256": ("create_classifier", {"image_size": 256}),
    "adm_classifier_512": ("create_classifier", {"image_size": 512}),
    "adm_upsampler_64_256": (
        "sr_create_model",
        {**_SR_FLAGS, "large_size": 256, "small_size": 64, "num_heads": 4, "num_head_channels": -1},
    ),
    "adm_upsampler_128_512": (
        "sr_create_model",
        {**_SR_FLAGS, "large_size": 512, "small_size": 128, "attention_resolutions": "32,16"},
    ),
    "iddpm_cifar10_uncond": ("create_model", {**_IDDPM_FLAGS, "image_size": 32, "dropout": 0.3}),
    "iddpm_imagenet64_uncond": ("create_model", {**_IDDPM_FLAGS, "image_size": 64}),
    "glide_base": ("Text2ImUNet", _GLIDE_OPTIONS),
    "glide_base_inpaint": ("InpaintText2ImUNet", _GLIDE_OPTIONS),
    "glide_upsample": ("SuperResText2ImUNet", _GLIDE_UP_OPTIONS),
    "glide_upsample_inpaint": ("SuperResInpaintText2ImUNet", _GLIDE_UP_OPTIONS),
}
NAMES = (*_CONSTRUCTORS, *PUBLISHED)


def complete(kind: str, options: Options | None) -> tuple[str, dict[str, Any]]:
    """The constructor behind a kind, and all of its arguments: those given, the published file's, the original's defaults.

    >>> complete("adm_64_cond", {"dropout": 0.0})[1]["num_res_blocks"]
    3

    Raises:
      UserError: an option is unknown or lacking.
    """
    constructor, published = PUBLISHED.get(kind, (kind, {}))
    defaults, _ = _CONSTRUCTORS[constructor]
    options = {**published, **(options or {})}
    for name in options:
        if name not in defaults:
            raise unknown_name(f"option of {constructor}", name, defaults)
    complete = {**defaults, **options}
    if lacking := [name for name, value in complete.items() if value is _REQUIRED]:
        raise UserError(f"{constructor} needs the options {', '.join(lacking)}.")
    return constructor, complete


def blueprint(kind: str, options: Options | None) -> Blueprint:
    """Our module for a kind and the original's options. Raises UserError as `complete`."""
    constructor, options = complete(kind, options)
    return _CONSTRUCTORS[constructor][1](options)
