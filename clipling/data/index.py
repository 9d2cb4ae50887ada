"""The cached index of a source: rows, image hashes and problems, valid as long as no file of it changed."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from tqdm import tqdm

from clipling.data.images import ImageError, verify
from clipling.data.pairs import Location, Row, hash_bytes
from clipling.data.problems import Problem
from clipling.data.reading import Reading, combine
from clipling.errors import UserError
from clipling.store import atomic_write, cache_dir

_VERSION = 3  # of what is stored and of what counts as a good image; a new one makes all indexes again
_CHUNK = 4096


@dataclass
class Index:
    """The usable rows of a source, in order, with unique keys.

    Attributes:
        rows: [P].
        hashes: [P] of the image bytes.
        problems: what was left out.
        stamps: (path, size, time of change) of all files that this depends on.
    """

    rows: list[Row]
    hashes: list[str]
    problems: list[Problem]
    stamps: list[tuple[str, int, int]] = field(default_factory=list)


def kept(path: Path, read: Callable[[], list[Reading]], name: str) -> Index:
    """The index at `path` where it still holds; otherwise made of what `read` returns, and kept there."""
    index = load(path)
    if index is None:
        readings = read()
        rows, problems = combine(readings)
        known = {place: found for reading in readings for place, found in reading.known.items()}
        index = examine(rows, problems, name, known)
        index.stamps = stamps_of((file for reading in readings for file in reading.inputs), rows)
        save(path, index)
    return index


def examine(rows: Sequence[Row], problems: Iterable[Problem], name: str, known: Mapping[Location, str] | None = None) -> Index:
    """Reads, hashes and decodes every image once; rows whose image is missing or broken become problems.

    known: hashes of images that were looked at when they were packed, and are not looked at again.
    """
    known = known or {}
    index = Index([], [], list(problems))
    with (
        ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 1)) as pool,
        # Only on a terminal, and only where it takes long enough to be asked about.
        tqdm(total=len(rows), desc=f"looking at {name}", unit="image", delay=2, disable=None) as bar,
    ):
        for start in range(0, len(rows), _CHUNK):  # in parts: a task for each of a million rows would fill the memory
            part = rows[start : start + _CHUNK]
            for row, found in zip(part, pool.map(lambda row: known.get(row.location) or _look(row), part)):
                if isinstance(found, Problem):
                    index.problems.append(found)
                else:
                    index.rows.append(row)
                    index.hashes.append(found)
            bar.update(len(part))
    return index


def _look(row: Row) -> str | Problem:
    try:
        if os.path.exists(row.location.path) and not os.path.isfile(row.location.path):  # reading a pipe would wait for ever
            return Problem("unreadable image", row.key, f"{row.location.path} is no plain file")
        data = row.location.read()
        verify(data)
        return hash_bytes(data)
    except (FileNotFoundError, NotADirectoryError):
        return Problem("missing image", row.key, f"{row.location.path} does not exist")
    except ImageError as error:
        return Problem("broken image", row.key, f"{row.key}: {error}")
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be a path
        return Problem("unreadable image", row.key, str(error))


def stamp(path: str) -> tuple[str, int, int]:
    """(path, size, time of change in ns). Folders have no size, what is missing has neither."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return path, -1, -1
    return path, -2 if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_mtime_ns


def stamps_of(inputs: Iterable[str], rows: Iterable[Row]) -> list[tuple[str, int, int]]:
    """The stamps of the inputs and of all image files, each once."""
    paths = dict.fromkeys([*inputs, *(row.location.path for row in rows)])
    return [stamp(path) for path in paths]


def index_path(*what: object) -> Path:
    """The cache file of the index of a spec read with certain options."""
    text = json.dumps([_VERSION, *what], default=str)
    return cache_dir() / "index" / f"{blake2b(text.encode(), digest_size=16).hexdigest()}.json"


def load(path: Path) -> Index | None:
    """The index at `path`; None when there is none, it is damaged, or a file that it depends on changed."""
    try:
        content = json.loads(path.read_bytes())
        stamps = [tuple(known) for known in content["stamps"]]
        if any(stamp(known[0]) != known for known in stamps):
            return None
        rows = [
            Row(key, captions, Location(sys.intern(file), offset, size), group, extras, part)
            for key, captions, file, offset, size, group, extras, part in content["rows"]
        ]
        return Index(rows, content["hashes"], [Problem(*problem) for problem in content["problems"]], stamps)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(path: Path, index: Index) -> None:
    """Writes the index; a cache that cannot be written costs time the next time and nothing else."""
    rows = [
        (row.key, row.captions, row.location.path, row.location.offset, row.location.size, row.group, row.extras, row.part)
        for row in index.rows
    ]
    content = {"stamps": index.stamps, "rows": rows, "hashes": index.hashes, "problems": index.problems}
    try:
        atomic_write(path, json.dumps(content, separators=(",", ":")))
    except (OSError, UserError) as error:
        print(f"warning: the index is not kept: {error}", file=sys.stderr)
