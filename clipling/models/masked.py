"""The forward of both towers with masks on hidden units, heads and MLP units (TinyCLIP, arXiv 2309.12314; CoFi, arXiv 2204.00408).

Where a mask multiplies: the residual stream before its first norm, every head's result before `out_proj`, every MLP unit after
the activation, and what attention and MLP add to the residual stream. A norm is computed over the hidden units that are not 0,
as if the others did not exist, and ignores soft values; nor does the last projection see them. (In the reference, pruning
scales that projection although the masked forward does not: its pruned model is another function. Here `surgery.prune`
folds exactly these factors, so pruned and masked model are one function, for soft masks too.)

Towers that are already irregular are masked as they are: masks of heads and MLP units are as wide as the largest layer, and
entries beyond a layer's own are ignored (`alive_masks` says which exist). With no masks at all the same forward is the quick
one of an irregular text tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from clipling.errors import UserError, near
from clipling.models import towers
from clipling.models.irregular import IrregularBlock, attention, block_heads, block_units, tower_shape
from clipling.models.irregular_config import TowerShape

if TYPE_CHECKING:
    from clipling.models.dual import Student

GROUPS = ("hidden", "heads", "intermediate")


class TowerMasks:
    """The masks of one tower: hidden [C], heads [L, H], intermediate [L, F], each absent (all ones) or with values in [0, 1]."""

    def __init__(self, hidden: Tensor | None = None, heads: Tensor | None = None, intermediate: Tensor | None = None) -> None:
        self.hidden, self.heads, self.intermediate = hidden, heads, intermediate
        self._alive: Tensor | None = None
        if hidden is not None:
            alive = hidden.detach() != 0
            self._count = max(1, int(alive.sum()))
            self._alive = alive if self._count < len(alive) else None

    def residual(self, x: Tensor) -> Tensor:
        """x [..., C] times the hidden mask."""
        return x if self.hidden is None else x * self.hidden

    def norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        """The LayerNorm `norm` of x [..., C] over the living hidden units alone; 0 at the others."""
        alive = self._alive
        if alive is None or isinstance(norm, nn.Identity):
            return norm(x)
        # Units set to the mean of the others leave it as it is and add nothing to the variance, which is then only too small
        # by a known factor: eps gets it too, and the gain takes it back. So the fused kernel does the work.
        factor = self._count / len(alive)
        mean = torch.where(alive, x, 0).sum(-1, keepdim=True) / self._count
        gain, shift = norm.weight * alive * factor**0.5, norm.bias * alive
        return F.layer_norm(torch.where(alive, x, mean), (len(alive),), gain, shift, norm.eps * factor).to(x.dtype)


NO_MASKS = TowerMasks()


# What a student's masks are


def tower_shapes(student: Student) -> dict[str, TowerShape]:
    """The shapes of both towers, `image` and `text`; UserError when masks cannot work on one of them."""
    return {"image": tower_shape(student.model.visual), "text": tower_shape(student.model.text)}


def mask_shapes(student: Student) -> dict[str, int]:
    """Per tower: `layers` (L), `width` (C), `heads` (H), `mlp` (F) and `head_width`, as `image.layers`, ..., `text.head_width`.

    heads and mlp are those of the largest layer, at least 1. UserError for towers that cannot be masked.
    """
    dims = {}
    for name, shape in tower_shapes(student).items():
        sizes = {"layers": len(shape.heads), "width": shape.width, "heads": max(1, *shape.heads), "mlp": max(1, *shape.mlp)}
        dims |= {f"{name}.{key}": value for key, value in {**sizes, "head_width": shape.head_width}.items()}
    return dims


def alive_masks(student: Student) -> dict[str, Tensor]:
    """1 for every unit that exists and 0 elsewhere, fp32, with the names and shapes of the masks; all ones for regular towers."""
    dims, alive = mask_shapes(student), {}
    for name, shape in tower_shapes(student).items():
        alive[f"{name}.hidden"] = torch.ones(shape.width)
        for group, key, counts in (("heads", "heads", shape.heads), ("intermediate", "mlp", shape.mlp)):
            places = torch.arange(dims[f"{name}.{key}"])
            alive[f"{name}.{group}"] = (places < torch.tensor(counts)[:, None]).float()
    return alive


def tower_masks(student: Student, masks: Mapping[str, Tensor]) -> dict[str, TowerMasks]:
    """Masks by name (`image.hidden`, ...) gathered by tower, in the tower's dtype and device; UserError for unknown names and
    wrong shapes. Towers without any mask are left out, and may be of any kind."""
    found: dict[str, dict[str, Tensor]] = {}
    allowed = [f"{name}.{group}" for name in ("image", "text") for group in GROUPS]
    for key, mask in masks.items():
        if key not in allowed:
            raise UserError(f"there is no mask {key!r}. {near(str(key), allowed)}")
        name, group = key.split(".")
        tower = student.model.visual if name == "image" else student.model.text
        shape = tower_shape(tower)
        columns = {"hidden": shape.width, "heads": max(1, *shape.heads), "intermediate": max(1, *shape.mlp)}[group]
        expected = [columns] if group == "hidden" else [len(shape.heads), columns]
        if list(mask.shape) != expected:
            raise UserError(f"the mask {key!r} is {list(mask.shape)}, but this student needs {expected}")
        found.setdefault(name, {})[group] = mask.to(tower.positional_embedding)
    return {name: TowerMasks(**groups) for name, groups in found.items()}


# Forward


def image_features(tower: VisionTransformer, images: Tensor, masks: TowerMasks = NO_MASKS) -> Tensor:
    """What `tower(images)` gives under the masks: features [n, d] of normalised images [n, 3, s, s]."""
    x = tower.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1) + tower.positional_embedding.to(x.dtype)
    x = masks.norm(tower.ln_pre, tower.patch_dropout(masks.residual(x)))
    for layer, block in enumerate(tower.transformer.resblocks):
        x = _layer(block, x, masks, layer)
    if tower.final_ln_after_pool:
        pooled = masks.norm(tower.ln_post, tower._global_pool(x)[0])
    else:
        pooled = tower._global_pool(masks.norm(tower.ln_post, x))[0]
    return pooled @ tower.proj


def text_features(tower: TextTransformer, tokens: Tensor, masks: TowerMasks = NO_MASKS) -> Tensor:
    """What `tower(tokens)` gives under the masks: features [n, d] of token ids [n, L]; padding costs nothing, as in towers.py."""
    lengths = towers.needed_lengths(tower, tokens)
    if lengths is None:
        return _text(tower, tokens, masks)
    groups = towers._groups(len(tokens), tokens.device)
    order = torch.argsort(lengths, stable=True)
    longest = [int(part[-1]) for part in lengths[order].chunk(groups)]
    rows = tokens[order, : longest[-1]]
    embedded = tower.token_embedding(rows)  # once: every look-up has a gradient of the whole table
    parts = [_text(tower, ids[:, :cut], masks, x[:, :cut]) for ids, x, cut in zip(rows.chunk(groups), embedded.chunk(groups), longest)]
    return torch.cat(parts)[torch.argsort(order)]


def _text(tower: TextTransformer, tokens: Tensor, masks: TowerMasks, embedded: Tensor | None = None) -> Tensor:
    dtype, (n, length) = tower.transformer.get_cast_dtype(), tokens.shape
    x = (tower.token_embedding(tokens) if embedded is None else embedded).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = masks.residual(x)
    causal, blocks = tower.attn_mask is not None, tower.transformer.resblocks
    if tower.pool_type == "last":
        end = torch.full((n,), length - 1, device=tokens.device)
    else:
        end = towers._pooled_position(tower, tokens)
    for layer, block in enumerate(blocks):
        x = _layer(block, x, masks, layer, causal, end if layer == len(blocks) - 1 else None)
    pooled = masks.norm(tower.ln_final, x[:, 0])
    return tower.text_projection(pooled) if isinstance(tower.text_projection, nn.Linear) else pooled @ tower.text_projection


def _layer(block: nn.Module, x: Tensor, masks: TowerMasks, layer: int, causal: bool = False, end: Tensor | None = None) -> Tensor:
    """One layer over x [n, L, C]; with `end` int64 [n] only its result at these positions, [n, 1, C]."""
    before, heads, units = masks.norm(block.ln_1, x), block_heads(block), block_units(block)
    at = mask = None
    if end is not None:
        rows = torch.arange(len(x), device=x.device)
        at, x = before[rows, end].unsqueeze(1), x[rows, end].unsqueeze(1)
        if causal:
            mask = (torch.arange(before.shape[1], device=x.device) <= end[:, None])[:, None, None]
    if heads:
        share = None if masks.heads is None else masks.heads[layer, :heads]
        added = attention(block.attn, before, at, mask, causal and mask is None, share)
    else:
        added = block.attn.out_proj.bias.expand_as(x)
    x = x + masks.residual(block.ls_1(added))
    if units:
        inside = block.mlp.gelu(block.mlp.c_fc(masks.norm(block.ln_2, x)))
        if masks.intermediate is not None:
            inside = inside * masks.intermediate[layer, :units]
        added = block.mlp.c_proj(inside)
    else:
        added = block.mlp.c_proj.bias.expand_as(x)
    return x + masks.residual(block.ls_2(added))


def is_irregular(tower: nn.Module) -> bool:
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    return any(isinstance(block, IrregularBlock) for block in blocks)
