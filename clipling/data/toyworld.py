"""`demo:toyworld`: pictures of coloured shapes on textured backgrounds of which everything is known, and captions from a grammar.

What a benchmark of photos cannot give is exact here: boxes, masks, relations, false captions that are really false, edited twins,
how strongly classes and backgrounds go together, how many captions are wrong. See `World` for the knobs.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from clipling.data.classes import LabelledImages
from clipling.data.pairs import Pairs
from clipling.data.source import open_pairs
from clipling.data.toyworld_draw import boxes, draw, masks
from clipling.data.toyworld_language import LANGUAGE
from clipling.data.toyworld_scene import SHAPES
from clipling.data.toyworld_world import World, parse_world
from clipling.errors import UserError
from clipling.store import atomic_produce, atomic_write, cache_dir, disk_error, read_json, write_json

__all__ = ["World", "groups_of", "open_world", "open_world_labelled", "parse_world", "record", "write"]

FORMAT = 1  # raise it when the same settings would give other pairs
SHARD = 1000  # pairs of a tar
TEMPLATES = ["a {c}", "a picture of a {c}", "there is a {c}"]


def open_world(world: World, *, caption_column: str | None = None, group: str | None = None) -> Pairs:
    """The pairs of a world, from tars in the cache folder that are made when they are first asked for.

    caption_column: other captions than the true ones: `short`, `long`, `synonyms`, or `lang.tova` for the second language.
    group: a field such as `background` or `class`, to hold out whole groups.

    Extras of a pair, of its picture: `class` (the main object's shape), `label`, `background`, `objects` (shape, colour, size),
    `boxes` (left, top, right, bottom in pixels), `triples` (subject, relation, object, by number). Of its captions: `short`, `long`,
    `synonyms`, `negatives` by kind (minimal changes of the first caption), `lang`. Also `twins` by edit (`caption` is true of the
    picture, `twin_caption` of the edited one), `noisy`, and `repeats` (the key of the pair whose picture it shows).
    """
    text = json.dumps([FORMAT, PIL.__version__, world.settings()], sort_keys=True)
    folder = cache_dir() / f"demo-toyworld-{blake2b(text.encode(), digest_size=8).hexdigest()}"
    write(world, folder)
    pairs = open_pairs(str(folder), caption_column=caption_column, group=group)
    pairs.name = world.spec
    return pairs


def open_world_labelled(world: World) -> tuple[LabelledImages, list[str]]:
    """The pictures of a world with their main object's shape as class, and [P] the names of their backgrounds."""
    pairs = open_world(world)
    labelled = LabelledImages(
        name=pairs.name,
        keys=pairs.keys,
        locations=pairs.locations,
        labels=np.array([extras["label"] for extras in pairs.extras], dtype=np.int64),
        classnames=list(SHAPES),
        templates=list(TEMPLATES),
        hashes=pairs.hashes,
    )
    return labelled, [extras["background"] for extras in pairs.extras]


def groups_of(spec: str, keys: Sequence[str]) -> list[str]:
    """[P] the names of the backgrounds of some pairs of a `demo:toyworld` source, by their keys."""
    world = parse_world(spec.strip())
    return [world.scene(int(key)).background for key in keys]


def write(world: World, folder: Path | str, *, extra_pictures: bool = False) -> Path:
    """Writes a world as webdataset tars that `open_pairs` reads, whole or not at all; a folder that holds it already is left as it is.

    A sample is `.png`, `.json` (see `open_world`) and `.cls`. With `extra_pictures` it also has `.masks.png` (0 where the background
    is seen, k + 1 where object k is) and, for each edit, `.twin-EDIT.png`. Beside the tars are `world.json`, `classnames.txt` and
    `templates.txt`: `open_labelled(folder/"*.tar", classes=..., templates=...)` reads them as labelled pictures.

    Raises UserError when the folder holds anything else, or cannot be written.
    """
    folder = Path(os.path.abspath(Path(folder).expanduser()))
    content = {"format": FORMAT, "world": world.settings(), "extra_pictures": extra_pictures}
    if _holds(folder, content):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".toyworld-", dir=folder.parent) as temporary:
            made = Path(temporary) / "tars"
            _write_tars(world, made, extra_pictures)
            atomic_write(made / "classnames.txt", "\n".join(SHAPES) + "\n")
            atomic_write(made / "templates.txt", "\n".join(TEMPLATES) + "\n")
            write_json(made / "world.json", content)
            try:
                os.rename(made, folder)
            except OSError:
                if not _holds(folder, content):  # otherwise another process was quicker, and made the same
                    raise
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def _holds(folder: Path, content: dict[str, Any]) -> bool:
    """Whether a folder holds this world. Raises UserError when it holds anything else."""
    if (folder / "world.json").is_file():
        if read_json(folder / "world.json") == content:
            return True
        raise UserError(f"{folder} holds a ToyWorld of other settings (see its world.json). Choose another folder, or remove it.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already and is not a ToyWorld. Choose another folder.")
    return False


def _write_tars(world: World, folder: Path, extra_pictures: bool) -> None:
    with tqdm(total=world.pairs, desc=f"drawing {world.spec}", unit="image", delay=2, disable=None) as bar:
        for start in range(0, world.pairs, SHARD):
            rows = range(start, min(start + SHARD, world.pairs))
            atomic_produce(folder / f"{start // SHARD:05d}.tar", lambda path, rows=rows: _write_tar(world, path, rows, extra_pictures))
            bar.update(len(rows))


def _write_tar(world: World, path: Path, rows: range, extra_pictures: bool) -> None:
    """The same bytes every time."""
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in rows:
            for suffix, data in _members(world, i, extra_pictures):
                member = tarfile.TarInfo(f"{world.key(i)}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _members(world: World, i: int, extra_pictures: bool) -> Iterator[tuple[str, bytes]]:
    scene = world.scene(i)
    yield "png", png(draw(scene))
    yield "json", json.dumps(record(world, i), ensure_ascii=False).encode()
    yield "cls", str(scene.label).encode()
    if extra_pictures:
        numbers = np.arange(1, len(scene.objects) + 1, dtype=np.uint8)[:, None, None]
        yield "masks.png", png(Image.fromarray((masks(scene) * numbers).sum(axis=0, dtype=np.uint8)))
        for edit, twin in world.twins(i).items():
            yield f"twin-{edit}.png", png(draw(twin.scene))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def record(world: World, i: int) -> dict[str, Any]:
    """What the `.json` of pair i says."""
    scene, said, origin = world.scene(i), world.captions(i), world.origin(i)
    return {
        "caption": list(said.true),
        "class": SHAPES[scene.label],
        "label": scene.label,
        "background": scene.background,
        "objects": [{"shape": thing.shape, "colour": thing.colour, "size": thing.size} for thing in scene.objects],
        "boxes": [list(box) for box in boxes(scene)],
        "triples": [list(triple) for triple in scene.triples],
        "short": said.short,
        "long": said.long,
        "synonyms": list(said.synonyms),
        "negatives": said.negatives,
        "lang": {LANGUAGE: list(said.second)},
        "twins": {
            edit: {"object": twin.object, "caption": twin.caption, "twin_caption": twin.twin_caption}
            for edit, twin in world.twins(i).items()
        },
        "noisy": world.noisy(i),
        "repeats": world.key(origin) if origin != i else None,
    }
