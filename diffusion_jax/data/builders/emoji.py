"""Captioned emoji in ten drawing styles, rendered from vectors at any size, over white.

Splits: "train"; "validation", a tenth of the concepts, never in train in any style or skin tone; "test", a family of three styles
that share drawings (the fluent ones), never in train at all. The label is the style.
"""

import dataclasses
import hashlib
import importlib.util
import io
import json
import pathlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import images
from diffusion_jax.data.builders.packages import Package, npm
from diffusion_jax.errors import UserError

LICENCES = {"permissive": ("Apache-2.0", "MIT"), "attribution": ("Apache-2.0", "MIT", "CC-BY-4.0")}
LICENCES["all"] = (*LICENCES["attribution"], "CC-BY-SA-4.0")
# Unicode's groups by emojibase's numbers; 2, parts of other emoji, and a few without a number are of none.
GROUPS = {
    0: "smileys",
    1: "people",
    3: "animals",
    4: "food",
    5: "travel",
    6: "activities",
    7: "objects",
    8: "symbols",
    9: "flags",
}
HELD_OUT = 10  # one concept of so many


class Style(NamedTuple):
    """A set of drawings and the words that captions name it by."""

    name: str
    phrase: str
    package: Package


def _style(name: str, phrase: str, version: str, licence: str, sha256: str, package: str | None = None) -> Style:
    return Style(name, phrase, npm(package or f"@iconify-json/{name}", version, sha256, licence))


_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
# fmt: off
# ruff: noqa: E501 (checksums)
STYLES = (
    _style("noto", "in the style of Noto", "1.2.9", "Apache-2.0", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    _style("noto-v1", "as a blob", "1.2.5", "Apache-2.0", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    _style("fxemoji", "in the style of Firefox", "1.2.2", "Apache-2.0", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    _style("fluent-emoji", "in glossy gradients", "1.2.7", "MIT", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    _style("fluent-emoji-flat", "in flat colours", "1.2.6", "MIT", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    _style("fluent-emoji-3d", "as a 3d rendering", "1.1.0", "MIT", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
           "@lobehub/fluent-emoji-3d"),
    _style("twemoji", "in the style of Twitter", "1.2.5", "CC-BY-4.0", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    _style("emojione", "in the style of EmojiOne", "1.2.3", "CC-BY-4.0", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    _style("openmoji", "as a line drawing", "1.2.29", "CC-BY-SA-4.0", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"),
    _style("emojione-v1", "in the old style of EmojiOne", "1.2.3", "CC-BY-SA-4.0", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3"),
)
# fmt: on
CAPTIONS = npm("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT")


@dataclasses.dataclass(kw_only=True)
class EmojiConfig(tfds.core.BuilderConfig):
    """A size, the licences that are allowed, and which of Unicode's groups are drawn."""

    image_size: int = 64
    licences: str = "permissive"
    groups: tuple[str, ...] = ()  # of GROUPS; all where there is none


def make_config(image_size: int, licences: str, groups: Sequence[str] = ()) -> EmojiConfig:
    """The config named such as "64px_permissive", or "64px_permissive_smileys_animals" of two groups in GROUPS' order."""
    ordered = tuple(name for name in GROUPS.values() if name in groups)
    return EmojiConfig(
        name="_".join((f"{image_size}px", licences, *ordered)),
        image_size=image_size,
        licences=licences,
        groups=ordered,
    )


def styles(licences: str) -> list[Style]:
    """The styles whose licence is allowed."""
    return [style for style in STYLES if style.package.licence in LICENCES[licences]]


class Concept(NamedTuple):
    """What an emoji shows: its name, keywords, the code of the one that it is a skin tone of (its own, of most), its group."""

    label: str
    tags: tuple[str, ...]
    base: str
    group: str | None = None


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Emoji with captions such as "a red apple, in the style of Noto"."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    archives: ClassVar[list[pathlib.Path]] = []  # set before it is prepared: CAPTIONS, then the styles in their order

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji in up to ten drawing styles, with the short names and keywords of Unicode's CLDR.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
                    "caption": tfds.features.Sequence(tfds.features.Text()),
                    "label": tfds.features.ClassLabel(names=[style.name for style in STYLES]),
                }
            ),
            license=", ".join(LICENCES[self.builder_config.licences]),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        concepts = read_concepts(self.archives[0])
        for style, archive in zip(styles(config.licences), self.archives[1:], strict=True):
            if (split == "test") != style.name.startswith("fluent"):
                continue
            for code, draw in _drawings(archive, config.image_size, concepts):
                concept = concepts.get(code)
                if concept is None or (split != "test" and split_of(concept.base) != split):
                    continue
                if config.groups and concept.group not in config.groups:
                    continue
                yield (
                    f"{style.name}/{code}",
                    {
                        "image": draw(),
                        "caption": captions(concept, style.phrase),
                        "label": style.name,
                    },
                )


def check_installed() -> None:
    """Raises UserError if what draws the vectors is not installed."""
    if importlib.util.find_spec("resvg_py") is None:
        raise UserError("emoji are drawn by resvg-py: pip install -e '.[data]', and run this again.")


def split_of(base: str) -> str:
    """Of a concept, by the hash of its code: the same for every style and skin tone."""
    return "train" if int(hashlib.sha256(base.encode()).hexdigest(), 16) % HELD_OUT else "validation"


def captions(concept: Concept, phrase: str) -> list[str]:
    """A caption without keywords, with the first and with the first two."""
    article = "an" if concept.label[:1].lower() in "aeiou" else "a"
    return [
        ", ".join((f"{article} {concept.label}", *concept.tags[:count], phrase))
        for count in range(min(len(concept.tags), 2) + 1)
    ]


def read_concepts(archive: pathlib.Path) -> dict[str, Concept]:
    """Code points -> concept, from emojibase-data's English."""
    with tarfile.open(archive) as tar:
        rows = json.loads(_read(tar, "package/en/data.json"))
    concepts = {}
    for row in rows:
        for variant in (row, *row.get("skins", ())):
            tags = tuple(tag for tag in row.get("tags", ()) if not _says(variant["label"], tag))
            group = GROUPS.get(row.get("group"))
            concepts[_code(variant["hexcode"])] = Concept(variant["label"], tags, _code(row["hexcode"]), group)
    return concepts


def _drawings(archive: pathlib.Path, size: int, concepts: dict[str, Concept]) -> Iterator[tuple[str, Any]]:
    """(code points, function that draws) of a style's package: Iconify's vectors, or pictures named by code points."""
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        if "package/icons.json" not in names:
            files = {_code(pathlib.PurePosixPath(name).stem): name for name in sorted(names) if name.endswith(".webp")}
            for code, name in files.items():  # some are there with and without the selector
                data = _read(tar, name)
                yield code, lambda data=data: images.centre_crop(images.decode(data), size)
            return
        icons, chars = (json.loads(_read(tar, f"package/{name}.json")) for name in ("icons", "chars"))
    aliases, seen = icons.get("aliases", {}), set()
    if not chars:  # such a package names its icons by the words alone
        chars = {
            code: slug
            for code, concept in concepts.items()
            if (slug := _slug(concept.label)) in icons["icons"].keys() | aliases
        }
    for char, name in sorted(chars.items()):
        icon = icons["icons"].get(aliases.get(name, {}).get("parent", name))
        if icon is None or (code := _code(char)) in seen:
            continue
        seen.add(code)
        left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = f'<svg {_NAMESPACES} viewBox="{left} {top} {width} {height}">'
        yield code, lambda svg=f"{svg}{icon['body']}</svg>": render(svg, size)


def render(svg: str, size: int) -> np.ndarray:
    """An SVG in the middle of a white square of `size` pixels per side, uint8 [size, size, 3]."""
    import resvg_py

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)))).convert(
        "RGBA"
    )
    square = Image.new("RGBA", (size, size), "white")
    square.alpha_composite(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return np.array(square.convert("RGB"))


def _says(label: str, tag: str) -> bool:
    """Whether a keyword is among a name's words."""
    return bool(re.search(rf"\b{re.escape(tag)}\b", label))


def _slug(label: str) -> str:
    """As Iconify writes a name: "man: light skin tone" is man-light-skin-tone."""
    return re.sub("[^a-z0-9]+", "-", label.lower()).strip("-")


def _code(text: str) -> str:
    """Code points in lower case and without the variation selector, which packages write or leave out."""
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    assert member is not None, "the checksum was right"
    return member.read()
