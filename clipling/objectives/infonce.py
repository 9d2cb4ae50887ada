"""Cross-entropy over similarities, with columns that are further positives or that do not count.

Masks are cells: two index tensors (rows, columns), because false negatives are few: what is not masked costs nothing,
and a batch without any takes the plain path bit for bit. Similarities are computed in fp32 or better, also under
autocast: at a scale of 100 half precision would lose the differences that the loss is made of.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Cells = tuple[Tensor, Tensor]  # rows [c], columns [c]: no cell twice


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


def cells(mask: Tensor | None) -> Cells | None:
    """The True cells of a mask [n, N]; None when it has none, so that callers take the plain path."""
    if mask is None:
        return None
    rows, columns = mask.nonzero(as_tuple=True)
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
