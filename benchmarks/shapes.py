"""The U-Nets that are timed beside PyTorch's: ADM's, without a condition, on pictures of three channels."""

from typing import Any

# image: pixels per side; channels: of the first level; mults: of them per level; blocks: residual ones per level;
# attention_factors: of the halvings at whose feature maps there is attention; head: channels of each.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image": 16,
        "batch": 2,
        "channels": 32,
        "mults": [1, 2],
        "blocks": 1,
        "attention_factors": [2],
        "head": 16,
    },
    "small": {
        "image": 32,
        "batch": 16,
        "channels": 64,
        "mults": [1, 2, 2],
        "blocks": 2,
        "attention_factors": [2, 4],
        "head": 32,
    },
    "large": {
        "image": 64,
        "batch": 64,
        "channels": 192,
        "mults": [1, 2, 3, 4],
        "blocks": 3,
        "attention_factors": [2, 4, 8],
        "head": 64,
    },
}
SIZES_HELP = "tiny: to see that all runs; small: two cores can do it; large: ADM at 64 pixels, for a GPU."


def recipe_flags(shape: dict[str, Any]) -> list[str]:
    """train.py's flags for a run of this shape, on scenes without their captions."""
    fields = {
        "data.image_size": shape["image"],
        "data.num_train_images": 4 * shape["batch"],
        "model.condition": "none",
        "model.channels": shape["channels"],
        "model.channel_mults": ",".join(map(str, shape["mults"])),
        "model.num_res_blocks": shape["blocks"],
        "model.attention_resolutions": ",".join(str(shape["image"] // f) for f in shape["attention_factors"]),
        "model.head_channels": shape["head"],
        "train.batch_size": shape["batch"],
    }
    return ["--config=configs/default.py", *(f"--config.{name}={value}" for name, value in fields.items())]
