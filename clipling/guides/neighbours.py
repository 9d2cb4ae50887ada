"""Neighbour tables: for every training pair the k nearest other training pairs in one feature space.

Banks are frozen, so neighbours are found once and not at every step: that is what makes the guidance nearly free.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipling.errors import UserError
from clipling.guides.approximate import FaissSearch, recall
from clipling.guides.encoders import chosen_device, device_text
from clipling.guides.hubness import capped, hubness
from clipling.guides.progress import Progress, silent
from clipling.guides.search import ExactSearch, Search
from clipling.store import atomic_write

FORMAT = 1
AT_ONCE = 1024
CAPPED_DEPTH = 64  # further candidates of each query where in-degrees are capped
EXACT_UP_TO = {"cpu": 200_000, "cuda": 4_000_000}  # columns; method="auto" is exact up to here and faiss above
RECALL_SAMPLE = 1000
WAIT = 0.1


class FeatureRows(Protocol):
    """An array [n, d] or `Rows`: what is read here is `features[int64 numbers]` -> [m, d]."""

    def __len__(self) -> int: ...

    def __getitem__(self, numbers: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Table:
    """Neighbours of pairs, or of captions.

    ids: int64 [Q, k], pair numbers, nearest first, -1 where there are fewer; rows outside training are all -1. Row i is pair i, or caption
    i of a table by caption. sims: float64 [Q, k], -inf where there is none. rows_hash: digest of the training pairs. hubness:
    see `hubness`. info: method, recall against the exact table, k, cap, by_caption, digest of what the table was made from.
    """

    ids: np.ndarray
    sims: np.ndarray
    rows_hash: str
    hubness: dict[str, Any]
    info: dict[str, Any]

    @property
    def k(self) -> int:
        return self.ids.shape[1]

    def save(self, path: Path | str) -> None:
        """One .npz file, atomically."""
        about = json.dumps({"format": FORMAT, "rows_hash": self.rows_hash, "hubness": self.hubness, "info": self.info}, sort_keys=True)
        _save_arrays(Path(path), ids=self.ids, sims=self.sims, about=np.frombuffer(about.encode(), dtype=np.uint8))

    @classmethod
    def load(cls, path: Path | str, rows: np.ndarray | None = None) -> Table:
        """Raises UserError when the file is missing, is no table, or was made for other training rows than `rows`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(file["about"].tobytes())
                made = cls(file["ids"], file["sims"], about["rows_hash"], about["hubness"], about["info"])
                form = about["format"]
            if made.ids.ndim != 2 or made.ids.dtype != np.int64 or made.sims.shape != made.ids.shape:
                raise ValueError(f"ids are {made.ids.dtype} {made.ids.shape}, sims {made.sims.shape}")
        except Exception as error:  # zipfile, zlib, numpy and json have errors of many kinds for a wrong byte
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"the neighbour table {path} cannot be read ({why}). Remove it, and it is made again.") from error
        if form != FORMAT:
            raise UserError(f"the neighbour table {path} has format {form}; this version reads {FORMAT}. Remove it.")
        if rows is not None and made.rows_hash != rows_digest(rows):
            raise UserError(f"the neighbour table {path} was made for another training split. Remove it, and it is made again.")
        return made


def build_table(
    features: FeatureRows,
    rows: np.ndarray,
    links: Sequence[Sequence[int]],
    valid: np.ndarray,
    k: int,
    block: int = 2048,
    cap: int | None = None,
    *,
    owner: np.ndarray | None = None,
    folder: Path | str | None = None,
    space: str = "neighbours",
    method: str = "auto",
    device: str = "auto",
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> Table:
    """The k nearest allowed training pairs of every training pair.

    features: unit rows [P, d], one a pair; with `owner` int64 [Q] one a caption, of pair owner[i], and the table is by caption.
    rows: the training pairs; only they are queries and neighbours. links: `Pairs.links()`; a pair and those that it shares
    a class with are never its neighbours. valid: bool [P]. Pairs that are not valid, and rows of zeros, take no part.
    block: queries in one file while the table is made; the table does not depend on it.
    cap: most pairs that may have one pair as neighbour (`hubness.capped`), at least k.
    folder: where the finished table is looked for and kept; a killed build continues there.
    method: "exact", "faiss", or "auto": exact up to EXACT_UP_TO columns of the device.
    rank, world: this process's share when several make one table (needs a folder).
    """
    if k < 1:
        raise UserError(f"k = {k} neighbours; expected at least 1")
    if cap is not None and cap < k:
        raise UserError(f"the cap on in-degrees is {cap}, below k = {k}: not every pair could get k neighbours. Raise the cap or lower k.")
    if world > 1 and folder is None:
        raise ValueError("several processes need a folder to make a table together")
    rows = np.unique(np.asarray(rows, dtype=np.int64))
    job = _Job(features, rows, links, np.asarray(valid), k, block, cap, owner, space, chosen_device(device), method)
    if folder is None:
        return job.finished(job.all_blocks(progress or silent))
    return job.resumable(Path(folder), rank, world, progress or silent)


class _Job:
    """One table being made."""

    def __init__(
        self,
        features: FeatureRows,
        rows: np.ndarray,
        links: Sequence[Sequence[int]],
        valid: np.ndarray,
        k: int,
        block: int,
        cap: int | None,
        owner: np.ndarray | None,
        space: str,
        device: str,
        method: str,
    ) -> None:
        self.rows, self.links, self.k, self.block, self.cap, self.owner = rows, links, k, block, cap, owner
        self.space, self.device, self.pairs, self.queries = space, device, len(valid), len(features)
        usable = np.zeros(self.pairs, dtype=bool)
        usable[rows] = valid[rows]
        of = np.arange(self.pairs) if owner is None else np.asarray(owner, dtype=np.int64)
        if len(of) != self.queries:
            raise ValueError(f"{self.queries} feature rows for {len(of)} {'pairs' if owner is None else 'captions'}")
        self.numbers = np.flatnonzero(usable[of])  # the feature rows that take part
        order = np.argsort(of[self.numbers], kind="stable")  # a search wants its columns sorted by pair
        self.numbers = self.numbers[order]
        self.features = features
        # Centring may leave nothing of a row (when all rows are alike), and captions may cancel in their mean.
        present = np.concatenate([(part != 0).any(axis=1) for part in _parts(features, self.numbers)])
        self.numbers = self.numbers[present]
        self.of = of[self.numbers]
        self.depth = k if cap is None else k + CAPPED_DEPTH
        limit = EXACT_UP_TO.get(device.split(":")[0], EXACT_UP_TO["cpu"])
        self.method = method if method != "auto" else "exact" if len(self.numbers) <= limit else "faiss"
        if self.method not in ("exact", "faiss"):
            raise UserError(f"method {method!r}; expected exact, faiss or auto")
        self._search: Search | None = None

    @cached_property
    def columns(self) -> np.ndarray:
        """The rows that take part [C, d], in memory when first asked for: a table that is only loaded needs none."""
        return _gathered(self.features, self.numbers)

    @property
    def search(self) -> Search:
        """Made when the first block is: a table that is only loaded needs none."""
        if self._search is None:
            exact = self.method == "exact"
            search = partial(ExactSearch, device=self.device) if exact else FaissSearch
            self._search = search(self.columns, self.of, self.links)
        return self._search

    def digest(self) -> str:
        """Of everything that decides the table."""
        total = hashlib.blake2b(digest_size=16)
        settings = [FORMAT, self.space, self.k, self.depth, self.cap, self.method, self.pairs, self.queries, self.owner is not None]
        first = next(_parts(self.features, self.numbers))
        total.update(json.dumps([*settings, str(first.dtype), (len(self.numbers), first.shape[1])]).encode())
        for array in (self.rows, self.numbers, self.of):
            total.update(array)
        for part in _parts(self.features, self.numbers):
            total.update(np.ascontiguousarray(part))
        for pair in self.rows.tolist():
            total.update(json.dumps(list(self.links[pair])).encode())
        return total.hexdigest()

    @property
    def what(self) -> str:
        where = device_text(self.device if self.method == "exact" else "cpu")
        return f"{self.space} neighbours ({self.method}, {self.columns.shape[1]} features, on {where})"

    def starts(self) -> range:
        return range(0, len(self.numbers), self.block)

    def one_block(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(start, start + self.block)
        return self.search.top(self.columns[part], self.of[part], self.depth)

    def all_blocks(self, progress: Progress) -> list[tuple[np.ndarray, np.ndarray]]:
        made = []
        progress(self.what, 0, len(self.numbers))
        for start in self.starts():
            made.append(self.one_block(start))
            progress(self.what, min(start + self.block, len(self.numbers)), len(self.numbers))
        return made

    def resumable(self, folder: Path, rank: int, world: int, progress: Progress) -> Table:
        """The table in `folder`: loaded, or made from the blocks that are there and those that are missing."""
        digest = self.digest()
        final, parts = folder / f"{self.space}-{digest[:16]}.npz", folder / f"{self.space}-{digest[:16]}.parts"
        files = {start: parts / f"{start:010d}-{self.block}.npz" for start in self.starts()}
        made = self._kept(final)
        if made is None:
            mine = [start for start in self.starts() if start // self.block % world == rank]
            self._make(mine, files, progress)
            if rank == 0:
                # a second run that makes the same table may be quicker, and removes the blocks
                _wait_for(lambda: self._kept(final) is not None or all(file.is_file() for file in files.values()))
                if self._kept(final) is None:
                    self.finished([self._block(start, files[start]) for start in self.starts()], digest).save(final)
            else:
                _wait_for(lambda: self._kept(final) is not None)
            made = Table.load(final, self.rows)
        if rank == 0:
            shutil.rmtree(parts, ignore_errors=True)
            for left in folder.glob(f".{final.name}.*.tmp"):
                left.unlink(missing_ok=True)
        return made

    def _kept(self, final: Path) -> Table | None:
        """The finished table; None when there is none or it is damaged: it is only a cache, and is made again."""
        try:
            return Table.load(final, self.rows)
        except UserError:
            return None

    def _block(self, start: int, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """A block that is on disk, made again where it is damaged."""
        try:
            return _load_arrays(file)
        except Exception:  # as in `Table.load`
            return self.one_block(start)

    def _make(self, starts: Sequence[int], files: dict[int, Path], progress: Progress) -> None:
        sizes = {start: min(self.block, len(self.numbers) - start) for start in starts}
        done = sum(sizes[start] for start in starts if files[start].is_file())
        progress(self.what, done, sum(sizes.values()))
        for start in starts:
            if not files[start].is_file():
                ids, sims = self.one_block(start)
                _save_arrays(files[start], ids=ids, sims=sims)
                done += sizes[start]
                progress(self.what, done, sum(sizes.values()))

    def finished(self, blocks: Sequence[tuple[np.ndarray, np.ndarray]], digest: str = "") -> Table:
        """Caps, then puts the rows where they belong."""
        found = np.concatenate([b[0] for b in blocks] or [np.zeros((0, self.depth), np.int64)])
        near = np.concatenate([b[1] for b in blocks] or [np.zeros((0, self.depth))])
        quality = 1.0 if self.method == "exact" else self._recall(found)
        if self.cap is not None:
            found, near = capped(found, near, self.k, self.cap)
        ids = np.full((self.queries, self.k), -1, dtype=np.int64)
        sims = np.full((self.queries, self.k), -np.inf)
        ids[self.numbers], sims[self.numbers] = found, near
        info = {
            "method": "exact" if self.method == "exact" else self.search.method,
            "recall": quality,
            "k": self.k,
            "cap": self.cap,
            "by_caption": self.owner is not None,
            "digest": digest,
        }
        usable = np.unique(self.of)
        return Table(ids, sims, rows_digest(self.rows), hubness(ids, usable, self.pairs), info)

    def _recall(self, found: np.ndarray) -> float:
        """Share of the k exact neighbours that are in the table, on a fixed sample of queries."""
        sample = np.random.default_rng(0).permutation(len(found))[:RECALL_SAMPLE]
        true, _ = ExactSearch(self.columns, self.of, self.links, self.device).top(self.columns[sample], self.of[sample], self.k)
        return recall(found[sample, : self.k], true)


def rows_digest(rows: np.ndarray) -> str:
    """Hexadecimal blake2b of 128 bits of a list of pair numbers, as a set."""
    return hashlib.blake2b(np.unique(np.asarray(rows, dtype="<i8")).tobytes(), digest_size=16).hexdigest()


def _gathered(features: FeatureRows, numbers: np.ndarray) -> np.ndarray:
    """The rows that take part [C, d]: fp64 where they are given in fp64, else fp32."""
    whole: np.ndarray | None = None
    for number, part in enumerate(_parts(features, numbers)):
        whole = np.empty((len(numbers), part.shape[1]), dtype=part.dtype) if whole is None else whole
        whole[number * AT_ONCE : number * AT_ONCE + len(part)] = part
    assert whole is not None
    return whole


def _parts(features: FeatureRows, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """The same rows, some at a time (one empty part where there are none), so that little memory is needed."""
    for at in range(0, max(1, len(numbers)), AT_ONCE):
        part = np.asarray(features[numbers[at : at + AT_ONCE]])
        yield part if part.dtype == np.float64 else part.astype(np.float32)


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    held = io.BytesIO()
    np.savez(held, **arrays)
    atomic_write(path, held.getvalue())


def _load_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return file["ids"], file["sims"]


def _wait_for(ready: Callable[[], bool]) -> None:
    while not ready():
        time.sleep(WAIT)
