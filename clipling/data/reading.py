"""What the readers share: their result, where a written path leads, columns by name, rows that become one pair."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from clipling.data.pairs import Location, Row, clean_caption
from clipling.data.problems import Problem, Problems
from clipling.errors import UserError, near

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass
class Reading:
    """What one reader found in one file or folder.

    Attributes:
        origin: the path of that file or folder; its last parts go before keys that several origins share.
        rows: in the order of the source.
        problems: rows that could not be read.
        inputs: the files and folders whose change makes the reading out of date (images of rows need not be named).
        known: hashes of the image bytes at locations that need not be looked at again (those of packed tars).
    """

    origin: str
    rows: list[Row] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    inputs: list[str] = field(default_factory=list)
    known: dict[Location, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What a user may say about a source; None where the reader shall find out itself."""

    image_column: str | None = None
    caption_column: str | None = None
    group: str | None = None
    separator: str | None = None
    captions_optional: bool = False
    links: bool = False
    """Pictures may be links, which become locations as they are (`clipling data pack` downloads them)."""


class Paths:
    """Turns image paths written in a table into locations.

    Relative paths start at the table's own folder or, when nothing is there, at the current folder.
    """

    def __init__(self, base: Path) -> None:
        self.base = Path(os.path.abspath(base))
        self._real: dict[str, str] = {}

    def locate(self, written: str) -> tuple[str, Location]:
        """(key, location). The location need not exist. Two spellings of one path give one location."""
        if "\\" in written and os.sep == "/" and not os.path.exists(self.base / written):
            written = written.replace("\\", "/")  # a table that was made on Windows
        path = self.base / written
        if not os.path.exists(path) and os.path.exists(written):
            path = Path(os.path.abspath(written))
        return self._key(written), Location(self._resolve(path))

    def _resolve(self, path: Path) -> str:
        # Links are followed in the folders only: two names of one picture stay two pairs, linked by their hash.
        folder, name = os.path.split(path)
        if folder not in self._real:
            try:
                self._real[folder] = os.path.realpath(folder)
            except (OSError, ValueError):
                self._real[folder] = folder
        return os.path.join(self._real[folder], name)

    def _key(self, written: str) -> str:
        path = Path(written)
        if path.is_absolute() and path.is_relative_to(self.base):
            path = path.relative_to(self.base)
        return clean_key(path.as_posix())


def clean_key(text: str) -> str:
    """A key that can be written as UTF-8 whatever a file was called."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def clean_captions(values: Iterable[str]) -> list[str]:
    """Captions without outer blanks, without empty ones, exact repeats dropped, in order."""
    return list(dict.fromkeys(caption for caption in map(clean_caption, values) if caption))


def choose(columns: Sequence[str], wanted: Sequence[str], given: str | None, flag: str, where: str) -> str | None:
    """The column `given`, or the first of `wanted` that is there whatever its case; None when none is.

    Raises:
        UserError: `given` is not among `columns`.
    """
    if given is not None:
        if given in columns:
            return given
        raise UserError(
            f"{where} has no column {given!r} ({flag}). Its columns are: {', '.join(map(repr, columns))}. {near(given, columns)}"
        )
    lower = {}
    for column in columns:
        lower.setdefault(column.strip().lower(), column)
    return next((lower[name] for name in wanted if name in lower), None)


def field_of(record: dict, dotted: str) -> Any:
    """The value of a JSON field; `lang.de` is the field `de` of the object `lang`. None when it is absent."""
    if dotted in record:
        return record[dotted]
    value: Any = record
    for name in dotted.split("."):
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


def texts_of(value: Any) -> list[str] | None:
    """The strings of a JSON caption field, which may be one string or a list of them; None for anything else."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    return None


def text_of(value: Any) -> str:
    """A group or label as text: whole numbers without a point, nothing for a missing value."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return clean_caption(str(value))


def make_row(written: Any, captions: list[str], paths: Paths, where: str, problems: Problems, options: Options) -> Row | None:
    """A row of an image path and its captions; None, and a problem, when either is missing."""
    if not isinstance(written, str) or not written.strip():
        problems.add("no image", where, "the image column is empty")
        return None
    link = is_url(written)
    if link and not options.links:
        problems.add("link", where, f"{written[:200]} is a link: download the picture first")
        return None
    captions = clean_captions(captions)
    if not captions and not options.captions_optional:
        problems.add("empty caption", where, f"no caption for {written[:200]}")
        return None
    if link:
        return Row(clean_key(written.strip()), captions, Location(written.strip()))
    key, location = paths.locate(written.strip())
    return Row(key, captions, location)


def is_url(text: str) -> bool:
    """Whether a text is a link (`https://...`, `s3://...`) and no path."""
    return _URL.match(text.strip()) is not None


def url_error(where: str, image_column: str, caption_column: str | None) -> UserError:
    """The error for a table of links: what to do before clipling can train on it."""
    caption = caption_column or "CAPTION_COLUMN"
    return UserError(
        f"{where}: column {image_column!r} holds links, not files, and training reads files. Download the pictures once "
        "(failures are listed, and the same command goes on where it was stopped):\n"
        f"  clipling data pack {quote(where)} pictures --image-column {quote(image_column)} --caption-column {quote(caption)}\n"
        "and then give the folder that it made: pictures. For very many links, img2dataset (pip install img2dataset) with "
        "--output_format webdataset makes tars that clipling reads too."
    )


def merge(reading: Reading) -> list[Row]:
    """The rows of one reading, those of one image location or one key made into one, at the place of the first."""
    merged: list[Row] = []
    by_location: dict[Location, Row] = {}
    by_key: dict[str, Row] = {}
    for row in reading.rows:
        known = by_location.get(row.location) or by_key.get(row.key)
        if known is None:
            known = Row(row.key, list(row.captions), row.location, row.group, dict(row.extras), row.part)
            merged.append(known)
        else:
            known.captions.extend(row.captions)
            known.group = known.group or row.group
            known.extras = {**row.extras, **known.extras}
        by_location.setdefault(row.location, known)
        by_key.setdefault(row.key, known)
    for row in merged:
        row.captions = list(dict.fromkeys(row.captions))
    return merged


def combine(readings: Sequence[Reading]) -> tuple[list[Row], list[Problem]]:
    """The rows of all readings with unique keys, and their problems.

    Rows of one image location become one pair. A key that several readings use for different images gets the last
    parts of their paths before it, as many as are needed, in each of them: the order of the readings plays no part.
    """
    rows: list[Row] = []
    origins: list[str] = []
    known: dict[Location, Row] = {}
    for reading in readings:
        for row in merge(reading):
            if row.location in known:
                same = known[row.location]
                same.captions = list(dict.fromkeys([*same.captions, *row.captions]))
                continue
            known[row.location] = row
            rows.append(row)
            origins.append(reading.origin)
    _make_unique(rows, origins)
    return rows, [problem for reading in readings for problem in reading.problems]


def _make_unique(rows: list[Row], origins: list[str]) -> None:
    keys = [row.key for row in rows]
    parts = [(*Path(origin).parts[:-1], Path(origin).stem) for origin in origins]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        counts = Counter(row.key for row in rows)
        if len(counts) == len(rows):
            return
        for row, key, part in zip(rows, keys, parts):
            if counts[row.key] > 1:
                row.key = "/".join((*part[-depth:], key)).replace("//", "/")
    taken: set[str] = set()
    for row in rows:  # left are origins of one name but for the suffix, such as `a.csv::a.tar`
        key, number = row.key, 1
        while row.key in taken:
            number += 1
            row.key = f"{key}#{number}"
        taken.add(row.key)
