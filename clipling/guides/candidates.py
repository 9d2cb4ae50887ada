"""Candidates for nearest neighbours by fp32 matrix products: tile by tile, without a pass that costs as much as the product.

Picking the highest of a row of similarities by sorting takes half as long as the product that made them. So the highest of every group of
a tile's columns is taken first, which reads the tile once in the order in which it lies, and only the best groups are looked into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

EXTRA = 16  # candidates beyond those that are needed
GROUP = 32  # columns of which the highest is taken first
SCORE_BYTES = 2**24  # of similarities held at a time: about what stays in a cache


def candidates(
    queries: np.ndarray,
    tiles: Callable[[], Iterable[Tensor]],
    excluded: tuple[np.ndarray, np.ndarray],
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
    best = _Best(len(asked), need + EXTRA, device)
    with full_precision():
        for rows, first, scores in _scores(asked, tiles(), barred):
            best.add(rows, first, scores)
        floor = best.values[:, min(need, best.seen) - 1] - margin if best.seen else best.values.new_zeros(len(asked))
        taken = (best.values >= floor[:, None]) & (best.values > -torch.inf)
        # Rows whose last candidate is as near as the last one needed may have further ones: they are looked through in full.
        unsure = taken[:, -1] & (best.seen > best.values.shape[1])
        taken[unsure] = False
        query, slot = taken.nonzero(as_tuple=True)
        found = [(query, best.columns[query, slot])]
        if bool(unsure.any()):
            numbers = unsure.nonzero().squeeze(1)
            found += _all_above(asked, numbers, floor, tiles(), barred)
    return torch.cat([q for q, _ in found]).cpu().numpy(), torch.cat([c for _, c in found]).cpu().numpy()


class _Best:
    """The `most` highest similarities of every query so far, and their columns: highest first, -inf where there are fewer.

    What was not kept is at most as high as the last that was.
    """

    def __init__(self, queries: int, most: int, device: str) -> None:
        self.values = torch.full((queries, most), -torch.inf, device=device)
        self.columns = torch.zeros((queries, most), dtype=torch.int64, device=device)
        self.seen = 0

    def add(self, rows: slice, first: int, scores: Tensor) -> None:
        """Similarities [b, c] of the queries `rows` and the columns from `first` on."""
        most, width = self.values.shape[1], scores.shape[1]
        self.seen = max(self.seen, first + width)
        places = _best_groups(scores, most)
        new = scores if places is None else scores.gather(1, places)
        if places is None:
            places = torch.arange(width, device=scores.device).expand(len(scores), -1)
        values, columns = torch.cat([self.values[rows], new], dim=1), torch.cat([self.columns[rows], places + first], dim=1)
        kept, slots = values.topk(most, dim=1)
        self.values[rows], self.columns[rows] = kept, columns.gather(1, slots)


def _best_groups(scores: Tensor, most: int) -> Tensor | None:
    """int64 [b, m]: columns among which are the `most` highest of each row [b, c]; None for all columns.

    Group g holds the columns g, g + n, g + 2 n, ...: the highest of all groups is then one pass over neighbouring numbers. An element of
    another group than the `most` best is at most as high as the worst of their maxima, of which there are `most`.
    """
    width = scores.shape[1]
    groups = width // GROUP
    if groups <= 2 * most:
        return None
    highest = scores[:, : groups * GROUP].unflatten(1, (GROUP, groups)).amax(dim=1)
    best = highest.topk(most, dim=1, sorted=False).indices
    places = (best[:, :, None] + torch.arange(0, groups * GROUP, groups, device=scores.device)).flatten(1)
    rest = torch.arange(groups * GROUP, width, device=scores.device).expand(len(scores), -1)
    return torch.cat([places, rest], dim=1)


def _scores(asked: Tensor, tiles: Iterable[Tensor], barred: tuple[np.ndarray, np.ndarray]) -> Iterator[tuple[slice, int, Tensor]]:
    """(queries, first column, similarities [b, c], valid until the next), -inf where barred (sorted by column)."""
    first, held = 0, None
    for columns in tiles:
        width = len(columns)
        at_once = max(1, min(len(asked), SCORE_BYTES // (4 * width)))
        if held is None or held.numel() < at_once * width:
            held = torch.empty(at_once * width, device=asked.device)
        here = slice(*np.searchsorted(barred[1], [first, first + width]))
        rows, places = torch.from_numpy(barred[0][here]), torch.from_numpy(barred[1][here] - first)
        for start in range(0, len(asked), at_once):
            part = slice(start, min(start + at_once, len(asked)))
            scores = held[: (part.stop - start) * width].view(-1, width)
            torch.mm(asked[part], columns.T, out=scores)
            mine = (rows >= start) & (rows < part.stop)
            scores[rows[mine] - start, places[mine]] = -torch.inf
            yield part, first, scores
        first += width


def _all_above(
    asked: Tensor, numbers: Tensor, floor: Tensor, tiles: Iterable[Tensor], barred: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(query, column) numbers of all that reach the floor of the queries `numbers`."""
    place = np.full(len(asked), -1)
    place[numbers.cpu().numpy()] = np.arange(len(numbers))
    some = place[barred[0]] >= 0
    for rows, first, scores in _scores(asked[numbers], tiles, (place[barred[0][some]], barred[1][some])):
        query, column = ((scores >= floor[numbers[rows], None]) & (scores > -torch.inf)).nonzero(as_tuple=True)
        yield numbers[rows][query], column + first


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
