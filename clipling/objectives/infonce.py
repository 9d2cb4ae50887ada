"""Cross-entropy over similarities, with columns that are further positives or that do not count.

Masks are cells: two index tensors (rows, columns), because false negatives are few: what is not masked costs nothing,
and a batch without any takes the plain path bit for bit. Similarities are computed in fp32 or better, also under
autocast: at a scale of 100 half precision would lose the differences that the loss is made of.

Up to `MOST_LOGITS` similarities are made at once. Above that they are made in blocks of rows, and made again block by block in the
backward pass (`in_blocks`), so that a batch of N pairs never needs its N x N matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Cells = tuple[Tensor, Tensor]  # rows [c], columns [c]: no cell twice
MOST_LOGITS = 2**24  # 64 MiB of fp32: one block up to a batch of 4,096


def full(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is when it has more."""
    return x if x.dtype == torch.float64 else x.float()


def similarity(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """[n, N] fp32 logits `scale * rows @ columns^T` of rows [n, d] and columns [N, d], in open_clip's order of products."""
    with torch.autocast(rows.device.type, enabled=False):
        scaled = full(scale) * full(rows)
        return scaled @ columns.to(scaled.dtype).T


def info_nce_rows(logits: Tensor, target: Tensor, positives: Cells | None = None, ignored: Cells | None = None) -> Tensor:
    """[n] cross-entropy in nats of each row of logits [n, N] whose own column is target [n].

    The target is uniform over the own column and the columns of the row in `positives`; columns in `ignored` are neither
    positives nor negatives. No cell may be in both, and neither may hold an own column.
    """
    if ignored is not None:
        logits = logits.index_put(ignored, logits.new_full((), float("-inf")))
    if positives is None:
        return F.cross_entropy(logits, target, reduction="none")
    logp = F.log_softmax(logits, dim=1)
    own = logp.gather(1, target[:, None]).squeeze(1)
    rows = positives[0]
    count = torch.ones_like(own).index_add(0, rows, own.new_ones(rows.shape))
    return -own.index_add(0, rows, logp[positives]) / count


def info_nce(logits: Tensor, target: Tensor, positives: Cells | None = None, ignored: Cells | None = None) -> Tensor:
    """The mean of `info_nce_rows` over the rows; without masks exactly `F.cross_entropy(logits, target)`."""
    if positives is None and ignored is None:
        return F.cross_entropy(logits, target)
    return info_nce_rows(logits, target, positives, ignored).mean()


def contrast(
    rows: Tensor, columns: Tensor, scale: Tensor, target: Tensor, positives: Cells | None = None, ignored: Cells | None = None
) -> Tensor:
    """`info_nce(similarity(rows, columns, scale), target, ...)` of rows [n, d] and columns [N, d], in blocks where there are many."""
    if len(row_blocks(len(rows), len(columns))) == 1:
        return info_nce(similarity(rows, columns, scale), target, positives, ignored)

    def part(block: slice) -> Tensor:
        logits = similarity(rows[block], columns, scale)
        return info_nce_rows(logits, target[block], within(positives, block), within(ignored, block)).sum()

    return in_blocks(part, len(rows), len(columns)) / len(rows)


def in_blocks(part: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    """The sum of `part(block)` over blocks of rows, where a part makes [block, columns] logits: a scalar.

    With more than one block, what a part makes is dropped after its forward pass and made again in its backward pass: memory is
    that of one block. One block is the plain call. A part must draw nothing at random.
    """
    blocks = row_blocks(rows, columns)
    if len(blocks) == 1:
        return part(blocks[0])
    return torch.stack([checkpoint(part, block, use_reentrant=False, preserve_rng_state=False) for block in blocks]).sum()


def row_blocks(rows: int, columns: int) -> list[slice]:
    """Consecutive slices of the rows with at most `MOST_LOGITS` cells (but at least one row) each; one slice when all fit."""
    size = max(1, rows if rows * columns <= MOST_LOGITS else MOST_LOGITS // columns)
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


def within(found: Cells | None, block: slice) -> Cells | None:
    """The cells of some rows, counted from the block's first row; None when there are none."""
    if found is None:
        return None
    keep = (found[0] >= block.start) & (found[0] < block.stop)
    rows, columns = found[0][keep] - block.start, found[1][keep]
    return (rows, columns) if rows.numel() else None


def cells(mask: Tensor | None) -> Cells | None:
    """The True cells of a mask [n, N], dense or sparse (COO); None when it has none, so that callers take the plain path."""
    if mask is None:
        return None
    rows, columns = mask.coalesce().indices() if mask.is_sparse else mask.nonzero(as_tuple=True)
    return (rows, columns) if rows.numel() else None


def cells_equal(wanted: Tensor, ids: Tensor) -> Cells:
    """All (i, j) with `ids[j]` among `wanted[i]`: wanted int64 [n, m], ids int64 [N].

    A cell comes twice when `wanted[i]` holds a number twice. O((N + n m) log N + cells), never an n x N mask.
    """
    order = ids.argsort()
    ordered = ids[order]
    first = torch.searchsorted(ordered, wanted.contiguous())
    count = (torch.searchsorted(ordered, wanted.contiguous(), right=True) - first).flatten()
    total = int(count.sum())
    rows = torch.arange(wanted.shape[0], device=ids.device).repeat_interleave(wanted.shape[1])
    rows = rows.repeat_interleave(count, output_size=total)
    # the run of equal ids that belongs to each wanted number, laid out one after the other
    start = (first.flatten() - (count.cumsum(0) - count)).repeat_interleave(count, output_size=total)
    return rows, order[start + torch.arange(total, device=ids.device)]
