"""Configs of smaller students of a wished size, which can inherit from a source."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

from clipling.errors import UserError
from clipling.models.build import find_text_folder
from clipling.models.dual import Student
from clipling.models.lite import narrower
from clipling.surgery.inherit_bert import smaller_bert
from clipling.surgery.inherit_plan import layout_of
from clipling.surgery.inherit_transformers import HEADS, HIDDEN, MLP
from clipling.surgery.shapes import EMBED, counts, elements

NEAR = 0.1  # how far from the wish a target may be
OVER = 1.02  # a size up to 2 % short of the wish needs no more layers or heads
LEAST_MLP = 0.5  # of the source's units a channel: beyond this, layers and heads are cut instead
LEAST_DEPTH = 0.25  # of a text tower, before its width is cut


def target_of(
    source: Student, share: float | None = None, parameters: int | None = None, *, text_from: Student | None = None
) -> dict[str, Any]:
    """The config of a student that `inherit` can cut out of `source` (and `text_from`), of about the wished size.

    share (of the source's parameters) or parameters (how many) counts both towers without token rows. Both towers get the
    same share: as TinyCLIP found redundancy, a transformer's image tower loses width first (heads, and the channels with
    them), a text tower depth first, then width; what remains is made up by MLP units, at least half of them. Towers of timm
    become narrower members of their family (models/lite.py), ResNets narrower ResNets. UserError when no target is within
    10 % of the wish; `target_sizes` tells what was reached.
    """
    texts = text_from or source
    image, text = source.sizes()["image"], texts.sizes()["text"]
    scalars = sum(p.numel() for p in (source.logit_scale, source.logit_bias) if p is not None)
    total = image + text + scalars
    wish = _wish(total, share, parameters)
    config = _whole(source, texts)
    if wish == total:
        return config
    image_reached = _image_target(source, config, wish * image / total)
    reached = image_reached + scalars + _text_target(texts, config, wish - image_reached - scalars)
    _near(reached, wish, total, "student")
    return config


def text_target_of(source: Student, share: float) -> dict[str, Any]:
    """The config of a student with the image tower of `source` and `share` of the text tower's parameters without token rows."""
    total = source.sizes()["text"]
    wish = _wish(total, share, None)
    config = _whole(source, source)
    if wish < total:
        _near(_text_target(source, config, wish), wish, total, "text tower")
    return config


def _whole(source: Student, texts: Student) -> dict[str, Any]:
    config = copy.deepcopy(source.config)
    config["model_cfg"]["text_cfg"] = copy.deepcopy(texts.config["model_cfg"]["text_cfg"])
    if texts.text_folder is not None:  # the name may not lead there
        for key in ("hf_model_name", "hf_tokenizer_name"):
            if key in config["model_cfg"]["text_cfg"]:
                config["model_cfg"]["text_cfg"][key] = str(texts.text_folder)
    return config


def _wish(total: int, share: float | None, parameters: int | None) -> int:
    if (share is None) == (parameters is None):
        raise UserError("a target needs either share (of the source's parameters) or parameters (how many), and not both")
    wish = round(share * total) if share is not None else parameters
    if not 0 < wish <= total:
        raise UserError(f"the wish is {wish:,} parameters without token rows; the source has {total:,}, and a target must not be larger")
    return wish


def _near(reached: int, wish: int, total: int, what: str) -> None:
    if abs(reached - wish) > NEAR * wish:
        raise UserError(
            f"no {what} of about {wish:,} parameters without token rows ({wish / total:.0%}) can be cut out of this source: the "
            f"closest found has {reached:,} ({reached / total:.0%})"
        )


def target_sizes(config: dict[str, Any]) -> dict[str, int]:
    """`Student.sizes()` of a config, without making any weights."""
    with torch.device("meta"):
        return Student(config, find_text_folder(config)).sizes()


def _image_target(source: Student, config: dict[str, Any], wish: float) -> int:
    """Writes a smaller image tower into `config`; returns its parameters."""
    tower, cfg = source.model.visual, config["model_cfg"]["vision_cfg"]
    if isinstance(tower, VisionTransformer):
        dials = _Transformer(tower)
        layers, heads, mlp = dials.closest(wish, [(n, h) for n in range(dials.layers, 0, -1) for h in range(1, dials.heads + 1)])
        width = heads * dials.head_width
        cfg |= {"layers": layers, "width": width, "mlp_ratio": _ratio(mlp, width)}
        return dials.size(layers, heads, mlp)
    if isinstance(tower, ModifiedResNet):
        return _resnet_target(tower, cfg, wish)
    if isinstance(tower, TimmModel) and narrower(cfg["timm_model_name"]):
        return _timm_target(source, cfg, wish)
    raise _unknown("image", tower, "open_clip's ViT and ResNet, EfficientNet-Lite0, MobileNetV3 and MobileNetV4-conv-small")


def _text_target(source: Student, config: dict[str, Any], wish: float) -> int:
    """Writes a smaller text tower into `config`; returns its parameters without token rows."""
    tower, cfg = source.model.text, config["model_cfg"]["text_cfg"]
    hugging_face = isinstance(tower, HFTextEncoder)
    if not isinstance(tower, TextTransformer) and not (hugging_face and tower.config.model_type == "bert"):
        raise _unknown("text", tower, "open_clip's own and BERT")
    dials = _Transformer(tower)
    least = ceil(LEAST_DEPTH * dials.layers)
    layers, heads, mlp = dials.closest(wish, [(n, h) for h in range(dials.heads, 0, -1) for n in range(least, dials.layers + 1)])
    width = heads * dials.head_width
    if hugging_face:
        folder = str(smaller_bert(source, layers=layers, hidden=width, intermediate=mlp))
        cfg |= {"hf_model_name": folder, "hf_tokenizer_name": folder}
    else:
        cfg |= {"layers": layers, "width": width, "heads": heads, "mlp_ratio": _ratio(mlp, width)}
    return dials.size(layers, heads, mlp)


def _unknown(side: str, tower: nn.Module, known: str) -> UserError:
    return UserError(
        f"target_of knows no smaller {side} tower for this {type(tower).__name__}. It knows {known}; for others give inherit a "
        "config of your own"
    )


def _ratio(mlp: int, width: int) -> float:
    """The mlp_ratio from which open_clip's int(width * ratio) makes `mlp`."""
    ratio = mlp / width
    return ratio if int(width * ratio) == mlp else (mlp + 0.5) / width


@dataclass
class _Transformer:
    """The sizes that a transformer tower can be cut to: layers, heads (and the channels with them), MLP units."""

    tower: nn.Module

    def __post_init__(self) -> None:
        rows = ("token_embedding.weight", "embeddings.word_embeddings.weight")
        self.layout = layout_of(self.tower)
        self.shapes = {name: p.shape for name, p in self.tower.named_parameters() if not name.endswith(rows)}
        self.count = counts(self.layout, dict(self.tower.named_parameters()))
        self.stage = self.layout.stages[0]
        self.layers, self.heads = len(self.stage), self.count[self.stage[0] + HEADS]

    @cached_property
    def head_width(self) -> int:
        name = next(name for name in self.shapes if name.endswith(("out_proj.weight", "output.dense.weight")))
        return self.layout.axes[name][1].inner

    def full_mlp(self, heads: int) -> int:
        return round(self.count[self.stage[0] + MLP] * heads / self.heads)

    def size(self, layers: int, heads: int, mlp: int) -> int:
        """Parameters without token rows."""
        sizes = {HEADS: heads, MLP: mlp, HIDDEN: heads * self.head_width}
        units = lambda name, now: sizes.get(name.rsplit(".", 1)[-1], now)  # noqa: E731
        return elements(self.layout, self.shapes, self.count, tuple(self.stage[layers:]), units)

    def closest(self, wish: float, options: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
        """(layers, heads, MLP units): of the first option (layers, heads) that reaches the wish by its MLP units, or the closest."""
        best = None
        for layers, heads in options:
            if heads < self.heads and HIDDEN not in self.count:
                continue  # the channels are the shared space, which is not cut
            full = self.full_mlp(heads)
            fewest = max(1, ceil(LEAST_MLP * full))
            low, high = self.size(layers, heads, fewest), self.size(layers, heads, full)
            mlp = full
            if low <= wish < high:
                step = 8 if full >= 64 else 1
                units = (wish - low) / (high - low) * (full - fewest) + fewest
                mlp = min(full, max(fewest, step * round(units / step)))
            if low <= wish <= high * OVER:
                return layers, heads, mlp
            for found, units in ((low, fewest), (high, full)):
                if best is None or abs(found - wish) < best[0]:
                    best = (abs(found - wish), (layers, heads, units))
        return best[1]


def _resnet_target(tower: ModifiedResNet, cfg: dict[str, Any], wish: float) -> int:
    layout = layout_of(tower)
    shapes = {name: p.shape for name, p in tower.named_parameters()}
    count = counts(layout, dict(tower.named_parameters()))
    now = cfg["width"]
    # The stem has half the width and the heads are 32 widths / head_width: both must be whole.
    widths = [w for w in range(2, now + 1, 2) if w * 32 % cfg.get("head_width", 64) == 0]
    sizes = {w: elements(layout, shapes, count, (), lambda name, n, w=w: n if name == EMBED else n * w // now) for w in widths}
    cfg["width"] = min(widths, key=lambda w: abs(sizes[w] - wish))
    return sizes[cfg["width"]]


def _timm_target(source: Student, cfg: dict[str, Any], wish: float) -> int:
    names = narrower(cfg["timm_model_name"])
    vision = source.config["model_cfg"]["vision_cfg"]
    keys = {"pool": "timm_pool", "proj": "timm_proj", "proj_bias": "timm_proj_bias"}
    options = {ours: vision[theirs] for ours, theirs in keys.items() if theirs in vision}
    skips = layout_of(source.model.visual).skips

    @cache
    def tower(name: str) -> TimmModel:
        with torch.device("meta"):
            return TimmModel(name, source.embed_dim, vision["image_size"], **options)

    def size(name: str) -> int:
        return sum(p.numel() for p in tower(name).parameters())

    def fits(name: str) -> bool:
        # Where rounding makes two stages equally wide, a block adds its input that does not in the source.
        return all(skips[layer] for layer, adds in layout_of(tower(name)).skips.items() if adds)

    first = bisect_left(names, wish, key=size)
    below, above = (next(filter(fits, side), None) for side in (names[:first][::-1], names[first:]))
    cfg["timm_model_name"] = min(filter(None, (below, above)), key=lambda name: abs(size(name) - wish))
    return size(cfg["timm_model_name"])
