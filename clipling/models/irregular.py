"""Transformer towers whose layers differ in their numbers of heads and MLP units, as pruning leaves them.

Such a tower is a stock open_clip tower of the pruned width whose blocks are replaced, with open_clip's names in its state dict.
A layer without heads (or without MLP units) degenerates to the bias it adds: it has no `attn.in_proj_*`, `attn.out_proj.weight`
and `ln_1` (or no `mlp.c_fc.*`, `mlp.c_proj.weight` and `ln_2`).

How a config says it is in irregular_config.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from clipling.errors import UserError
from clipling.models.irregular_config import TowerShape, head_width


def tower_shape(tower: nn.Module) -> TowerShape:
    """The shape of an image or text tower that masks and pruning work on; UserError for any other tower."""
    problem = _problem(tower)
    if problem:
        raise UserError(
            "automatic inheritance needs a ViT image tower and an open_clip transformer text tower; "
            f"this student has {problem}; use --method manual"
        )
    blocks = tower.transformer.resblocks
    heads, units = tuple(block_heads(block) for block in blocks), tuple(block_units(block) for block in blocks)
    dims = (b.head_width if isinstance(b, IrregularBlock) else b.attn.head_dim for b in blocks)
    return TowerShape(tower.transformer.width, next(dims), heads, units)


def _problem(tower: nn.Module) -> str | None:
    if isinstance(tower, TimmModel):
        return "an image tower of timm's"
    if isinstance(tower, HFTextEncoder):
        return "a Hugging Face text tower"
    if not isinstance(tower, VisionTransformer | TextTransformer):
        return f"a tower of the kind {type(tower).__name__}"
    kind = "an image tower" if isinstance(tower, VisionTransformer) else "a text tower"
    if not all(type(block) in (ResidualAttentionBlock, IrregularBlock) for block in tower.transformer.resblocks):
        return f"{kind} with blocks that normalise or scale more than the plain ones"
    if isinstance(tower, VisionTransformer):
        return f"{kind} with another pooling than 'tok' or 'avg'" if tower.attn_pool or tower.pool_type == "none" else None
    if tower.cls_emb is not None or tower.use_pad_mask or tower.pool_type == "none":
        return f"{kind} with a class token, a padding mask or no pooling"
    return f"{kind} without a projection" if tower.text_projection is None else None


def block_heads(block: nn.Module) -> int:
    return block.heads if isinstance(block, IrregularBlock) else block.attn.num_heads


def block_units(block: nn.Module) -> int:
    return block.units if isinstance(block, IrregularBlock) else block.mlp.c_fc.out_features


# Modules


def attention(
    attn: nn.Module, x: Tensor, at: Tensor | None = None, mask: Tensor | None = None, causal: bool = False, share: Tensor | None = None
) -> Tensor:
    """Self-attention with the parameters of `attn` (an `nn.MultiheadAttention` or an `Attention`), [n, L or q, w].

    x [n, L, w] gives keys and values, and queries where `at` [n, q, w] does not. mask: what scaled_dot_product_attention takes.
    share [heads]: multiplies the result of every head.
    """
    inner = attn.num_heads * attn.head_dim
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if at is None:
        parts = F.linear(x, weight, bias).chunk(3, -1)
    else:
        parts = (F.linear(at, weight[:inner], bias[:inner]), *F.linear(x, weight[inner:], bias[inner:]).chunk(2, -1))
    q, k, v = (part.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if share is not None:
        mixed = mixed * share[:, None, None]
    return attn.out_proj(mixed.transpose(1, 2).flatten(2))


class Attention(nn.Module):
    """`nn.MultiheadAttention` for any number of heads: heads * head_dim need not be the width. Same names and start values."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, head_dim
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * heads * head_dim, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * heads * head_dim))
        self.out_proj = nn.Linear(heads * head_dim, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return attention(self, x, mask=mask)


class Bias(nn.Module):
    """What a linear map without inputs adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand_as(x)


class IrregularBlock(nn.Module):
    """A `ResidualAttentionBlock` with any number of heads and MLP units, 0 included.

    stand_in: a stock block of the wanted width, from which norms, layer scales and the activation are taken.
    """

    def __init__(self, stand_in: ResidualAttentionBlock, heads: int, head_width: int, units: int) -> None:
        super().__init__()
        width = stand_in.attn.embed_dim
        self.heads, self.head_width, self.units = heads, head_width, units
        self.ln_1 = stand_in.ln_1 if heads else nn.Identity()
        self.attn = Attention(width, heads, head_width) if heads else nn.Sequential(OrderedDict(out_proj=Bias(width)))
        self.ls_1 = stand_in.ls_1
        self.ln_2 = stand_in.ln_2 if units else nn.Identity()
        maps = OrderedDict(c_proj=Bias(width))
        if units:
            maps = OrderedDict(c_fc=nn.Linear(width, units), gelu=stand_in.mlp.gelu, c_proj=nn.Linear(units, width))
        self.mlp = nn.Sequential(maps)
        self.ls_2 = stand_in.ls_2

    def get_weight_dtype(self) -> torch.dtype:
        return self.attn.out_proj.bias.dtype

    def forward(self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None) -> Tensor:
        """As the stock block (whose signature this is) on itself: q_x [n, L, w], attn_mask additive [L, L]."""
        if self.heads:
            mask = attn_mask.to(q_x.dtype) if attn_mask is not None else None
            x = q_x + self.ls_1(self.attn(self.ln_1(q_x), mask))
        else:
            x = q_x + self.ls_1(self.attn(q_x))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def put_blocks(model: CustomTextCLIP, model_cfg: Mapping[str, Any], pruned: Mapping[str, Any]) -> None:
    """Replaces the blocks of a model of `stand_in_cfg`. Start values are open_clip's, from torch's global generator."""
    for name, shape in pruned.items():
        tower = model.visual if name == "image" else model.text
        blocks = tower.transformer.resblocks
        if any(type(block) is not ResidualAttentionBlock for block in blocks):
            raise UserError(f"pruned.{name} of the student's config does not go with open_clip's custom blocks")
        width = head_width(name, model_cfg)
        for layer, (heads, units) in enumerate(zip(shape["heads"], shape["mlp"])):
            blocks[layer] = IrregularBlock(blocks[layer], heads, width, units)
            if name == "text":
                _text_start(blocks[layer], shape["width"], len(blocks))


def _text_start(block: IrregularBlock, width: int, layers: int) -> None:
    """The start values of open_clip's `TextTransformer.init_parameters`."""
    if block.heads:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    if block.units:
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
