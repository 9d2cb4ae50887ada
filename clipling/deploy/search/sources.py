"""What is there to be indexed: the pictures of a folder at any depth, or of tars."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clipling.data.folder import walk
from clipling.data.reading import IMAGE_SUFFIXES, Options, clean_key
from clipling.data.shards import read_shards
from clipling.data.source import resolve
from clipling.deploy.search.catalogue import File
from clipling.errors import UserError

# A file that changed so short ago (ns) may change again without its time moving: it is looked at again next time.
_FRESH = 2_000_000_000


@dataclass
class Found:
    """What a look at the source found.

    root: the folder in which every path lies, absolute and without links. files: sorted by key. refused: (where, why)
    of what is there and is not read.
    """

    root: Path
    files: list[File] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


def look(images: str, out: Path) -> Found:
    """The pictures of `images`: a folder (all at any depth), or `.tar` files of one folder (`photos-{00..09}.tar`).

    A folder that holds tars and no pictures is read as those tars. Links are followed as long as they stay inside. `out`,
    the folder of the index, is passed over.

    Raises:
        UserError: nothing there, no picture in it, or another kind of source.
    """
    folder = Path(os.path.abspath(Path(images).expanduser()))
    if folder.is_dir():
        found = _folder(folder, Path(os.path.realpath(out)))
        tars = sorted(folder.glob("*.tar"))
        if not found.files and tars:
            return _tars(tars)
        if not found.files:
            seen = f" {len(found.refused)} links lead out of it and are not followed." if found.refused else ""
            raise UserError(
                f"{folder} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}).{seen} An index that is there is left as it is."
            )
        return found
    kind, paths = resolve(images)
    if kind != "tar":
        raise UserError(
            f"{images}: search indexes a folder of pictures or .tar files, not a source of the kind {kind!r}. "
            "Name the folder that holds the pictures."
        )
    return _tars(paths)


def _folder(folder: Path, out: Path) -> Found:
    root = Path(os.path.realpath(folder))
    found, fresh = Found(root), time.time_ns() - _FRESH

    def follows(path: str) -> bool:
        inside = _inside(path, root)
        if not inside:
            found.refused.append((clean_key(os.path.relpath(path, root)), "the link leads out of the indexed folder"))
        return inside

    for base, names in walk(root, follows):
        if Path(base).is_relative_to(out) and out != root:
            continue
        for name in names:
            if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                continue
            path = os.path.join(base, name)
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            if os.path.islink(path) and not _inside(path, root):
                found.refused.append((clean_key(relative), "the link leads out of the indexed folder"))
                continue
            try:
                state = os.stat(path)
            except OSError as error:
                found.refused.append((clean_key(relative), f"cannot be read: {error.strerror or error}"))
                continue
            changed = state.st_mtime_ns if state.st_mtime_ns < fresh else -1
            found.files.append(File(clean_key(relative), relative, 0, -1, state.st_size, changed))
    found.files.sort(key=lambda file: file.key)
    return found


def _inside(path: str, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


def _tars(paths: Iterable[Path]) -> Found:
    paths = [Path(os.path.realpath(path)) for path in paths]
    root = paths[0].parent
    if any(path.parent != root for path in paths):
        raise UserError("the tars to be indexed lie in several folders: put them into one, or make an index of each folder")
    found, fresh = Found(root), time.time_ns() - _FRESH
    for path, reading in zip(paths, read_shards(paths, Options(captions_optional=True)), strict=True):
        state = path.stat()
        changed = state.st_mtime_ns if state.st_mtime_ns < fresh else -1
        for row in reading.rows:
            key = f"{clean_key(path.name)}/{row.key}"
            found.files.append(File(key, path.name, row.location.offset, row.location.size, state.st_size, changed))
        found.refused += [(where, detail) for _, where, detail in reading.problems]
    if not found.files:
        raise UserError(f"{paths[0]} holds no pictures (.jpg, .jpeg, .png or .webp)")
    found.files.sort(key=lambda file: file.key)
    return found


class Changed(OSError):
    """A file is not what it was when it was indexed, or has gone, or leads out of the folder."""


def read(root: Path, file: File) -> bytes:
    """The bytes of a file of the index. Raises Changed, also where the path leads out of `root` by now."""
    real = Path(os.path.realpath(root / file.path))
    if not real.is_relative_to(root):
        raise Changed(f"{file.key} leads out of the indexed folder")
    try:
        # Not a pipe or a device that took the file's place: opening one could wait for ever.
        if not real.is_file():
            raise Changed(f"{file.key} is no longer a file")
        with open(real, "rb") as opened:
            if os.fstat(opened.fileno()).st_size != file.length:
                raise Changed(f"{file.key} has changed since it was indexed")
            opened.seek(file.start)
            data = opened.read(file.length if file.size < 0 else file.size)
    except FileNotFoundError as error:
        raise Changed(f"{file.key} is no longer there") from error
    if len(data) != (file.length if file.size < 0 else file.size):
        raise Changed(f"{file.key} has changed since it was indexed")
    return data
