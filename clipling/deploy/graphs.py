"""Both towers as modules that an exporter can trace: copies without what only training needs."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from clipling.models import masked, towers
from clipling.models.convolutions import SubsampledConv2d
from clipling.models.dual import Student
from clipling.models.vocabulary import RestrictedEmbedding


class ImageGraph(nn.Module):
    """Unit rows [n, d] of normalised pictures [n, 3, s, s]."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        tower = copy.deepcopy(student.model.visual).to("cpu", torch.float32).eval()
        tower = tower.to(memory_format=torch.contiguous_format)
        for module in tower.modules():
            if type(module) is SubsampledConv2d:
                module.__class__ = nn.Conv2d  # the same result; only its gradient needs care
        if isinstance(tower, TimmModel):
            # Branches of training (RepVGG, MobileOne, FastViT, RepViT) become one convolution each.
            tower.trunk = reparameterize_model(tower.trunk)
        self.tower = tower.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(towers._first(self.tower(images)), dim=-1)


class TextGraph(nn.Module):
    """Unit rows [n, d] of token ids [n, L]; L is free unless `fixed_length`."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        tower = copy.deepcopy(student.model.text).to("cpu", torch.float32).eval()
        rows = getattr(tower, "token_embedding", None)
        if isinstance(rows, nn.Embedding | RestrictedEmbedding):
            full = rows.expanded() if isinstance(rows, RestrictedEmbedding) else rows.weight.detach()
            tower.token_embedding = _embedding(full)
        self.tower = tower.requires_grad_(False)
        self.irregular = masked.is_irregular(tower)
        self.fixed_length = towers.needed_lengths(tower, torch.zeros(1, 1, dtype=torch.int64)) is None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.irregular:
            features = masked._text(self.tower, tokens, masked.NO_MASKS)
        elif self.fixed_length:
            features = towers._first(self.tower(tokens))
        else:
            features = towers._cut_forward(self.tower, tokens)
        return F.normalize(features, dim=-1)


class SharedRows(nn.Module):
    """A token table of which many ids read the same row, as a restricted vocabulary leaves it: each row is held once."""

    def __init__(self, rows: Tensor, row_of: Tensor) -> None:
        super().__init__()
        self.register_buffer("row_of", row_of.to(torch.int32))
        self.register_buffer("rows", rows)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(F.embedding(ids, self.row_of[:, None])[..., 0], self.rows)


def _embedding(full: Tensor) -> nn.Module:
    """A module that gives the rows of the table full [v, w], without what is there twice where that is a tenth or more."""
    rows, row_of = torch.unique(full, dim=0, return_inverse=True)
    if len(rows) < 0.9 * len(full):
        return SharedRows(rows, row_of)
    return nn.Embedding.from_pretrained(full)
