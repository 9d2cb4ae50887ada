"""Which pairs are held out: a function of the images alone, with duplicates and groups on one side."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from clipling.data.pairs import Pairs
from clipling.data.problems import Problem
from clipling.errors import UserError

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def split(pairs: Pairs, fraction: float = 0.05, most: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, val rows), int64, ascending: `fraction` of the pairs is held out, but at most `most`.

    Where every pair has a `split` among its extras, that published split is taken (rows of `test` are in neither);
    where it has no val, val is held out of its train rows. Train rows that share an image or a group with rows of val
    or test are left out, and are added to the problems of the pairs. Pairs with one image hash or one group stay together, so
    val may be a little smaller than asked for. The order of the pairs plays no part.

    Raises:
        UserError: nothing can be held out, because all pairs belong together; a published split without training rows.
    """
    if not 0 < fraction < 1 or most < 1:
        raise UserError(f"the share that is held out must lie between 0 and 1 (given {fraction}), at most >= 1 ({most})")
    rows = np.arange(len(pairs), dtype=np.int64)
    published = published_split(pairs)
    if published is not None:
        rows = _apart(pairs, published)
        if len(published["val"]):
            return rows, published["val"]
    return _hold_out(pairs, rows, fraction, most)


def published_split(pairs: Pairs) -> dict[str, np.ndarray] | None:
    """Rows (int64, ascending) of `train`, `val` and `test`; None unless every pair says which of them it is in."""
    names = [_NAMES.get(str(extras.get("split", "")).strip().lower()) for extras in pairs.extras]
    if not names or None in names:
        return None
    given = np.array(names)
    return {name: np.flatnonzero(given == name).astype(np.int64) for name in ("train", "val", "test")}


def _apart(pairs: Pairs, published: dict[str, np.ndarray]) -> np.ndarray:
    """The published train rows without those that are also held out: an image twice, or a group on both sides."""
    if not len(published["train"]):
        found = ", ".join(f"{len(rows)} {name}" for name, rows in published.items() if len(rows))
        raise UserError(
            f"{pairs.name}: nothing to train on, for the published split of the source (`split`) has {found} and no train pairs. "
            "Mark pairs as train, or remove `split`; `clipling eval` measures a model on such pairs."
        )
    held = np.concatenate([published["val"], published["test"]])
    hashes, groups = {pairs.hashes[i] for i in held} - {""}, {pairs.groups[i] for i in held} - {""}
    also = [int(i) for i in published["train"] if pairs.hashes[i] in hashes or pairs.groups[i] in groups]
    known = set(pairs.problems)
    for i in also:
        what = "picture" if pairs.hashes[i] in hashes else "group"
        problem = Problem("also held out", pairs.keys[i], f"marked as train, but its {what} is also in val or test")
        if problem not in known:  # splitting twice tells it once
            pairs.problems.extend([problem])
    if also:
        pairs.problems.list_file()
    if len(also) == len(published["train"]):
        raise UserError(f"{pairs.name}: every train pair of the published split shares its picture or group with val or test.")
    return np.setdiff1d(published["train"], np.array(also, dtype=np.int64))


def _hold_out(pairs: Pairs, rows: np.ndarray, fraction: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    units = _units(pairs, rows)
    if len(units) < 2:
        raise UserError(
            f"{pairs.name}: nothing can be held out, for its {len(rows)} pairs are one image or one group. "
            "Give a source for validation (--val), or another --group."
        )
    wanted = min(max(1, round(fraction * len(rows))), most, len(rows) - 1)
    held: list[int] = []
    for unit in units:
        if len(held) + len(unit) <= wanted:
            held.extend(unit)
    if not held:  # every unit is larger than what is wanted
        held = min(units, key=len)
    val = np.array(sorted(held), dtype=np.int64)
    return np.setdiff1d(rows, val), val


def _units(pairs: Pairs, rows: np.ndarray) -> list[list[int]]:
    """The rows that must stay together, in an order that only the bytes of their images decide."""
    parent: dict[int, int] = {int(row): int(row) for row in rows}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[tuple[str, str], int] = {}
    for row in parent:
        for name in (("hash", pairs.hashes[row]), ("group", pairs.groups[row])):
            if name[1]:
                parent[root(row)] = root(first.setdefault(name, row))
    units: dict[int, list[int]] = {}
    for row in parent:
        units.setdefault(root(row), []).append(row)

    def score(unit: list[int]) -> bytes:
        # Hashed once more: the smallest of many hashes is small, which would draw large units into val.
        return blake2b(min(pairs.hashes[row] for row in unit).encode(), digest_size=16, person=b"clipling-split").digest()

    return sorted(units.values(), key=score)
