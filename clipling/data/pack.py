"""Any source as tars of small pictures with an index: copied or downloaded once, resumed after a kill, failures listed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipling.data.pack_copied import COPIED, Copied
from clipling.data.pack_picture import check_settings
from clipling.data.pack_shard import Packing, pack_shard
from clipling.data.packed import SETTINGS_FILE, SUFFIX, ShardIndex, index_of
from clipling.data.pairs import Row
from clipling.data.problems import Problem, Problems
from clipling.data.reading import Options, combine
from clipling.data.remote import Fetch, FetchError, remote_files, split_remote, suffix_of
from clipling.data.shards import members_of
from clipling.data.source import read_parts
from clipling.errors import UserError
from clipling.store import alone, read_json, write_json

NOT_PACKED = (
    "warning: what teachers stored beside these pairs (`clipling reinforce`) is not packed: its crops fit the pictures as they are. "
    "Train from the source itself, or reinforce the packed one."
)
INCOMING = "incoming"
MOST_LEFT_OUT = 0.1  # of the rows: the share above which opening a source refuses too (data.max_bad)
_REMOTE_KINDS = (".tar", ".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Unit:
    """What is packed in one go: all local parts of a spec together, and each remote file by itself.

    rows: of the unit, with keys that are unique in it. problems: the rows that its reader left out. origin: goes before keys that two
    units share. name: of its shard of a number. made: its shards, where an earlier call made all of them of the same remote file. close:
    told how many shards it has, takes away what was copied for it.
    """

    rows: list[Row]
    problems: list[Problem]
    origin: str
    name: Callable[[int], str]
    made: list[ShardIndex] | None
    close: Callable[[int], Any]


def pack(
    spec: str,
    out: Path,
    options: Options,
    *,
    size: int | None,
    quality: int,
    shard: int,
    fetch: Fetch,
    at_once: int,
    retry: bool = False,
    progress: Callable[[str, int, int], Any] | None = None,
) -> dict[str, Any]:
    """Packs a source into `out/*.tar` of `shard` pairs each; shards that are finished are not made again.

    The packed source has the pairs of the source in their order, with the same keys, captions, groups and extras, apart from rows that
    cannot be used, which are listed in `out/problems.tsv`; with `retry` those that could not be fetched or read before are tried again.
    progress: called with (what is done, so much of it, out of so much). `failed` of what is returned: whether more than a tenth of the rows
    was left out.
    Raises UserError for a source that cannot be read, a folder that holds something else or that another process packs into, a full
    disk, and when nothing is left.
    """
    check_settings(size, quality)
    if shard < 1 or at_once < 1:
        raise UserError(f"--shard {shard}, --at-once {at_once}: expected at least 1")
    progress = progress or (lambda what, done, total: None)
    options = replace(options, links=True)
    settings = {"format": 1, "source": str(spec), "size": size, "quality": quality, "shard": shard}
    settings |= {name: value for name, value in vars(options).items() if name != "links"}
    absent = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with alone(out, "packing into"):
            return _pack(spec, out, options, settings, fetch, at_once, retry, progress)
    except UserError:
        _take_back(out, absent)
        raise


def _pack(
    spec: str,
    out: Path,
    options: Options,
    settings: dict[str, Any],
    fetch: Fetch,
    at_once: int,
    retry: bool,
    progress: Callable[[str, int, int], Any],
) -> dict[str, Any]:
    _begin(out, settings)
    packing = Packing(settings["size"], settings["quality"], fetch, at_once, retry, partial(_unfinish, out, settings))
    problems, counts, names = Problems(str(spec)), Counter(), []
    told = False
    for unit, what in _units(spec, out, options, packing, progress):
        if not told and _has_knowledge(unit.rows):
            told = True
            print(NOT_PACKED, file=sys.stderr, flush=True)
        problems.extend(unit.problems)
        before = len(names)
        for index, fresh in _shards(unit, out, settings["shard"], packing, partial(progress, what), lambda: not counts["pairs"]):
            names.append(index.tar)
            problems.extend(Problem(*failure) for failure in index.failures)
            counts.update(
                pairs=len(index.entries),
                captions=sum(len(entry.captions) for entry in index.entries),
                bytes=index.bytes,
                failed=len(index.failures),
                made_now=int(fresh),
                **index.counts,
            )
        unit.close(len(names) - before)
    return _finish(out, settings, names, problems, counts)


def _has_knowledge(rows: list[Row]) -> bool:
    """Whether teachers' knowledge lies beside a picture of the first tar of each folder."""
    tars: dict[Path, Path] = {}
    for path in map(Path, dict.fromkeys(row.location.path for row in rows)):
        if path.suffix == ".tar":
            tars.setdefault(path.parent, path)
    return any("paug.json" in members for tar in tars.values() for members in members_of(tar))


def _shards(
    unit: Unit, out: Path, shard: int, packing: Packing, progress: Callable[[int, int], Any], hopeless: Callable[[], bool]
) -> Iterator[tuple[ShardIndex, bool]]:
    """(index, whether it was made now) of each shard of a unit."""
    if unit.made is not None:
        yield from ((index, False) for index in unit.made)
        return
    progress(0, len(unit.rows))
    for start in range(0, len(unit.rows), shard):
        rows = unit.rows[start : start + shard]
        yield pack_shard(out / unit.name(start // shard), rows, start, unit.origin, packing, hopeless=hopeless())
        progress(start + len(rows), len(unit.rows))


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Refuses a folder that holds anything else; takes away what a killed call left half written."""
    known = out / SETTINGS_FILE
    if known.is_file():
        before = read_json(known)
        other = [name for name, value in settings.items() if before.get(name) != value]
        if other and any(out.glob(f"*{SUFFIX}")):
            said = "; ".join(f"{name} was {before.get(name)!r} and is {settings[name]!r}" for name in other)
            raise UserError(f"{out} holds a pack that was made with other settings: {said}. Choose another folder, or remove this one.")
        if other:  # nothing was packed, as of a source whose name was mistyped
            shutil.rmtree(out / INCOMING, ignore_errors=True)
            write_json(known, settings)
    elif any(out.iterdir()):
        raise UserError(f"{out} exists and is no pack of clipling: choose another folder")
    for left in out.glob(".*.tmp"):
        if re.fullmatch(r"\.[\w.-]+\.[0-9a-f]{8}\.tmp", left.name):
            left.unlink(missing_ok=True)
    if not known.is_file():
        write_json(known, settings)


def _take_back(out: Path, absent: list[Path]) -> None:
    """Leaves nothing of a call that came to nothing, as of a source that does not open: no settings alone, no folder that was `absent`."""
    if [path.name for path in out.glob("*")] == [SETTINGS_FILE]:
        (out / SETTINGS_FILE).unlink(missing_ok=True)
    for folder in absent:  # the innermost first
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def _unfinish(out: Path, settings: dict[str, Any]) -> None:
    """A folder whose shards are being made anew, as the source has other rows now, is no whole source until all are."""
    if "finished" in read_json(out / SETTINGS_FILE):
        write_json(out / SETTINGS_FILE, settings)


def _units(
    spec: str, out: Path, options: Options, packing: Packing, progress: Callable[[str, int, int], Any]
) -> Iterator[tuple[Unit, str]]:
    """(unit, what is said of it while it is packed)."""
    local, remote = split_remote(spec)
    timeout = packing.fetch.timeout
    urls = list(dict.fromkeys(url for part in remote for url in remote_files(part, timeout)))
    unknown = [url for url in urls if suffix_of(url) not in _REMOTE_KINDS]
    if unknown:
        raise UserError(
            f"{unknown[0]} is not a source. A link leads to {', '.join(_REMOTE_KINDS)}, or to a folder of .tar or .parquet files"
        )
    several = len(urls) + bool(local) > 1
    name = lambda unit, number: f"{unit:05d}-{number:05d}.tar" if several else f"{number:05d}.tar"  # noqa: E731
    what = lambda unit: f"packing file {unit + 1}" if several else "packing"  # noqa: E731
    if local:
        rows, problems = combine(read_parts("::".join(local), options))
        yield Unit(rows, problems, "", partial(name, 0), None, lambda shards: None), what(0)
    for number, url in enumerate(urls, start=bool(local)):
        yield _fetched(url, number, out, options, packing, progress, partial(name, number)), what(number)
    for stale in out.glob(f"*{COPIED}"):
        number = stale.name.removesuffix(COPIED)
        if number.isdigit() and int(number) >= len(urls) + bool(local):
            stale.unlink()


def _fetched(
    url: str,
    number: int,
    out: Path,
    options: Options,
    packing: Packing,
    progress: Callable[[str, int, int], Any],
    name: Callable[[int], str],
) -> Unit:
    file = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urlsplit(url).path).name)
    # The name stays what it was: keys of some rows begin with it. The folder tells two files of one name apart.
    path = out / INCOMING / f"{number:05d}" / file
    try:
        copied = Copied(out / f"{number:05d}{COPIED}", packing.fetch.state(url))
        made = copied.made(out, name, packing.retry)
        if made is None:
            copied.expect(path)
            packing.fetch.copy(url, path, lambda done, total: progress(f"copying {file}", done, total), copied.state)
    except FetchError as error:
        raise UserError(f"{url} cannot be copied: {error}. The same command goes on from what was copied.") from error
    rows, problems = combine(read_parts(str(path), options)) if made is None else ([], copied.problems())

    def close(shards: int) -> None:
        copied.write(shards, problems)
        copied.forget(path)
        for folder in (path.parent, path.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    return Unit(rows, problems, url, name, made, close)


def _finish(out: Path, settings: dict[str, Any], names: list[str], problems: Problems, counts: Counter[str]) -> dict[str, Any]:
    if not counts["pairs"]:
        listed = f": {problems.summary()}.\n{problems.first()}" if len(problems) else "."
        raise UserError(f"{problems.name} has no pair that can be packed{listed}")
    for stale in out.glob("*.tar"):  # of a source that had more rows when this folder was begun
        if stale.name not in names and index_of(stale).is_file():
            stale.unlink()
            index_of(stale).unlink()
    for stale in out.glob(f"*{SUFFIX}"):
        if stale.name.removesuffix(SUFFIX) + ".tar" not in names:
            stale.unlink()
    problems.write(out / "problems.tsv")
    made = {key: counts[key] for key in ("pairs", "captions", "failed", "kept", "resized", "bytes", "made_now")}
    write_json(out / SETTINGS_FILE, {**settings, "finished": {k: v for k, v in made.items() if k != "made_now"}})
    return {
        "out": str(out),
        "shards": len(names),
        **made,
        # As `failed` of every verb: whether the exit code says that something is wrong. The numbers are in left_out.
        "failed": problems.left_out() > MOST_LEFT_OUT * (counts["pairs"] + problems.left_out()),
        "left_out": problems.counts(),
        "first_problems": [list(problem) for problem in problems.rows[:5]],
        "problem_list": os.fspath(out / "problems.tsv"),
    }
