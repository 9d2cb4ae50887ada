"""Candidates for nearest neighbours by matrix products: tile by tile, with one cheap pass over the similarities.

Picking the highest of a row of similarities by partial sorting takes half as long as the product that made them. Here one pass takes the
highest of every `GROUP` columns; only groups whose highest can still be among the best of their query are looked into. Similarities lie
column by column: libraries pack the second factor of a product anew each time, and queries are fewer than columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from clipling.guides.columns import tile
from clipling.guides.precision import FP32, Precision, plain_products, quickest

GROUP = 32  # columns of which the highest is taken first
STEPS = (64, 1024)  # queries and columns are filled up to multiples of these: a library makes a kernel for every new shape
SCORE_BYTES = 2**23  # of similarities held at a time
PENDING = 2  # candidates a query, in multiples of those wanted, that are kept before the worse ones are dropped
SPARE = 8  # candidates a query that are always kept without looking back
HELD = 2**21  # candidates of all queries of a pass, that a pass of fewer queries is better for: each takes some 60 bytes, and a ranking
RANKED_SHARE = 1 / 512  # of the columns: ranking so many in vain takes as long as a product of fp32 instead of a quicker one
LOWEST = float(torch.finfo(torch.float32).min)
Barred = tuple[np.ndarray, np.ndarray]
Tiles = Callable[[torch.dtype], Iterable[Tensor]]


class TooMany(Exception):
    """More columns than are worth ranking lie within the margin of the precision, or than memory is meant for: ask fewer queries."""


def candidates(
    queries: np.ndarray, tiles: Tiles, columns: int, excluded: Barred, need: int, precision: Precision, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """(query, column) numbers, int64 [m] each: for every query all columns that can be among its `need` nearest.

    queries [B, d]. tiles: gives so many columns in a dtype, [c, d] one after the other. excluded: (query, column) numbers that are no
    candidates. A column is left out only when it is the margin of the precision below the `need`-th.
    Raises TooMany where so many are left, in another precision than fp32, that fp32 would be quicker; in fp32 where several queries leave
    more than `HELD`.
    """
    asked = tile(queries, precision.dtype).to(device)
    by_column = np.argsort(excluded[1], kind="stable")
    barred = excluded[0][by_column], excluded[1][by_column]
    best = _Found(len(asked), need, precision.margin(queries.shape[1]), device)
    if precision == FP32:
        most = HELD if len(asked) > 1 else float("inf")
    else:
        most = len(asked) * (PENDING * need + RANKED_SHARE * columns)
    with plain_products():
        for rows, first, scores in _scores(asked, tiles(precision.dtype), barred):
            best.add(rows, first, scores)
            if best.count > most:
                best.drop()
                if best.count > most:
                    raise TooMany
    rows, found = best.all()
    return rows.cpu().numpy(), found.cpu().numpy()


class Chooser:
    """`candidates` in the quickest precision of the device; in fp32 from where too many columns lie within the margin of that one."""

    def __init__(self, device: str) -> None:
        self.device, self.precision = device, quickest(device)

    def __call__(self, queries: np.ndarray, tiles: Tiles, columns: int, excluded: Barred, need: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return candidates(queries, tiles, columns, excluded, need, self.precision, self.device)
        except TooMany:
            if self.precision == FP32:  # nothing slower would leave fewer: ask fewer queries
                raise
            self.precision = FP32
            return candidates(queries, tiles, columns, excluded, need, self.precision, self.device)


class _Found:
    """Columns that reach the bar of their query, which rises: the margin below its `need`-th best similarity so far."""

    def __init__(self, queries: int, need: int, margin: float, device: str) -> None:
        self.bar = torch.full((queries,), LOWEST, device=device)
        self.need, self.margin = need, margin
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.count, self.room = 0, PENDING * (need + SPARE) * queries

    def add(self, rows: slice, first: int, scores: Tensor) -> None:
        """Similarities [c, b] of the columns from `first` on and the queries `rows`; c is a multiple of `GROUP`."""
        grouped = scores.unflatten(0, (-1, GROUP))
        highest = _highest(grouped)
        bar = self.bar[rows]
        if first == 0 and len(highest) >= self.need:  # so many columns reach the lowest of these
            lowest = highest.topk(self.need, dim=0, sorted=False).values.amin(dim=0)
            torch.maximum(bar, torch.where(lowest > 0, lowest - self.margin, LOWEST), out=bar)
        place = _flat_nonzero(highest >= bar)
        group, row = place // len(bar), place % len(bar)
        values = grouped[group, :, row].float()
        place = _flat_nonzero(values >= bar[row, None])
        inside = place // GROUP
        self.parts.append((row[inside] + rows.start, group[inside] * GROUP + place % GROUP + first, values.flatten()[place]))
        self.count += len(place)
        if self.count > self.room:
            self.drop()

    def all(self) -> tuple[Tensor, Tensor]:
        """(queries, columns) that may be among the nearest."""
        self.drop()
        rows, columns, _ = self.parts[0]
        return rows, columns

    def drop(self) -> None:
        """Raises the bars and drops what is below them."""
        rows, columns, values = self._sorted()
        queries = torch.arange(len(self.bar), device=rows.device)
        place = torch.searchsorted(rows, queries) + self.need - 1
        there = place < torch.searchsorted(rows, queries, right=True)
        self.bar[there] = torch.maximum(self.bar[there], values[place[there]] - self.margin)
        kept = values >= self.bar[rows]
        self.parts, self.count = [(rows[kept], columns[kept], values[kept])], int(kept.sum())
        self.room = max(self.room, 2 * self.count)  # ties: not at every tile

    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, columns, similarities) so far by row, highest first."""
        if not self.parts:
            none = self.bar.new_empty(0)
            return none.long(), none.long(), none
        rows, columns, values = (torch.cat(same) for same in zip(*self.parts))
        bits = values.view(torch.int32)
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # whole numbers in the order of the floats
        order = _argsort((rows << 32) + (2**31 - ordered))
        return rows[order], columns[order], values[order]


def _highest(grouped: Tensor) -> Tensor:
    """fp32 [groups, b]: no less than the highest of each group [groups, GROUP, b], and just that where it is above 0.

    In bf16 the bits are compared as whole numbers, which takes a quarter of the time and orders positive numbers as they are; any positive
    one is above all negative ones.
    """
    if grouped.dtype != torch.bfloat16:
        return grouped.amax(dim=1).float()
    return grouped.view(torch.int16).amax(dim=1).clamp_(min=0).view(torch.bfloat16).float()


def _scores(asked: Tensor, tiles: Iterable[Tensor], barred: Barred) -> Iterator[tuple[slice, int, Tensor]]:
    """(queries, first column, similarities [c, b], valid until the next), -inf where barred (sorted by column) or beyond the last."""
    first, held = 0, None
    count, asked = len(asked), _filled(asked, STEPS[0])
    for columns in tiles:
        here = slice(*np.searchsorted(barred[1], [first, first + len(columns)]))
        rows, places = torch.from_numpy(barred[0][here]), torch.from_numpy(barred[1][here] - first)
        there, columns = len(columns), _filled(columns, STEPS[1])
        width = len(columns)
        at_once = max(STEPS[0], SCORE_BYTES // (asked.dtype.itemsize * width) // STEPS[0] * STEPS[0])
        if held is None or held.numel() < at_once * width:
            held = torch.empty(at_once * width, dtype=asked.dtype, device=asked.device)
        for start in range(0, count, at_once):
            some = asked[start : start + at_once]
            part = slice(start, min(start + at_once, count))
            scores = torch.mm(columns, some.T, out=held[: len(some) * width].view(width, -1))[:, : part.stop - start]
            mine = (rows >= start) & (rows < part.stop)
            scores[places[mine], rows[mine] - start] = -torch.inf
            scores[there:] = -torch.inf
            yield part, first, scores
        first += there


def _filled(rows: Tensor, step: int) -> Tensor:
    """With rows of zeros up to a multiple of the step."""
    missing = -len(rows) % step
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _flat_nonzero(mask: Tensor) -> Tensor:
    """int64 [m]: numbers of the true elements. By numpy on the CPU, which is many times as quick."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.flatten().nonzero().squeeze(1)


def _argsort(keys: Tensor) -> Tensor:
    return torch.from_numpy(np.argsort(keys.numpy())) if keys.device.type == "cpu" else keys.argsort()
