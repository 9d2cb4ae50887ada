"""Layouts of transformer towers: open_clip's VisionTransformer and TextTransformer, and BERT in open_clip's wrapper."""

from __future__ import annotations

from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import nn

from clipling.errors import UserError
from clipling.surgery.shapes import EMBED, FIXED, POSITIONS, Axis, Layout

HIDDEN = "hidden"  # the residual stream
HEADS, MLP = "heads", "mlp"  # after the prefix of their layer


def image_transformer(tower: VisionTransformer) -> Layout:
    """The layout of open_clip's ViT."""
    hidden = Axis(HIDDEN)
    axes = {
        "class_embedding": (hidden,),
        "positional_embedding": (FIXED, hidden),
        "conv1.weight": (hidden, FIXED, FIXED, FIXED),
        "proj": (hidden, Axis(EMBED)),
    }
    for norm in ("ln_pre", "ln_post"):
        axes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    stage = _blocks(axes, tower.transformer.resblocks, hidden)
    return Layout(axes, [stage], grid=("positional_embedding", tower.grid_size[0]))


def text_transformer(tower: TextTransformer) -> Layout:
    """The layout of open_clip's text tower. Without a projection its residual stream is the shared space."""
    hidden = Axis(EMBED if tower.text_projection is None else HIDDEN)
    axes = {
        # A class token has the last place, so that the first places of a longer table would not be its own.
        "positional_embedding": (Axis(POSITIONS) if tower.cls_emb is None else FIXED, hidden),
        "token_embedding.weight": (FIXED, hidden),
        "cls_emb": (hidden,),
        "ln_final.weight": (hidden,),
        "ln_final.bias": (hidden,),
        "text_projection": (hidden, Axis(EMBED)),
        "text_projection.weight": (Axis(EMBED), hidden),
        "text_projection.bias": (Axis(EMBED),),
    }
    return Layout(axes, [_blocks(axes, tower.transformer.resblocks, hidden)])


def _blocks(axes: dict[str, tuple[Axis, ...]], blocks: nn.ModuleList, hidden: Axis) -> list[str]:
    """Adds the rules of open_clip's attention blocks; returns their prefixes."""
    prefixes = []
    for i, block in enumerate(blocks):
        if type(block) is not ResidualAttentionBlock:
            raise UserError(f"inheritance does not know attention blocks of the type {type(block).__name__} (open_clip's block_type)")
        p = f"transformer.resblocks.{i}."
        width = block.attn.head_dim
        # The rows of in_proj are query, key and value one after the other, each head by head.
        stacked, heads, mlp = Axis(f"{p}{HEADS}", 3, width), Axis(f"{p}{HEADS}", 1, width), Axis(f"{p}{MLP}")
        axes |= {f"{p}{name}": (hidden,) for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "ls_1.gamma", "ls_2.gamma")}
        axes |= {
            f"{p}attn.in_proj_weight": (stacked, hidden),
            f"{p}attn.in_proj_bias": (stacked,),
            f"{p}attn.out_proj.weight": (hidden, heads),
            f"{p}attn.out_proj.bias": (hidden,),
            f"{p}mlp.c_fc.weight": (mlp, hidden),
            f"{p}mlp.c_fc.bias": (mlp,),
            f"{p}mlp.c_proj.weight": (hidden, mlp),
            f"{p}mlp.c_proj.bias": (hidden,),
        }
        prefixes.append(p)
    return prefixes


def bert(tower: HFTextEncoder) -> Layout:
    """The layout of a BERT text tower (MiniLM is one). Without a projection its residual stream is the shared space."""
    config = tower.config
    hidden = Axis(EMBED if isinstance(tower.proj, nn.Identity) else HIDDEN)
    t = "transformer."
    axes = {
        f"{t}embeddings.word_embeddings.weight": (FIXED, hidden),
        f"{t}embeddings.position_embeddings.weight": (Axis(POSITIONS), hidden),
        f"{t}embeddings.token_type_embeddings.weight": (FIXED, hidden),
        f"{t}pooler.dense.weight": (hidden, hidden),
        f"{t}pooler.dense.bias": (hidden,),
        "proj.weight": (Axis(EMBED), hidden),
        "proj.0.weight": (Axis("projection"), hidden),
        "proj.2.weight": (Axis(EMBED), Axis("projection")),
    }
    _norm(axes, f"{t}embeddings.LayerNorm", hidden)
    stage = [f"{t}encoder.layer.{i}." for i in range(config.num_hidden_layers)]
    for p in stage:
        heads, mlp = Axis(f"{p}{HEADS}", 1, config.hidden_size // config.num_attention_heads), Axis(f"{p}{MLP}")
        for name in ("query", "key", "value"):
            _linear(axes, f"{p}attention.self.{name}", heads, hidden)
        _linear(axes, f"{p}attention.output.dense", hidden, heads)
        _norm(axes, f"{p}attention.output.LayerNorm", hidden)
        _linear(axes, f"{p}intermediate.dense", mlp, hidden)
        _linear(axes, f"{p}output.dense", hidden, mlp)
        _norm(axes, f"{p}output.LayerNorm", hidden)
    return Layout(axes, [stage], kinds={"": (config.hidden_act, config.layer_norm_eps, config.pad_token_id)})


def _linear(axes: dict[str, tuple[Axis, ...]], prefix: str, rows: Axis, columns: Axis) -> None:
    axes |= {f"{prefix}.weight": (rows, columns), f"{prefix}.bias": (rows,)}


def _norm(axes: dict[str, tuple[Axis, ...]], prefix: str, units: Axis) -> None:
    axes |= {f"{prefix}.weight": (units,), f"{prefix}.bias": (units,)}
