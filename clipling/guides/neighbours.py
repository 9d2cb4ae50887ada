"""Neighbour tables: for every training pair the k nearest other training pairs in one feature space.

Banks are frozen, so neighbours are found once and not at every step: that is what makes the guidance nearly free.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipling.errors import UserError
from clipling.guides.encoders import chosen_device
from clipling.guides.job import FeatureRows, Job, Task
from clipling.guides.progress import Progress, silent
from clipling.guides.table import Table, rows_digest
from clipling.guides.update import Base

__all__ = ["EXACT_UP_TO", "METHODS", "Base", "Table", "build_table", "rows_digest"]

METHODS = ("exact", "faiss")
EXACT_UP_TO = {"cpu": 200_000, "cuda": 4_000_000}  # columns; method="auto" is exact up to here and faiss above


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
    base: Base | None = None,
    progress: Progress | None = None,
) -> Table:
    """The k nearest allowed training pairs of every training pair.

    features: unit rows [P, d], one a pair; with `owner` int64 [Q] one a caption, of pair owner[i], and the table is by caption.
    rows: the training pairs; only they are queries and neighbours. links: `Pairs.links()`; a pair and those that it shares
    a class with are never its neighbours. valid: bool [P]. Pairs that are not valid, and rows of zeros, take no part.
    block: queries in one file while the table is made; the table does not depend on it.
    cap: most pairs that may have one pair as neighbour (`hubness.capped`), at least k.
    folder: where the finished table is looked for and kept; a killed build continues there.
    method: "exact", "faiss", or "auto": exact up to EXACT_UP_TO columns of the device, or where an exact table lies in the folder.
    rank, world: this process's share when several make one table (needs a folder); they wait for each other by a `processes.Watch`.
    base: an older exact table, from which an exact one is made without comparing old pairs with old pairs again.
    Memory: ids and similarities, a block; the columns lie in a memory-mapped file of the folder where `features` are `Rows`.
    Raises UserError for settings that cannot be met, for a base that does not fit, and when another process is lost.
    """
    if k < 1:
        raise UserError(f"k = {k} neighbours; expected at least 1")
    if cap is not None and cap < k:
        raise UserError(f"the cap on in-degrees is {cap}, below k = {k}: not every pair could get k neighbours. Raise the cap or lower k.")
    if method not in (*METHODS, "auto"):
        raise UserError(f"method {method!r}; expected exact, faiss or auto")
    if world > 1 and folder is None:
        raise ValueError("several processes need a folder to make a table together")
    if base is not None and (method == "faiss" or cap is not None or owner is not None):
        raise UserError("only an exact table by pair without a cap can be brought up to date; leave out the cap, and query by the mean")
    device, progress = chosen_device(device), progress or silent
    task = Task(features, np.unique(np.asarray(rows, dtype=np.int64)), links, np.asarray(valid), k, cap, owner, space)
    exact = Job(task, "exact", device, block, base)
    limit = EXACT_UP_TO.get(device.split(":")[0], EXACT_UP_TO["cpu"])
    job = exact if method == "exact" or base is not None else Job(task, "faiss", device, block)
    if method == "auto" and (len(task.numbers) <= limit or (folder is not None and exact.kept(exact.names(Path(folder))[1]) is not None)):
        job = exact
    return job.alone(progress) if folder is None else job.resumable(Path(folder), rank, world, progress)
