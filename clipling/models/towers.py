"""The text tower without its padding, and what a tower's projection is.

A caption of 14 tokens in a context of 77 costs a stock text tower 77 tokens. Here texts are sorted by length, run in a few
groups that are cut to their longest, and put back; and since only one position of the last layer is pooled, that layer
computes nothing else. Both are exact up to rounding, and about ten times as quick on captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Encoders whose positions count from the left and whose attention masks the padding: a shorter row gives the same.
MASKED_ENCODERS = ("bert", "roberta", "xlm-roberta")
POOLED_POSITIONS = ("argmax", "eos", "first")


Forward = Callable[..., Tensor]


def text_features(tower: nn.Module, tokens: Tensor, forward: Forward | None = None) -> Tensor:
    """What `tower(tokens)` gives, up to rounding, without the cost of padding.

    tokens int64 [n, L], L <= the tower's context length; returns [n, d]. Towers whose result depends on the padding (not
    causal and without a padding mask, as MobileCLIP's) are not cut. forward: a compiled `_cut_forward`.
    """
    forward = forward or _cut_forward
    lengths = needed_lengths(tower, tokens)
    if lengths is None:
        return _first(tower(tokens))
    groups = _groups(len(tokens), tokens.device)
    if groups == 1:
        return forward(tower, tokens[:, : int(lengths.max())])
    order = torch.argsort(lengths, stable=True)
    longest = [int(part[-1]) for part in lengths[order].chunk(groups)]
    rows = tokens[order, : longest[-1]]
    embedded = _embedded(tower, rows)
    parts = [
        forward(tower, ids[:, :cut], None if x is None else x[:, :cut])
        for ids, x, cut in zip(rows.chunk(groups), [None] * groups if embedded is None else embedded.chunk(groups), longest)
    ]
    return torch.cat(parts)[torch.argsort(order)]


def _embedded(tower: nn.Module, tokens: Tensor) -> Tensor | None:
    """Token embeddings of all groups in one look-up: each would have a gradient of the whole table. None where the tower looks them up."""
    return tower.token_embedding(tokens) if isinstance(tower, TextTransformer) and tower.attn_mask is not None else None


def needed_lengths(tower: nn.Module, tokens: Tensor) -> Tensor | None:
    """How many leading tokens of each row decide its features, int64 [n]; None when all of them do."""
    if isinstance(tower, HFTextEncoder):
        exact = tower.config.model_type in MASKED_ENCODERS
        exact = exact and isinstance(tower.pooler, MeanPooler | ClsPooler | ClsLastHiddenStatePooler)
        return _last_not(tower.config.pad_token_id, tokens) if exact else None
    if not isinstance(tower, TextTransformer) or tower.cls_emb is not None or tower.pool_type not in POOLED_POSITIONS:
        return None
    if tower.attn_mask is not None:
        return _pooled_position(tower, tokens) + 1
    if tower.use_pad_mask:
        return torch.maximum(_last_not(tower.pad_id, tokens), _pooled_position(tower, tokens) + 1)
    return None


def _groups(rows: int, device: torch.device) -> int:
    # Small matrices are slow, and on an accelerator so are many launches.
    return max(1, min(8, rows // 32) if device.type == "cpu" else min(4, rows // 256))


def _last_not(pad: int, tokens: Tensor) -> Tensor:
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return ((tokens != pad) * places).amax(-1).clamp(min=1)


def _pooled_position(tower: TextTransformer, tokens: Tensor) -> Tensor:
    if tower.pool_type == "argmax":
        return tokens.argmax(-1)
    if tower.pool_type == "eos":
        return (tokens == tower.eos_id).int().argmax(-1)
    return torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _cut_forward(tower: nn.Module, tokens: Tensor, embedded: Tensor | None = None) -> Tensor:
    """The features of rows that are already cut to a common length; `embedded` [n, L, w] where their tokens were looked up already."""
    if not isinstance(tower, TextTransformer) or tower.attn_mask is None:
        return _first(tower(tokens))
    dtype = tower.transformer.get_cast_dtype()
    length = tokens.shape[1]
    x = (tower.token_embedding(tokens) if embedded is None else embedded).to(dtype) + tower.positional_embedding[:length].to(dtype)
    end = _pooled_position(tower, tokens)
    blocks = list(tower.transformer.resblocks)
    if all(map(_plain, blocks)):
        call = _made_again if tower.transformer.grad_checkpointing else _called
        for block in blocks[:-1]:
            x = call(_causal_block, block, x)
        pooled = call(_pooled_block, blocks[-1], x, end)
    else:
        # open_clip 3.3 does not cut its causal mask to the tokens at hand, so the tower's own forward would fail here.
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        pooled = x[torch.arange(len(x), device=x.device), end]
    pooled = tower.ln_final(pooled)
    if tower.text_projection is None:
        return pooled
    return tower.text_projection(pooled) if isinstance(tower.text_projection, nn.Linear) else pooled @ tower.text_projection


def _called(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return function(*arguments)


def _made_again(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The same, with what is inside made again in the backward pass (recompute.py)."""
    return checkpoint(function, *arguments, use_reentrant=False)


def _plain(block: nn.Module) -> bool:
    return type(block) is ResidualAttentionBlock and block.attn.in_proj_bias is not None and block.attn.dropout == 0


def _causal_block(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """One layer over all positions, x [n, L, w]."""
    n, length, width = x.shape
    q, k, v = _heads(F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias), block, 3)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).reshape(n, length, width)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _pooled_block(block: ResidualAttentionBlock, x: Tensor, end: Tensor) -> Tensor:
    """The layer's result [n, w] at the positions `end` alone: keys and values of all positions, everything else of one."""
    n, length, width = x.shape
    rows = torch.arange(n, device=x.device)
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    before = block.ln_1(x)
    (q,) = _heads(F.linear(before[rows, end].unsqueeze(1), weight[:width], bias[:width]), block, 1)
    k, v = _heads(F.linear(before, weight[width:], bias[width:]), block, 2)
    seen = torch.arange(length, device=x.device) <= end[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
    x = x[rows, end] + block.ls_1(block.attn.out_proj(mixed.reshape(n, width)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _heads(x: Tensor, block: ResidualAttentionBlock, parts: int) -> Tensor:
    """[n, L, parts * w] to [parts, n, heads, L, w / heads]."""
    n, length, _ = x.shape
    return x.view(n, length, parts, block.attn.num_heads, block.attn.head_dim).permute(2, 0, 3, 1, 4)


def token_rows(tower: nn.Module) -> nn.Parameter:
    """The table of token embeddings of a text tower."""
    if isinstance(tower, HFTextEncoder):
        return tower.transformer.get_input_embeddings().weight
    return tower.token_embedding.weight


def projection(tower: nn.Module) -> Iterator[nn.Module | nn.Parameter]:
    """The parts of an image or text tower that map its own features into the shared space."""
    if isinstance(tower, TimmModel):
        # Without a projection of open_clip's, timm's classifier is the projection.
        part = tower.head if len(tower.head) else tower.trunk.get_classifier()
        yield from part if isinstance(part, tuple) else (part,)
    elif isinstance(tower, VisionTransformer | HFTextEncoder):
        yield tower.proj
    elif isinstance(tower, TextTransformer) and tower.text_projection is not None:
        yield tower.text_projection
