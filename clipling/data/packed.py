"""The index beside a packed tar: what opening it needs to know, so that nothing has to be scanned or decoded again.

`00000.tar` has `00000.index.jsonl`: a first line about the tar, then one line a pair, `[key, captions, offset, size, hash, group,
extras, member]`. An index that does not fit its tar (another size, other members where it says pictures lie) is not used.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clipling.data.pairs import Location, Row
from clipling.data.problems import Problems
from clipling.data.reading import Options, Reading, clean_captions, field_of, text_of, texts_of
from clipling.store import atomic_write

FORMAT = 1
SUFFIX = ".index.jsonl"
SETTINGS_FILE = "pack.json"  # of the folder: what it was packed with and, once it is whole, what it holds


class Entry(NamedTuple):
    """One pair of a packed tar: `size` bytes from `offset` on are its picture, whose bytes have this hash."""

    key: str
    captions: list[str]
    offset: int
    size: int
    hash: str
    group: str
    extras: dict[str, Any]
    member: str


@dataclass
class ShardIndex:
    """What is known of one packed tar.

    Attributes:
        tar: its file name.
        bytes: its size.
        made_from: a digest of the rows and settings that it was made from: the same digest need not be packed again.
        origin: where its pairs came from, for keys that several origins share.
        entries: its pairs, in order.
        failures: (kind, where, detail) of rows that could not be packed.
        counts: how many pictures were kept as they were, and how many resized.
    """

    tar: str
    bytes: int
    made_from: str
    origin: str
    entries: list[Entry] = field(default_factory=list)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes the index beside its tar, atomically. Raises UserError when the disk is full."""
        about = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("tar", "bytes", "made_from", "origin", "counts", "failures")},
            "pairs": len(self.entries),
        }
        lines = [json.dumps(about, ensure_ascii=False), *(json.dumps(entry, ensure_ascii=False) for entry in self.entries)]
        atomic_write(index_of(folder / self.tar), "\n".join(lines) + "\n")


def index_of(tar: Path) -> Path:
    """Where the index of a tar is, if it has one."""
    return tar.with_suffix(SUFFIX)


def read_index(tar: Path) -> ShardIndex | None:
    """The index of a tar; None when there is none, it is damaged, or it does not fit the tar."""
    try:
        # Not str.splitlines: a key or a caption may hold U+2028 or U+0085, which JSON leaves as they are.
        first, *lines = index_of(tar).read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        about = json.loads(first)
        if about.pop("format") != FORMAT or about.pop("pairs") != len(lines):
            return None
        about["failures"] = [tuple(failure) for failure in about["failures"]]
        found = ShardIndex(**about, entries=[Entry(*json.loads(line)) for line in lines])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if _fits(found, tar) else None


def warn_of_a_part(folder: Path) -> None:
    """Says on stderr that a folder was packed in part only, where it was."""
    try:
        known = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(known, dict) and "shard" in known and "finished" not in known:
        print(
            f"warning: {folder} holds a part of {known.get('source')}: the same `clipling data pack` command finishes it", file=sys.stderr
        )


def _fits(index: ShardIndex, tar: Path) -> bool:
    """Whether the tar has the size that was written, and the members at the first, middle and last place that was written."""
    try:
        if os.path.getsize(tar) != index.bytes:
            return False
        with open(tar, "rb") as file:
            for place in {0, len(index.entries) // 2, len(index.entries) - 1} if index.entries else ():
                entry = index.entries[place]
                file.seek(entry.offset - tarfile.BLOCKSIZE)
                member = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
                if (member.name, member.size) != (entry.member, entry.size):
                    return False
    except (OSError, tarfile.TarError):
        return False
    return True


def read_packed(tar: Path, options: Options) -> Reading | None:
    """The rows of a packed tar by its index, without looking into the tar; None, and a word on stderr, when the index does not fit."""
    if not index_of(tar).is_file():
        return None
    index = read_index(tar)
    if index is None:
        print(f"warning: {index_of(tar).name} does not fit {tar.name}: the tar is read anew", file=sys.stderr)
        return None
    path = str(tar)
    reading = Reading(index.origin or path, problems=Problems(path), inputs=[path, str(index_of(tar))])
    for entry in index.entries:
        location = Location(path, entry.offset, entry.size)
        reading.known[location] = entry.hash
        captions = _captions(entry, options)
        if not captions and not options.captions_optional:
            reading.problems.add("no caption", f"{tar.name}:{entry.key}", "packed without captions")
            continue
        group = entry.group if options.group is None else text_of(field_of(_fields(entry), options.group))
        extras = {name: value for name, value in entry.extras.items() if name not in (options.group, options.caption_column)}
        reading.rows.append(Row(entry.key, captions, location, group, extras))
    return reading


def _captions(entry: Entry, options: Options) -> Sequence[str]:
    if options.caption_column is None:
        return entry.captions
    return clean_captions(texts_of(field_of(_fields(entry), options.caption_column)) or [])


def _fields(entry: Entry) -> dict[str, Any]:
    """What options may name: the extras, and the captions and group that were found when it was packed."""
    return {"caption": entry.captions, "captions": entry.captions, "group": entry.group, **entry.extras}
