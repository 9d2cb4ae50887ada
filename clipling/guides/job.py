"""A neighbour table being made: what decides it, its blocks, and how processes share them.

In the folder `<table>.parts` lie, until the table is finished, `columns.npy` (the rows that take part, memory-mapped by all processes),
`cells.npz` (of an approximate table) and one file for every block of queries. Each is whole or absent; a killed build goes on from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipling.errors import UserError
from clipling.guides.approximate import Cells, CellSearch, learn_cells, recall
from clipling.guides.columns import is_array
from clipling.guides.encoders import device_text
from clipling.guides.hubness import capped, hubness
from clipling.guides.progress import Progress
from clipling.guides.rows import write_parts
from clipling.guides.search import ExactSearch, Search
from clipling.guides.table import FORMAT, Table, load_arrays, rows_digest, save_arrays
from clipling.guides.update import Base, UpdateSearch
from clipling.processes import Watch
from clipling.store import alone, atomic_produce

AT_ONCE = 1024
CAPPED_DEPTH = 64  # further candidates of each query where in-degrees are capped
RECALL_SAMPLE = 1000


class FeatureRows(Protocol):
    """An array [n, d] or `Rows`: what is read here is `features[int64 numbers]` -> [m, d]."""

    def __len__(self) -> int: ...

    def __getitem__(self, numbers: Any) -> np.ndarray: ...


class Task:
    """What decides a table, whatever makes it: arguments as of `build_table`.

    numbers int64 [C]: the feature rows that take part, sorted by pair. of int64 [C]: their pairs.
    """

    def __init__(
        self,
        features: FeatureRows,
        rows: np.ndarray,
        links: Sequence[Sequence[int]],
        valid: np.ndarray,
        k: int,
        cap: int | None,
        owner: np.ndarray | None,
        space: str,
    ) -> None:
        self.features, self.rows, self.links, self.k, self.cap, self.owner, self.space = features, rows, links, k, cap, owner, space
        self.pairs, self.queries = len(valid), len(features)
        self.depth = k if cap is None else k + CAPPED_DEPTH
        usable = np.zeros(self.pairs, dtype=bool)
        usable[rows] = valid[rows]
        of = np.arange(self.pairs) if owner is None else np.asarray(owner, dtype=np.int64)
        if len(of) != self.queries:
            raise ValueError(f"{self.queries} feature rows for {len(of)} {'pairs' if owner is None else 'captions'}")
        numbers = np.flatnonzero(usable[of])
        numbers = numbers[np.argsort(of[numbers], kind="stable")]  # a search wants its columns sorted by pair
        # Centring may leave nothing of a row (when all rows are alike), and captions may cancel in their mean.
        present = np.concatenate([(part != 0).any(axis=1) for part in self._parts(numbers)])
        self.numbers = numbers[present]
        self.of = of[self.numbers]
        first = next(self._parts(self.numbers[:1]))
        self.dim, self.dtype = first.shape[1], first.dtype

    def digest(self, method: str) -> str:
        """Of everything that decides the table."""
        total = hashlib.blake2b(digest_size=16)
        by_caption, kind = self.owner is not None, "float64" if self.dtype == np.float64 else "float32"
        settings = [FORMAT, self.space, self.k, self.depth, self.cap, method, self.pairs, self.queries, by_caption, kind]
        total.update(json.dumps([*settings, (len(self.numbers), self.dim)]).encode())
        for array in (self.rows, self.numbers, self.of):
            total.update(array)
        for part in self._parts(self.numbers):  # the same rows as fp16 or fp32 give the same table
            total.update(np.ascontiguousarray(part, dtype=kind))
        for pair in self.rows.tolist():
            total.update(json.dumps(list(self.links[pair])).encode() if self.links[pair] else b"[]")
        return total.hexdigest()

    def gather(self, path: Path | None) -> np.ndarray:
        """The rows that take part [C, d] as they are given; memory-mapped from `path`, which is made where it is absent."""
        shape = len(self.numbers), self.dim
        if path is not None and not isinstance(self.features, np.ndarray):
            if not is_array(path, shape, self.dtype):
                parts = self._parts(self.numbers)
                atomic_produce(path, lambda temporary: write_parts(temporary, parts, shape, self.dtype))
            return np.load(path, mmap_mode="r")
        whole = np.empty(shape, self.dtype)
        for number, part in enumerate(self._parts(self.numbers)):
            whole[number * AT_ONCE : number * AT_ONCE + len(part)] = part
        return whole

    def _parts(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Feature rows some at a time (one empty part where there are none), so that little memory is needed."""
        for at in range(0, max(1, len(numbers)), AT_ONCE):
            yield np.asarray(self.features[numbers[at : at + AT_ONCE]])


class Job:
    """A task being done by one method. block: queries in one file. base: an older table that is brought up to date."""

    def __init__(self, task: Task, method: str, device: str, block: int, base: Base | None = None) -> None:
        self.task, self.method, self.device, self.block, self.base = task, method, device, block, base
        self.parts: Path | None = None

    @cached_property
    def columns(self) -> np.ndarray:
        """The rows that take part, when first asked for: a table that is only loaded needs none."""
        return self.task.gather(None if self.parts is None else self.parts / "columns.npy")

    @cached_property
    def cells(self) -> Cells:
        """Of an approximate table."""
        path = None if self.parts is None else self.parts / "cells.npz"
        return learn_cells(self.columns, self.task.of, self.task.links, self.task.k, path)

    @cached_property
    def search(self) -> Search:
        task = self.task
        if self.method == "faiss":
            return CellSearch(self.columns, task.of, task.links, self.cells, self.parts)
        exact = partial(ExactSearch, links=task.links, device=self.device)
        if self.base is None:
            return exact(self.columns, task.of, scratch=self.parts)
        return UpdateSearch(self.base, exact, self.columns, task.of, task.links)

    @cached_property
    def order(self) -> np.ndarray:
        """int64 [C]: the order in which columns are queries. Those of one cell are asked together."""
        return np.argsort(self.cells.cell, kind="stable") if self.method == "faiss" else np.arange(len(self.task.numbers))

    @cached_property
    def mark(self) -> str:
        """In the names of blocks: how many queries they have, and of which cells. Cells that were lost may be learned otherwise."""
        if self.method == "exact":
            return f"{self.block}"
        learned = hashlib.blake2b(self.cells.cell, digest_size=4)
        learned.update(np.ascontiguousarray(self.cells.near))
        return f"{self.block}-{learned.hexdigest()}"

    @property
    def what(self) -> str:
        where = device_text(self.device if self.method == "exact" else "cpu")
        return f"{self.task.space} neighbours ({self.method}, {self.task.dim} features, on {where})"

    def starts(self) -> range:
        return range(0, len(self.task.numbers), self.block)

    def one_block(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        return self.search.of_columns(self.order[start : start + self.block], self.task.depth)

    def alone(self, progress: Progress) -> Table:
        """The table, without files."""
        made, count = [], len(self.task.numbers)
        progress(self.what, 0, count)
        for start in self.starts():
            made.append(self.one_block(start))
            progress(self.what, min(start + self.block, count), count)
        return self.finished(made)

    def names(self, folder: Path) -> tuple[str, Path]:
        """Digest, and the file of the finished table."""
        digest = self.task.digest({"exact": "exact", "faiss": "faiss cells"}[self.method])
        return digest, folder / f"{self.task.space}-{digest[:16]}.npz"

    def kept(self, final: Path) -> Table | None:
        """The finished table; None when there is none or it is damaged: it is only a cache, and is made again."""
        try:
            return Table.load(final, self.task.rows)
        except UserError:
            return None

    def resumable(self, folder: Path, rank: int, world: int, progress: Progress) -> Table:
        """The table in `folder`: loaded, or made from the blocks that are there and those that are missing."""
        with alone(folder, "making neighbour tables in", wait=True) if rank == 0 else contextlib.nullcontext():
            return self._resumable(folder, rank, world, progress)

    def _resumable(self, folder: Path, rank: int, world: int, progress: Progress) -> Table:
        digest, final = self.names(folder)
        made = self.kept(final)
        self.parts = folder / f"{final.stem}.parts"
        if made is None:
            with Watch(self.parts, rank, world, "a neighbour table") as watch:
                self._together(digest, final, watch, progress)
            made = Table.load(final, self.task.rows)
        if rank == 0:
            shutil.rmtree(self.parts, ignore_errors=True)
            for left in folder.glob(f".{final.name}.*.tmp"):
                left.unlink(missing_ok=True)
        return made

    def _together(self, digest: str, final: Path, watch: Watch, progress: Progress) -> None:
        """Makes this process's blocks; the first process prepares what all read, and joins the blocks, while the others wait."""
        assert self.parts is not None
        parts, done = self.parts, lambda: self.kept(final) is not None
        ready = parts / f"ready-{self.block}"
        if watch.rank == 0:
            _ = self.search  # with the files that it reads
            ready.parent.mkdir(parents=True, exist_ok=True)
            ready.touch()
        else:
            watch.until(lambda: ready.is_file() or done())
            if done():
                return
        files = {start: parts / f"{start:010d}-{self.mark}.npz" for start in self.starts()}
        self._make([start for start in self.starts() if start // self.block % watch.world == watch.rank], files, progress)
        # a second run that makes the same table may be quicker, and removes the blocks
        watch.until(done if watch.rank > 0 else lambda: all(file.is_file() for file in files.values()) or done())
        if watch.rank == 0 and not done():
            self.finished([self._block(start, files[start]) for start in self.starts()], digest).save(final)

    def _block(self, start: int, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """A block that is on disk, made again where it is damaged."""
        try:
            return load_arrays(file)
        except Exception:  # as in `Table.load`
            return self.one_block(start)

    def _make(self, starts: Sequence[int], files: dict[int, Path], progress: Progress) -> None:
        sizes = {start: min(self.block, len(self.task.numbers) - start) for start in starts}
        done = sum(sizes[start] for start in starts if files[start].is_file())
        progress(self.what, done, sum(sizes.values()))
        for start in starts:
            if not files[start].is_file():
                ids, sims = self.one_block(start)
                save_arrays(files[start], ids=ids, sims=sims)
                done += sizes[start]
                progress(self.what, done, sum(sizes.values()))

    def finished(self, blocks: Sequence[tuple[np.ndarray, np.ndarray]], digest: str = "") -> Table:
        """Caps, then puts the rows where they belong."""
        task, depth = self.task, self.task.depth
        found, near = np.empty((len(task.numbers), depth), np.int64), np.empty((len(task.numbers), depth))
        if blocks:
            found[self.order] = np.concatenate([b[0] for b in blocks])
            near[self.order] = np.concatenate([b[1] for b in blocks])
        quality = 1.0 if self.method == "exact" else self._recall(found)
        if task.cap is not None:
            found, near = capped(found, near, task.k, task.cap)
        ids = np.full((task.queries, task.k), -1, dtype=np.int64)
        sims = np.full((task.queries, task.k), -np.inf)
        ids[task.numbers], sims[task.numbers] = found, near
        method = "exact" if self.method == "exact" else self.search.method
        info = {"method": method, "recall": quality, "k": task.k, "cap": task.cap, "by_caption": task.owner is not None, "digest": digest}
        return Table(ids, sims, rows_digest(task.rows), hubness(ids, np.unique(task.of), task.pairs), info)

    def _recall(self, found: np.ndarray) -> float:
        """Share of the k exact neighbours that are in the table, on a fixed sample of queries."""
        sample = np.random.default_rng(0).permutation(len(found))[:RECALL_SAMPLE]
        true, _ = ExactSearch(self.columns, self.task.of, self.task.links, self.device).of_columns(sample, self.task.k)
        return recall(found[sample, : self.task.k], true)
