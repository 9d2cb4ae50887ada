"""A token table with only the rows that the training captions use.

CLIP's table has 49,408 rows: most of a very small text tower, most of AdamW's work, and never trained on a few thousand
captions. Kept are the ids of the training captions, all byte tokens, start and end; every other id reads one `unknown` row,
trained by replacing a few ids in training. `expanded` fills the unseen rows with it, so the saved model is a stock one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipling.models.tokens import BYTE_IDS, EOT, SOT

CLIPS_TOKENS = 49_408
DROPPED = 0.01  # share of ids read as unknown in training


def kept_ids(tokens: Tensor) -> Tensor:
    """The sorted ids that a table restricted to `tokens` (any shape) keeps, int64 [k]."""
    always = torch.cat([torch.arange(BYTE_IDS), torch.tensor([SOT, EOT])])
    return torch.unique(torch.cat([tokens.flatten().cpu().to(torch.int64), always]))


class RestrictedEmbedding(nn.Module):
    """Stands in for a text tower's `token_embedding`; it is given CLIP's own ids.

    full [v, w] is the table to restrict, kept int64 [k] the ids to keep. Rows: the kept ids in order with `unknown` before
    start, end last. With `frozen_rest` (a trained table) the other ids keep their trained rows, frozen, and there is no
    `unknown` row.
    """

    def __init__(self, full: Tensor, kept: Tensor, frozen_rest: bool = False) -> None:
        super().__init__()
        full, kept = full.detach(), kept.to(full.device)
        unknown = len(kept) - 2
        rows = torch.arange(len(kept), device=full.device)
        if not frozen_rest:
            rows[-2:] += 1
        row_of = torch.full((len(full),), unknown, dtype=torch.int64, device=full.device)
        row_of[kept] = rows
        is_kept = torch.zeros(len(full), dtype=torch.bool, device=full.device)
        is_kept[kept] = True
        table = full[kept]
        if not frozen_rest:
            # Any row of the untrained table will do: the first that is not kept has the right scale and is reproducible.
            extra = full[(~is_kept).nonzero()[:1, 0]] if not bool(is_kept.all()) else full.mean(0, keepdim=True)
            table = torch.cat([table[:-2], extra, table[-2:]])
        self.weight = nn.Parameter(table.clone())
        self.register_buffer("row_of", row_of)
        self.register_buffer("is_kept", is_kept)
        self.register_buffer("rest", full.clone() if frozen_rest else None)
        self.unknown = None if frozen_rest else unknown
        self.step = 0

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., w] of ids [n, L]."""
        rows = self.row_of[ids]
        if self.rest is not None:
            return torch.where(self.is_kept[ids].unsqueeze(-1), F.embedding(rows, self.weight), self.rest[ids])
        if self.training:
            rows = rows.masked_fill(self._dropped(ids), self.unknown)
        return F.embedding(rows, self.weight)

    def _dropped(self, ids: Tensor) -> Tensor:
        # A function of the step and of the text up to here: the same for any batching, cutting or number of processes,
        # and nothing to put into a checkpoint.
        draw = _mix(_mix(ids.to(torch.int64) + 1).cumsum(-1) + _mix(torch.tensor(self.step)).to(ids.device))
        uniform = (draw & ((1 << 24) - 1)).to(torch.float32) / (1 << 24)
        return (uniform < DROPPED) & (ids != 0) & (ids < SOT)

    def expanded(self) -> Tensor:
        """The full table [v, w] that gives every id what this one gives it in evaluation."""
        weight = self.weight.detach()
        if self.rest is None:
            return weight[self.row_of]
        return torch.where(self.is_kept.unsqueeze(-1), weight[self.row_of], self.rest)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 (which wraps): every bit of the result depends on every bit of x."""
    x = x + -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))
