"""Teachers asked once, their answers stored beside the pairs: `clipling reinforce` (MobileCLIP, Vasu et al., arXiv 2311.17049).

Every shard is made as a whole and appears whole: a tar under its name, then a small file beside it with its checksum. What is not there is
made by the next start of the same command, whichever process of however many; a shard that is damaged is found by its checksum and made
again alone; where pairs were added at the end of the source, what they add is made. The same command makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipling.data.pairs import Pairs
from clipling.data.shard_files import MANIFEST, ShardFile, bytes_digest, shard_name
from clipling.errors import UserError
from clipling.guides.captions import Captions
from clipling.guides.progress import Progress, silent
from clipling.guides.reinforce_plan import Plan, Settings, begin, refuse_foreign, refuse_older
from clipling.guides.reinforce_shard import Maker
from clipling.guides.shard_locks import ShardLocks
from clipling.models.dual import Student


def reinforce(
    pairs: Pairs,
    out: Path,
    teachers: Mapping[str, Student],
    captions: Captions,
    settings: Settings,
    *,
    licences: Mapping[str, str] | None = None,
    named: Mapping[str, str] | None = None,
    check: bool = False,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes the shards in `out` that are not there; returns what there is: shards made and found, bytes, errors of storing, captions.

    licences: of the teachers' weights, and named: what each teacher is called, for the cards of the students. check: read all shards that
    are there and make those again whose checksum is not the one that was written. rank, world: this process makes every `world`-th shard;
    one that a process of another launch is just making is left to it. Raises UserError when `out` holds something else, or was begun with
    other pairs, teachers or settings.
    """
    plan = Plan(pairs, teachers, captions, settings, {"licences": dict(licences or {}), "named": dict(named or {})})
    refuse_foreign(out)
    with ShardLocks(out) as locks:
        with locks.manifest() as alone:
            if alone or world == 1:  # otherwise others might be writing it just now
                _remove(out, MANIFEST)
            older = begin(out, plan)
        mine = range(rank, plan.shards, world)
        damaged = [number for number in mine if check and _is_damaged(out, number)]
        if older and (damaged or not all(_is_done(out, number, plan, older) for number in mine)):
            refuse_older(out)
        for number in damaged:
            with locks.shard(number) as own:
                if own:
                    _forget(out, number)
        made = 0 if older else _make(out, plan, mine, Maker(plan, teachers, captions), locks, progress or silent)
    there = [file for number in range(plan.shards) if _is_done(out, number, plan, older) and (file := ShardFile.of(out, number))]
    counts = {"shards": plan.shards, "shards_there": len(there), "made": made, "damaged": [shard_name(number) for number in damaged]}
    return counts | _summed(there)


def _make(out: Path, plan: Plan, mine: range, maker: Maker, locks: ShardLocks, progress: Progress) -> int:
    """Makes those of the shards `mine` that are missing and that nobody else is making; returns how many."""
    sizes = {number: len(plan.settings.rows(number, plan.pairs)) for number in mine}
    missing = [number for number in mine if not _is_done(out, number, plan)]
    total, made = sum(sizes.values()), 0
    done = total - sum(sizes[number] for number in missing)
    progress("teachers' knowledge", done, total)
    for number in missing:
        with locks.shard(number) as own:
            if own and not _is_done(out, number, plan):  # another launch may have made it meanwhile
                _refuse_newer(out, number, plan)
                _forget(out, number)
                _remove(out, shard_name(number), shard_name(number).replace(".tar", ".json"))
                maker.write(out, number)
                made += 1
        done += sizes[number]
        progress("teachers' knowledge", done, total)
    return made


def _is_done(out: Path, number: int, plan: Plan, older: bool = False) -> bool:
    file = ShardFile.of(out, number)
    return file is not None and (older or plan.fits(number, file))


def _refuse_newer(out: Path, number: int, plan: Plan) -> None:
    """Raises UserError for a tar of a source that was edited after this process had opened it: the older one must not take its place."""
    file = ShardFile.of(out, number)
    if file is not None and not plan.grew(number, file):
        raise UserError(
            f"{shard_name(number)} in {out} was made meanwhile by another process, of a source that was changed since this one opened it. "
            "Run the same command again: it goes on with the source as it is now."
        )


def _is_damaged(out: Path, number: int) -> bool:
    written = ShardFile.of(out, number)
    return written is not None and bytes_digest(out / shard_name(number)) != written.checksum


def _forget(out: Path, number: int) -> None:
    """A shard that is no longer taken for done, whatever happens next."""
    (out / shard_name(number)).with_suffix(".json").unlink(missing_ok=True)


def _remove(out: Path, *names: str) -> None:
    """Parts of these files that a killed process left."""
    for name in names:
        for path in out.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _summed(files: Sequence[ShardFile]) -> dict[str, Any]:
    names = sorted({name for file in files for name in file.errors})
    errors = {
        name: {
            "largest": max(file.errors[name]["largest"] for file in files if name in file.errors),
            "lowest_cosine": min(file.errors[name]["lowest_cosine"] for file in files if name in file.errors),
        }
        for name in names
    }
    origins: dict[str, int] = {}
    for file in files:
        for origin, count in file.captions.items():
            origins[origin] = origins.get(origin, 0) + count
    return {
        "pairs": sum(file.pairs for file in files),
        "left_out": [row for file in files for row in file.left_out],
        "bytes": sum(file.bytes for file in files),
        "picture_bytes": sum(file.picture_bytes for file in files),
        "captions": origins,
        "errors": errors,
    }
