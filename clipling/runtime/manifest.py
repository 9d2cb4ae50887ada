"""`clipling.json`: what an exported folder holds and how it is run, read and written without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipling.errors import UserError, near
from clipling.store import read_json, write_json

NAME = "clipling.json"
FORMAT = 1
PRECISIONS = ("fp32", "int8", "fp16")
CLEANING = ("lower", "canonicalize", "whitespace", "none")
LARGEST_SCALE = 10_000  # CLIP's own is clamped at 100
RESIZE_MODES = ("squash", "shortest", "longest")


@dataclass(frozen=True)
class ImageSide:
    """The image tower. The graph itself resizes and normalises; the settings say what it does.

    files: the graph's file of each precision that is there.
    """

    size: int
    mean: list[float]
    std: list[float]
    interpolation: str
    resize_mode: str
    fill_color: int
    files: dict[str, str]


@dataclass(frozen=True)
class TextSide:
    """The text tower and its tokens.

    clean: what is done to a text before `tokenizer` (a file of the Hugging Face `tokenizers` library) sees it, see cleaning.py.
    start, end: the ids that this tokenizer itself puts around every text, None where it puts none. pad: the id that fills rows.
    fixed_length: rows must be padded to `context_length`, because the tower attends to padding.
    """

    context_length: int
    tokenizer: str
    clean: str
    start: int | None
    end: int | None
    pad: int
    fixed_length: bool
    files: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """An exported dual encoder. logit_scale is the multiplier of cosines, not its logarithm."""

    name: str
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    image: ImageSide
    text: TextSide
    source: dict[str, Any]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, dataclasses.asdict(self))

    def with_file(self, side: str, precision: str, name: str) -> Manifest:
        """The manifest with one more graph: side `image` or `text`, the file's name in the folder."""
        changed = getattr(self, side)
        changed = dataclasses.replace(changed, files={**changed.files, precision: name})
        return dataclasses.replace(self, **{side: changed})


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of an exported folder, checked: UserError names what is missing, of a wrong kind or unknown."""
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        what = f"holds no {NAME}, so it is no exported model" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {what}. Make one with: clipling export MODEL --out DIR")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        given = content.get("format") if isinstance(content, dict) else content
        raise UserError(f"{path} has format {given!r}; this version of clipling reads format {FORMAT}. Export the model again, or update")
    sides = {"image": _read(ImageSide, content.get("image"), path, "image."), "text": _read(TextSide, content.get("text"), path, "text.")}
    manifest = _read(Manifest, {**content, **sides}, path, "")
    _check(manifest, folder, path)
    return manifest


def _read(kind: type, content: Any, path: Path, where: str) -> Any:
    if not isinstance(content, dict):
        raise UserError(f"{path}: {where.rstrip('.')} must be a mapping, not {content!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in content:
        if key not in fields:
            raise UserError(f"{path}: unknown key {where}{key}. {near(key, fields)}")
    for name, field in fields.items():
        if name not in content:
            raise UserError(f"{path} lacks {where}{name}")
        if not _fits(field.type, content[name]):
            raise UserError(f"{path}: {where}{name} must be {field.type}, not {content[name]!r}")
    return kind(**content)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KINDS = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": _number,
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "None": lambda v: v is None,
    "list[float]": lambda v: isinstance(v, list) and all(map(_number, v)),
    "dict[str, str]": lambda v: isinstance(v, dict) and all(isinstance(part, str) for part in [*v, *v.values()]),
    "dict[str, Any]": lambda v: isinstance(v, Mapping),
    "ImageSide": lambda v: isinstance(v, ImageSide),
    "TextSide": lambda v: isinstance(v, TextSide),
}


def _fits(annotation: str, value: Any) -> bool:
    return any(_KINDS[part](value) for part in annotation.split(" | "))


def _check(manifest: Manifest, folder: Path, path: Path) -> None:
    """What the kinds alone do not say."""
    image, text = manifest.image, manifest.text
    for where, value, allowed in (
        ("image.resize_mode", image.resize_mode, RESIZE_MODES),
        ("text.clean", text.clean, CLEANING),
        *((f"{side}.files", name, PRECISIONS) for side in ("image", "text") for name in getattr(manifest, side).files),
    ):
        if value not in allowed:
            raise UserError(f"{path}: {where} has {value!r}. {near(value, allowed)}")
    for where, value, most in (
        ("embed_dim", manifest.embed_dim, 65_536),
        ("image.size", image.size, 4_096),
        ("text.context_length", text.context_length, 8_192),
    ):
        if not 1 <= value <= most:
            raise UserError(f"{path}: {where} is {value}; expected 1 to {most:,}")
    if not 0 < manifest.logit_scale <= LARGEST_SCALE:
        raise UserError(
            f"{path}: logit_scale is {manifest.logit_scale}; expected a multiplier of cosines above 0, at most {LARGEST_SCALE:,}"
        )
    if text.pad < 0:
        raise UserError(f"{path}: text.pad is {text.pad}; expected a token id")
    if len(image.mean) != 3 or len(image.std) != 3:
        raise UserError(f"{path}: image.mean and image.std must have 3 numbers each")
    for name in (text.tokenizer, *image.files.values(), *text.files.values()):
        if Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{path} names the file {name!r}, which is not a plain name inside of the folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which its {NAME} names. Copy the whole folder, or export the model again")
