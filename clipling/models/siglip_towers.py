"""SigLIP's image tower in any size, under names that timm did not have.

open_clip hands a timm tower nothing but its name, and timm's SigLIP towers are of a few sizes, with the exact GELU where the
models of transformers have its tanh form. Here a name says all: `clipling_siglip_w96_d2_h4_m384_p16_i224_tanh` is 96 wide, has
2 layers of 4 heads and 384 MLP units, patches of 16 in pictures of 224 pixels, and the tanh form of GELU (`erf`: the exact one).
A ViT without a class token, pooled by attention (MAP, arXiv 2106.04560; SigLIP, arXiv 2303.15343). clipling registers a name
whenever it builds a model that has it; stock open_clip opens a saved model after
`from clipling.models.siglip_towers import register; register("clipling_siglip_...")`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import timm
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

EPS = 1e-6  # of all norms
ACTIVATIONS = {"tanh": partial(nn.GELU, approximate="tanh"), "erf": nn.GELU}
_NAME = re.compile(r"clipling_siglip_w(\d+)_d(\d+)_h(\d+)_m(\d+)_p(\d+)_i(\d+)_(tanh|erf)")

default_cfgs: dict[str, Any] = {}  # timm's registry looks for this name; it finds no weights to download


def tower_name(*, width: int, layers: int, heads: int, units: int, patch: int, size: int, activation: str) -> str:
    """The name of a tower; activation is one of `ACTIVATIONS`."""
    return f"clipling_siglip_w{width}_d{layers}_h{heads}_m{units}_p{patch}_i{size}_{activation}"


def is_ours(name: str | None) -> bool:
    """Whether `name` is one of these towers."""
    return name is not None and _NAME.fullmatch(name) is not None


def register(name: str) -> None:
    """Makes timm know the tower `name`; nothing happens for a name that is not of this kind, or that is known."""
    if not is_ours(name) or timm.is_model(name):
        return

    def entry(pretrained: bool = False, **keywords: Any) -> nn.Module:
        return _build(name, **keywords)

    entry.__name__ = entry.__qualname__ = name
    register_model(entry)


def _build(name: str, **keywords: Any) -> VisionTransformer:
    """keywords: what open_clip and `timm.create_model` pass on: global_pool, num_classes, drop rates."""
    *counts, activation = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    width, layers, heads, units, patch, size = map(int, counts)
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        keywords.pop(key, None)  # there are no weights to download
    keywords = {"global_pool": "map", "num_classes": 0, **{key: value for key, value in keywords.items() if value is not None}}
    # timm builds int(width * ratio) units, and a quotient may be rounded down.
    tower = VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=layers,
        num_heads=heads,
        mlp_ratio=(units + 0.5) / width,
        class_token=False,
        norm_layer=partial(nn.LayerNorm, eps=EPS),
        act_layer=ACTIVATIONS[activation],
        **keywords,
    )
    # What open_clip and our own initialisation ask a timm tower about.
    about = {"architecture": name, "input_size": (3, size, size), "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"}
    tower.pretrained_cfg = tower.default_cfg = about
    return tower
