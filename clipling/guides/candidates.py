"""Candidates for nearest neighbours by fp32 matrix products: tile by tile, with one cheap pass over the similarities.

Picking the highest of a row of similarities by partial sorting takes half as long as the product that made them. Here one pass takes the
highest of every `GROUP` columns; only groups whose highest can still be among the best of their query are looked into. A group is every
c / `GROUP`-th column of a tile of c: the maximum of whole runs of numbers takes half as long as that of neighbouring ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

EXTRA = 8  # candidates beyond those that are needed
GROUP = 32  # columns of which the highest is taken first
SCORE_BYTES = 2**23  # of similarities held at a time
PENDING = 2  # candidates a query, in multiples of those wanted, that are kept before the worse ones are dropped
LOWEST = float(torch.finfo(torch.float32).min)
Barred = tuple[np.ndarray, np.ndarray]


def candidates(
    queries: np.ndarray,
    tiles: Callable[[], Iterable[Tensor]],
    excluded: Barred,
    need: int,
    margin: float,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """(query, column) numbers, int64 [m] each: for every query all columns that can be among its `need` nearest.

    queries [B, d]. tiles: called for each pass over the columns, fp32 [c, d] one after the other. excluded: (query, column) numbers that
    are no candidates. margin: a column is left out only when it is that much below the `need`-th.
    """
    asked = tile(queries).to(device)
    by_column = np.argsort(excluded[1], kind="stable")
    barred = excluded[0][by_column], excluded[1][by_column]
    best = _Found(torch.full((len(asked),), LOWEST, device=device), need + EXTRA)
    with full_precision():
        for rows, first, scores in _scores(asked, tiles(), barred):
            best.add(rows, first, scores)
        rows, columns, values, last = best.sorted(need)
        floor = last - margin
        # Where the bar was raised above the floor, columns that can matter may have been dropped: those queries are asked again.
        unsure = best.bar > floor
        taken = (values >= floor[rows]) & ~unsure[rows]
        found = [(rows[taken], columns[taken])]
        if bool(unsure.any()):
            found.append(_all_above(asked, unsure.nonzero().squeeze(1), floor, tiles(), barred))
    return torch.cat([q for q, _ in found]).cpu().numpy(), torch.cat([c for _, c in found]).cpu().numpy()


class _Found:
    """Columns that reach the bar of their query; the bar rises to the `most`-th best similarity so far (never, without `most`).

    bar fp32 [B]: what was dropped was below it.
    """

    def __init__(self, bar: Tensor, most: int | None) -> None:
        self.bar, self.most = bar, most
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.count = 0

    def add(self, rows: slice, first: int, scores: Tensor) -> None:
        """Similarities [b, c] of the queries `rows` and the columns from `first` on; c is a multiple of `GROUP`."""
        groups = scores.shape[1] // GROUP
        grouped = scores.view(-1, GROUP, groups)
        highest = grouped.amax(dim=1)
        bar = self.bar[rows]
        if self.most is not None and first == 0 and groups >= self.most:  # so many columns reach the lowest of these
            torch.maximum(bar, highest.topk(self.most, dim=1, sorted=False).values.amin(dim=1), out=bar)
        group = _flat_nonzero(highest >= bar[:, None])
        row = group // groups
        values = grouped[row, :, group % groups]
        place = _flat_nonzero(values >= bar[row, None])
        inside, row = place // GROUP, row[place // GROUP]
        column = (place % GROUP) * groups + group[inside] % groups + first
        self.parts.append((row + rows.start, column, values.flatten()[place]))
        self.count += len(place)
        if self.most is not None and self.count > PENDING * self.most * len(self.bar):
            self._drop()

    def _drop(self) -> None:
        assert self.most is not None
        rows, columns, values, last = self.sorted(self.most)
        torch.maximum(self.bar, last, out=self.bar)
        kept = values >= self.bar[rows]
        self.parts = [(rows[kept], columns[kept], values[kept])]
        self.count = int(kept.sum()) if len(self.parts[0][0]) < PENDING * self.most * len(self.bar) else 0  # ties: not at every tile

    def sorted(self, place: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(rows, columns, similarities) so far by row, highest first, and the `place`-th similarity of every query (`LOWEST`: fewer)."""
        if not self.parts:
            none = self.bar.new_empty(0)
            return none.long(), none.long(), none, torch.full_like(self.bar, LOWEST)
        rows, columns, values = (torch.cat(same) for same in zip(*self.parts))
        bits = values.view(torch.int32)
        ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # whole numbers in the order of the floats
        order = _argsort((rows << 32) + (2**31 - ordered))
        rows, columns, values = rows[order], columns[order], values[order]
        start = torch.searchsorted(rows, torch.arange(len(self.bar), device=rows.device))
        index = start + place - 1
        there = index < torch.searchsorted(rows, torch.arange(len(self.bar), device=rows.device), right=True)
        last = torch.where(there, values[index.clamp(max=len(values) - 1)] if len(values) else self.bar, LOWEST)
        return rows, columns, values, last


def _all_above(asked: Tensor, numbers: Tensor, floor: Tensor, tiles: Iterable[Tensor], barred: Barred) -> tuple[Tensor, Tensor]:
    """(query, column) numbers of all that reach the floor of the queries `numbers`."""
    place = np.full(len(asked), -1)
    place[numbers.cpu().numpy()] = np.arange(len(numbers))
    some = place[barred[0]] >= 0
    found = _Found(floor[numbers].clamp(min=LOWEST), None)
    for rows, first, scores in _scores(asked[numbers], tiles, (place[barred[0][some]], barred[1][some])):
        found.add(rows, first, scores)
    rows, columns, _, _ = found.sorted(1)
    return numbers[rows], columns


def _scores(asked: Tensor, tiles: Iterable[Tensor], barred: Barred) -> Iterator[tuple[slice, int, Tensor]]:
    """(queries, first column, similarities [b, c], valid until the next), -inf where barred (sorted by column) or beyond the last."""
    first, held = 0, None
    for columns in tiles:
        count = len(columns)
        width = -(-count // GROUP) * GROUP
        at_once = max(1, min(len(asked), SCORE_BYTES // (4 * width)))
        if held is None or held.numel() < at_once * width:
            held = torch.empty(at_once * width, device=asked.device)
        here = slice(*np.searchsorted(barred[1], [first, first + count]))
        rows, places = torch.from_numpy(barred[0][here]), torch.from_numpy(barred[1][here] - first)
        for start in range(0, len(asked), at_once):
            part = slice(start, min(start + at_once, len(asked)))
            scores = held[: (part.stop - start) * width].view(-1, width)
            torch.mm(asked[part], columns.T, out=scores[:, :count])
            mine = (rows >= start) & (rows < part.stop)
            scores[rows[mine] - start, places[mine]] = -torch.inf
            scores[:, count:] = -torch.inf
            yield part, first, scores
        first += count


def _flat_nonzero(mask: Tensor) -> Tensor:
    """int64 [m]: numbers of the true elements. By numpy on the CPU, which is many times as quick."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.flatten().nonzero().squeeze(1)


def _argsort(keys: Tensor) -> Tensor:
    return torch.from_numpy(np.argsort(keys.numpy())) if keys.device.type == "cpu" else keys.argsort()


def tile(rows: np.ndarray) -> Tensor:
    """fp32 [c, d] of rows of any float type; memory-mapped ones are copied."""
    rows = rows if rows.flags.writeable and rows.flags.c_contiguous else np.array(rows)
    return torch.from_numpy(rows).float()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """fp32 matrix products in fp32, whatever the program has allowed for its training."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
