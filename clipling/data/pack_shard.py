"""One packed shard: rows in, a tar and the index beside it out, the same bytes every time."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from clipling.data.beside import PACKED_KEY
from clipling.data.images import ImageError
from clipling.data.pack_picture import packed_picture
from clipling.data.packed import Entry, ShardIndex, read_index
from clipling.data.pairs import Location, Row, hash_bytes
from clipling.data.reading import is_url
from clipling.data.remote import Fetch, FetchError
from clipling.errors import UserError
from clipling.store import atomic_produce

# A name without a dot: the key of a member ends at the first one. Not one that is made up for other keys.
_NAME = re.compile(r"(?!row-\d{9}$)[A-Za-z0-9_-][A-Za-z0-9_ -]*(/[A-Za-z0-9_-][A-Za-z0-9_ -]*)*")
_LONGEST = 80
_HOPELESS = 50  # so many failures from the start on and no success: the network is down, or the column is the wrong one


@dataclass(frozen=True)
class Packing:
    """How pictures are packed and fetched; `at_once` of them at a time. `retry`: what failed before is tried again. `begin`: called
    before a shard is made."""

    size: int | None
    quality: int
    fetch: Fetch
    at_once: int
    retry: bool = False
    begin: Callable[[], Any] = lambda: None

    def digest(self, rows: Sequence[Row]) -> str:
        """What a shard is made from: another digest, another shard."""
        total = blake2b(json.dumps([self.size, self.quality]).encode(), digest_size=16)
        for row in rows:
            total.update(json.dumps(asdict(row), ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        return total.hexdigest()


@dataclass(frozen=True)
class _Made:
    data: bytes
    suffix: str
    kept: bool | None
    """Whether the bytes are those of the source; None for what an earlier call packed and counted."""


@dataclass(frozen=True)
class _Failed:
    kind: str
    detail: str


class _Before:
    """A shard of the same rows and settings as it stands: what it holds is not fetched again."""

    def __init__(self, tar: Path, index: ShardIndex) -> None:
        self.tar, self.index = tar, index
        self.entries = {entry.key: entry for entry in index.entries}

    def made(self, row: Row) -> _Made | None:
        entry = self.entries.get(row.key)
        if entry is None:
            return None
        data = Location(str(self.tar), entry.offset, entry.size).read()
        return _Made(data, entry.member.rpartition(".")[2], None) if hash_bytes(data) == entry.hash else None


def pack_shard(
    tar: Path, rows: Sequence[Row], first: int, origin: str, packing: Packing, hopeless: bool = False
) -> tuple[ShardIndex, bool]:
    """(index, whether it was made now) of a shard of these rows, whose first is number `first` of its source.

    The tar is replaced as a whole, then its index: a kill at any instant leaves a shard that is finished or is made again. Rows whose
    picture cannot be fetched or read are left out and listed in the index.
    Raises UserError on a full disk, and, with `hopeless`, when the first 50 pictures all fail.
    """
    made_from = packing.digest(rows)
    known = read_index(tar)
    before = _Before(tar, known) if known is not None and known.made_from == made_from else None
    if before is not None and known.entries and not (packing.retry and known.failures):
        return known, False
    packing.begin()
    index = ShardIndex(tar.name, 0, made_from, origin)
    atomic_produce(tar, lambda path: _write(path, rows, first, packing, index, hopeless, before))
    index.bytes = tar.stat().st_size
    index.write(tar.parent)
    return index, True


def _write(
    path: Path, rows: Sequence[Row], first: int, packing: Packing, index: ShardIndex, hopeless: bool, before: _Before | None
) -> None:
    counts: Counter[str] = Counter(before.index.counts if before else {})

    def work(row: Row) -> _Made | _Failed:
        return (before and before.made(row)) or _make(row, packing)

    with open(path, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for number, (row, made) in enumerate(_in_order(rows, work, packing.at_once), start=first):
            if isinstance(made, _Failed):
                index.failures.append((made.kind, row.key, made.detail))
                if hopeless and not index.entries and len(index.failures) >= _HOPELESS:
                    raise _give_up(index.failures)
                continue
            if made.kept is not None:
                counts["kept" if made.kept else "resized"] += 1
            index.entries.append(_add(out, row, number, made))
    index.counts = dict(sorted(counts.items()))


def _in_order(rows: Sequence[Row], work: Callable[[Row], Any], at_once: int) -> Iterator[tuple[Row, Any]]:
    """(row, result) in order, computed by `at_once` threads; only twice as many results are held at any time."""
    waiting: deque[tuple[Row, Future]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for row in rows:
                waiting.append((row, pool.submit(work, row)))
                if len(waiting) >= 2 * at_once:
                    ready, result = waiting.popleft()
                    yield ready, result.result()
            while waiting:
                ready, result = waiting.popleft()
                yield ready, result.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _make(row: Row, packing: Packing) -> _Made | _Failed:
    place = row.location
    try:
        data = packing.fetch.read(place.path) if is_url(place.path) else place.read()
        return _Made(*packed_picture(data, packing.size, packing.quality))
    except FetchError as error:
        return _Failed(error.kind, str(error))
    except ImageError as error:
        return _Failed("broken image", f"{row.key}: {error}")
    except (FileNotFoundError, NotADirectoryError):
        return _Failed("missing image", f"{place.path} does not exist")
    except (OSError, ValueError) as error:
        return _Failed("unreadable image", str(error))


def _add(out: tarfile.TarFile, row: Row, number: int, made: _Made) -> Entry:
    """Writes the members of one pair: the picture, its first caption as .txt (what most loaders read), everything as .json."""
    plain = len(row.key) <= _LONGEST and _NAME.fullmatch(row.key)
    name = row.key if plain else f"row-{number:09d}"
    record: dict[str, Any] = {**row.extras, **({"caption": row.captions} if row.captions else {})}
    record |= {"group": row.group} if row.group else {}
    record |= {} if plain else {PACKED_KEY: row.key}
    picture = f"{name}.{made.suffix}"
    offset = out.offset + tarfile.BLOCKSIZE
    _member(out, picture, made.data)
    if row.captions:
        _member(out, f"{name}.txt", " ".join(row.captions[0].split("\n")).encode("utf-8", "backslashreplace"))
    _member(out, f"{name}.json", json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace"))
    return Entry(row.key, row.captions, offset, len(made.data), hash_bytes(made.data), row.group, row.extras, picture)


def _member(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner: the same pairs give the same bytes
    info.size = len(data)
    out.addfile(info, io.BytesIO(data))


def _give_up(failures: Sequence[tuple[str, str, str]]) -> UserError:
    shown = "\n".join(f"  {where[:200]}: {detail}" for _, where, detail in failures[:5])
    return UserError(
        f"none of the first {len(failures)} pictures could be packed. The first of them:\n{shown}\n"
        "Is this machine connected, and is --image-column the right column? The same command goes on from here."
    )
