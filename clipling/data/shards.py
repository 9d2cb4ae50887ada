"""Webdataset tars: an offset index made from the headers, so that every member can be read at random."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import BinaryIO

from clipling.data.beside import PACKED_KEY, captions_of, group_and_extras, record_of
from clipling.data.packed import read_packed
from clipling.data.pairs import Location, Row
from clipling.data.problems import OPEN_END, Problems
from clipling.data.reading import Options, Reading, clean_key
from clipling.errors import UserError

MEMBER_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
NO_END = "no end mark"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST_SHARDS = 1_000_000


def expand_braces(text: str) -> list[str]:
    """`a-{00..02}.tar` to three names, `{x,y}` to two, several braces to all combinations, the last running fastest.

    Numbers keep the width of the bounds when one of them starts with a zero, and run downwards when the second bound
    is the smaller. Raises UserError for more than a million names.
    """
    pieces: list[list[str]] = []
    place, total = 0, 1
    for match in re.finditer(f"{_RANGE.pattern}|{_LIST.pattern}", text):
        pieces.append([text[place : match.start()]])
        if match[3] is None:
            total *= abs(int(match[1]) - int(match[2])) + 1
            if total > _MOST_SHARDS:
                raise UserError(f"{text} stands for more than {_MOST_SHARDS:,} files")
            pieces.append(_numbers(match[1], match[2]))
        else:
            pieces.append(match[3].split(","))
        place = match.end()
    return ["".join(parts) for parts in product(*pieces, [text[place:]])]


def _numbers(first: str, last: str) -> list[str]:
    padded = any(len(bound) > 1 and bound[0] == "0" for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]


@dataclass
class _Sample:
    """The members of one key: suffix -> place in the tar."""

    key: str
    members: dict[str, Location] = field(default_factory=dict)


def read_shard(path: Path, options: Options) -> Reading:
    """Rows of one tar, in the order of its members, keyed by folder and name up to the first dot.

    A tar that `clipling data pack` made is read by the index beside it. In others, an image is one of MEMBER_IMAGES. Its
    captions are the field `caption` or `captions` of `.json` (or the field that `caption_column` names: `lang.de` is `de`
    of the object `lang`), otherwise the lines of `.txt`. The field `group` of `.json` (or another that is named) is the
    group, `.cls` becomes `extras["cls"]`, other fields become extras. From a truncated tar the
    whole samples are kept, and a problem tells of it; a tar that only lacks its end mark is told of in other words.
    """
    path = Path(os.path.abspath(path))
    packed = read_packed(path, options)
    if packed is not None:
        return packed
    reading = Reading(str(path), problems=Problems(str(path)), inputs=[str(path)])
    samples = _samples(path, reading.problems)
    with open(path, "rb") as file:
        for sample in samples:
            row = _row(sample, file, path.name, reading.problems, options)
            if row is not None:
                reading.rows.append(row)
    return reading


def read_shards(paths: Sequence[Path], options: Options) -> list[Reading]:
    """`read_shard` of each. Raises UserError when no sample of any has a field that was named."""
    readings = [read_shard(path, options) for path in paths]
    rows = [row for reading in readings for row in reading.rows]
    if options.caption_column is not None and not any(row.captions for row in rows):
        raise UserError(f"{paths[0]}: no .json has captions in the field {options.caption_column!r} (--caption-column)")
    if options.group is not None and not any(row.group for row in rows):
        raise UserError(f"{paths[0]}: no .json has the field {options.group!r} (--group)")
    return readings


def members_of(path: Path) -> list[dict[str, Location]]:
    """The members of every key of a tar by suffix (`jpg`, `txt`, `paug.json`, ...), in order."""
    return [sample.members for sample in _samples(path, Problems(str(path)))]


def _samples(path: Path, problems: Problems) -> list[_Sample]:
    current: dict[str, _Sample] = {}
    samples: list[_Sample] = []
    last = None
    damage: list[str] = []
    for name, location in _members(path, damage):
        folder, _, base = name.replace("\\", "/").removeprefix("./").rpartition("/")
        if base.startswith("."):
            continue  # the companion files of macOS
        stem, _, suffix = base.partition(".")
        key, suffix = clean_key(f"{folder}/{stem}" if folder else stem), suffix.lower()
        last = current.get(key)
        if last is None or suffix in last.members:
            last = current[key] = _Sample(key)
            samples.append(last)
        last.members[suffix] = location
    for reason in damage:
        before = next((sample for sample in reversed(samples) if sample is not last), None)
        if last is not None and before is not None and not before.members.keys() <= last.members.keys():
            samples.remove(last)  # its first members are whole, the others are lost
            problems.add("truncated tar", path.name, f"{reason}; {last.key} is incomplete and left out")
        elif reason == NO_END:
            pairs = sum(not sample.members.keys().isdisjoint(MEMBER_IMAGES) for sample in samples)
            problems.add(OPEN_END, path.name, f"{NO_END}; {pairs} pairs were read, the rest, if any, is lost")
        else:
            problems.add("truncated tar", path.name, reason)
    _number_repeats(samples)
    return samples


def _number_repeats(samples: list[_Sample]) -> None:
    seen: dict[str, int] = {}
    for sample in samples:
        seen[sample.key] = seen.get(sample.key, 0) + 1
        if seen[sample.key] > 1:
            sample.key = f"{sample.key}#{seen[sample.key]}"


def _members(path: Path, damage: list[str]) -> Iterator[tuple[str, Location]]:
    """Name and place of every whole regular file; what is wrong with the tar goes to `damage`."""
    length = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or member.offset_data + member.size > length:
                    damage.append(f"the file ends inside {member.name}")
                    return
                if member.isreg():
                    yield member.name, Location(str(path), member.offset_data, member.size)
                tar.members.clear()  # tarfile keeps what it has seen: gigabytes for a tar of millions
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            block = file.read(tarfile.BLOCKSIZE)
        # tarfile ends in silence at a damaged header as it does at the end mark, a block of zeros.
        if len(block) < tarfile.BLOCKSIZE:
            damage.append("the file ends inside a header" if any(block) else NO_END)
        elif any(block):
            damage.append(f"damaged from byte {end} of {length} on")
    except Exception as error:  # tarfile raises all sorts of errors on damaged headers
        damage.append(f"cannot be read to its end: {error or type(error).__name__}")


def _row(sample: _Sample, file: BinaryIO, shard: str, problems: Problems, options: Options) -> Row | None:
    where = f"{shard}:{sample.key}"
    image = next((sample.members[suffix] for suffix in MEMBER_IMAGES if suffix in sample.members), None)
    if image is None:
        found = ", ".join(f".{suffix}" for suffix in sample.members)
        problems.add("no image", where, f"no .jpg, .jpeg, .png, .webp or other image, only {found}")
        return None
    record = {}
    if "json" in sample.members:
        try:
            record = record_of(_read(file, sample.members["json"]))
        except ValueError as error:
            problems.add("unparsable json", where, str(error))
            return None
    captions = captions_of(record, lambda: _text(sample, file), options)
    if not captions and not options.captions_optional:
        problems.add("no caption", where, "no caption in .json or .txt")
        return None
    group, extras = group_and_extras(record, options)
    if "cls" in sample.members:
        extras["cls"] = _read(file, sample.members["cls"]).decode("utf-8", "replace").strip()
    return Row(record.get(PACKED_KEY) or sample.key, captions, image, group, extras)


def _text(sample: _Sample, file: BinaryIO) -> str | None:
    if "txt" not in sample.members:
        return None
    return _read(file, sample.members["txt"]).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def _read(file: BinaryIO, location: Location) -> bytes:
    file.seek(location.offset)
    return file.read(location.size)
