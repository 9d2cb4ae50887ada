"""CLIP-PING: frozen unimodal features of each pair's neighbours as further contrastive targets.

After "CLIP-PING: Boosting Lightweight Vision-Language Models with Proximus Intrinsic Neighbors Guidance"
(Thwal et al., arXiv 2412.03871). This is a reconstruction: the paper's own equations could not be read and no code of its
authors is public, so the losses below are our reading of its abstract. With v, u the student's image and text features, a,
b the bank's, p(i) and q(i) the neighbours of pair i in the image and the text space, and heads g_I, g_T into the bank spaces:

    nn   = 1/2 [ InfoNCE(g_I(v_i), a_p(i)) + InfoNCE(g_T(u_i), b_q(i)) ]
    xnn  = 1/2 [ InfoNCE(g_T(v_i), b_p(i)) + InfoNCE(g_I(u_i), a_q(i)) ]
    self = nn + xnn with p(i) = q(i) = i: plain feature supervision, a control and a part worth adding
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clipling.objectives.infonce import Cells, cells, cells_equal, full, in_blocks, info_nce_rows, within
from clipling.objectives.term import Batch, Term

# part: the InfoNCEs whose half sum it is, each (student's side, side of the bank, space in which the neighbour was found)
ROUTES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "nn": (("image", "image", "image"), ("text", "text", "text")),
    "xnn": (("image", "text", "image"), ("text", "image", "text")),
    "self": (
        ("image", "image", "self"),
        ("text", "text", "self"),
        ("image", "text", "self"),
        ("text", "image", "self"),
    ),
}
MAX_LOG_SCALE = math.log(100)


class Ping(Term):
    """Neighbour guidance: values `nn`, `xnn`, `self` in nats, those named in `parts`.

    A part that is not asked for costs nothing. `separate` gives each of the student's sides its own heads (shared heads tie
    the modalities); `symmetric` adds the bank's rows over the student's columns, both directions averaged. Every bank
    space has one learned log-scale. Targets never get a gradient.

    Column j is a further positive of row i when both have the same neighbour, and is ignored when its neighbour is i's own
    pair or one of i's other neighbours, or when i and j are not negatives of each other (`batch.same`). Rows without a
    neighbour (id -1) are neither rows nor columns; the mean is over the rows that have one, in all processes together.
    """

    def __init__(self, parts: Sequence[str] = ("nn", "xnn"), *, separate: bool = False, symmetric: bool = False):
        super().__init__()
        unknown = [part for part in parts if part not in ROUTES]
        if isinstance(parts, str) or unknown or not parts or len(set(parts)) < len(parts):
            raise ValueError(f"parts={parts!r}: expected some of {tuple(ROUTES)}, each once")
        self.parts = tuple(parts)
        self.separate, self.symmetric = separate, symmetric
        routes = [route for part in self.parts for route in ROUTES[part]]
        self.spaces = sorted({space for _, _, space in routes})
        # by bank first: whatever the parts, shared heads are drawn in the same order, so the arms of an ablation start alike
        self.projections = sorted({(side, bank) for side, bank, _ in routes}, key=lambda pair: pair[::-1])
        self.log_scale = nn.ParameterDict({bank: torch.tensor(math.log(1 / 0.07)) for bank in ("image", "text")})
        self.heads = nn.ModuleDict()

    @property
    def needs(self) -> frozenset[str]:
        return Term.needs | {f"neighbours.{space}" for space in self.spaces}

    def setup(self, dims: Mapping[str, int]) -> None:
        """Builds the heads: `dims` holds the sizes of `student`, `image` and `text` features."""
        for side, bank in self.projections:
            name = self._head(side, bank)
            if name not in self.heads:
                self.heads[name] = nn.Linear(dims["student"], dims[bank], bias=False)

    def parameter_groups(self) -> Iterable[dict]:
        return [{"params": list(self.log_scale.values()), "weight_decay": 0.0}]

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            for scale in self.log_scale.values():
                scale.clamp_(0, MAX_LOG_SCALE)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        tables = {space: _table(batch, space, self.symmetric) for space in self.spaces}
        queries = {(side, bank): self._query(batch, side, bank) for side, bank in self.projections}
        scales = {bank: scale.exp() for bank, scale in self.log_scale.items()}
        targets: dict[tuple[str, str], Tensor] = {}  # by head and space: both sides of the student share heads, and targets with them
        values = {}
        for part in self.parts:
            losses = []
            for side, bank, space in ROUTES[part]:
                name = self._head(side, bank)
                if (name, space) not in targets:
                    targets[name, space] = self._targets(batch, name, bank, space, tables[space])
                losses.append(self._contrast(queries[side, bank], targets[name, space], scales[bank], tables[space]))
            values[part] = torch.stack(losses).sum() / 2
        return values

    def _head(self, side: str, bank: str) -> str:
        return f"{side}_to_{bank}" if self.separate else f"to_{bank}"

    def _query(self, batch: Batch, side: str, bank: str) -> _Queries:
        """The student's rows, and what makes g(row) a unit row.

        g(v) . a = v . (a W) for a head g(v) = W v: similarities are computed in whichever space is cheaper. In the student's, the norm
        of W v is the root of v (W^T W) v.
        """
        student = full(getattr(batch.main, f"{side}_all" if self.symmetric else side))
        weight = full(self.heads[self._head(side, bank)].weight)
        with torch.autocast(student.device.type, enabled=False):
            if _folded(weight, len(batch.pair_all)):
                square = ((student @ (weight.T @ weight)) * student).sum(dim=1)
                return _Queries(student, square.clamp_min(1e-24).rsqrt())
            rows = student @ weight.T
            return _Queries(rows, 1 / torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-12))

    def _targets(self, batch: Batch, head: str, bank: str, space: str, table: _Table) -> Tensor:
        """The bank's rows of all valid columns [M, d_bank], or folded into the student's space [M, d]."""
        weight = full(self.heads[head].weight)
        rows = getattr(batch.neighbours[space], bank).detach().to(weight.dtype)
        rows = rows if table.columns is None else rows[table.columns]
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ weight if _folded(weight, len(batch.pair_all)) else rows

    def _contrast(self, queries: _Queries, targets: Tensor, scale: Tensor, table: _Table) -> Tensor:
        """Sum over the valid local rows, divided so that the mean over processes is the mean over all valid rows."""
        if table.size == 0:  # nothing to learn from, but every parameter keeps its place in the graph
            return (queries.rows * queries.unit[:, None]).sum() * scale * 0
        if table.columns is not None:
            queries = queries.only(table.columns if self.symmetric else table.rows)
        rows = queries.only(table.local) if self.symmetric else queries

        def forth(block: slice) -> Tensor:
            return _summed(_similarity(rows.only(block), targets, scale), table, table.ignored, block)

        def back(block: slice) -> Tensor:
            return _summed(_similarity(queries, targets[table.local][block], scale).T, table, table.ignored_back, block)

        count = len(table.target)
        loss = in_blocks(forth, count, table.size)
        if self.symmetric:
            loss = (loss + in_blocks(back, count, table.size)) / 2
        return loss / table.divisor


def _folded(weight: Tensor, columns: int) -> bool:
    """Whether folding `columns` targets [N, d_bank] through weight [d_bank, d] takes fewer products than comparing them as they are."""
    bank, student = weight.shape
    return student * (bank + columns) < columns * bank


class _Queries(NamedTuple):
    """Student features in the space of the similarities; a head's unit rows are known by `unit` alone.

    Unit rows are not written out: it is cheaper to scale similarities [n, N] than rows, forward and backward.
    """

    rows: Tensor  # [n, d] or, where that is smaller, [n, d_bank]; of all N rows where they serve as columns too
    unit: Tensor  # [n] or [N]: 1 / norm of each projected row

    def only(self, which: Tensor | slice) -> _Queries:
        return _Queries(self.rows[which], self.unit[which])


def _similarity(queries: _Queries, targets: Tensor, scale: Tensor) -> Tensor:
    """fp32 logits of unit queries over bank rows."""
    with torch.autocast(targets.device.type, enabled=False):
        return queries.rows @ targets.T * (scale * queries.unit)[:, None]


def _summed(logits: Tensor, table: _Table, ignored: Cells | None, block: slice) -> Tensor:
    """The summed cross-entropies of a block of the local rows."""
    return info_nce_rows(logits, table.target[block], within(table.positives, block), within(ignored, block)).sum()


@dataclass(frozen=True)
class _Table:
    """What one neighbour space says about the rows of a batch, for all losses that use it.

    Rows without a neighbour are left out first; all numbers below count the remaining rows.
    """

    size: int  # M: rows of the global batch with a neighbour
    local: slice  # where the local ones are among them
    target: Tensor  # [m] own column of each local row
    divisor: float  # local valid rows summed / divisor, averaged over processes, is the mean over all valid rows
    rows: Tensor | None  # [m] their numbers among the n local rows; None when every row has a neighbour
    columns: Tensor | None  # [M] their numbers in the global batch; None when every row has one
    positives: Cells | None
    ignored: Cells | None
    ignored_back: Cells | None  # for the bank's rows over the student's columns


def _table(batch: Batch, space: str, symmetric: bool) -> _Table:
    found = batch.neighbours[space]
    ids, own, others, alike = found.ids, batch.pair_all, found.others, cells(batch.same)
    n, first, total = len(batch.pair), batch.first, len(ids)
    rows = columns = None
    local = slice(first, first + n)
    if bool((ids < 0).any()):
        columns = (ids >= 0).nonzero().squeeze(1)
        start, stop = torch.searchsorted(columns, columns.new_tensor([first, first + n])).tolist()
        local, rows = slice(start, stop), columns[start:stop] - first
        ids, own, others, alike = ids[columns], own[columns], others[columns], _among(alike, rows, columns, n, total)
    target = torch.arange(local.start, local.stop, device=ids.device)
    banned = torch.cat([own[:, None], others], dim=1)
    ignored = _different(ids, local, _joined(cells_equal(banned[local], ids), alike))
    back = None
    if symmetric:
        i, j = cells_equal(banned, ids[local])
        back = _different(ids, local, _joined((j, i), alike))
    i, j = cells_equal(ids[local, None], ids)
    more = j != target[i]
    return _Table(
        size=len(ids),
        local=local,
        target=target,
        divisor=len(ids) * n / total,
        rows=rows,
        columns=columns,
        positives=_some((i[more], j[more])),
        ignored=ignored,
        ignored_back=back,
    )


def _among(found: Cells | None, rows: Tensor, columns: Tensor, n: int, total: int) -> Cells | None:
    """Cells of [n, N] among some of its rows and columns, counted there."""
    if found is None:
        return None
    places = []
    for numbers, size in ((rows, n), (columns, total)):
        place = numbers.new_full((size,), -1)
        place[numbers] = torch.arange(len(numbers), device=numbers.device)
        places.append(place)
    i, j = places[0][found[0]], places[1][found[1]]
    keep = (i >= 0) & (j >= 0)
    return _some((i[keep], j[keep]))


def _joined(one: Cells, other: Cells | None) -> Cells:
    return one if other is None else (torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))


def _different(ids: Tensor, local: slice, found: Cells) -> Cells | None:
    """Without cells whose row and column have the same neighbour: those are positives, the own column among them."""
    keep = ids[local][found[0]] != ids[found[1]]
    return _some((found[0][keep], found[1][keep]))


def _some(found: Cells) -> Cells | None:
    return found if found[0].numel() else None
