"""What a student's config says of irregular towers (see irregular.py).

Beside `model_cfg`, which keeps the unpruned layout of the tower (from which the head width follows):
`"pruned": {"image": {"width": 100, "heads": [2, 0, 4], "mlp": [180, 256, 7]}, "text": ...}`. Towers that stay regular are not in it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from clipling.errors import UserError, near

TOWERS = {"image": "vision_cfg", "text": "text_cfg"}


@dataclass(frozen=True)
class TowerShape:
    """Width of the residual stream, dimensions of a head, and per layer the numbers of heads and of MLP units."""

    width: int
    head_width: int
    heads: tuple[int, ...]
    mlp: tuple[int, ...]

    @property
    def regular(self) -> bool:
        """Whether a stock open_clip config can say it."""
        same = len(set(self.heads)) == 1 and len(set(self.mlp)) == 1
        return same and self.heads[0] * self.head_width == self.width and self.mlp[0] > 0

    @property
    def prunable(self) -> int:
        """Parameters of the attention and MLP maps of all layers, biases included (TinyCLIP's P; no norms, no embeddings)."""
        inner = [heads * self.head_width for heads in self.heads]
        attention = sum(4 * self.width * i + 3 * i + self.width for i in inner)
        return attention + sum(2 * self.width * units + units + self.width for units in self.mlp)


def checked_pruned(pruned: Any, model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config's `pruned`, every mistake named. model_cfg: the checked one."""
    _keys("pruned", pruned, TOWERS)
    for name, shape in pruned.items():
        where, part = f"pruned.{name}", model_cfg[TOWERS[name]]
        _keys(where, shape, ("width", "heads", "mlp"), complete=True)
        layers = part.get("layers", 12)
        if part.get("timm_model_name") or part.get("hf_model_name") or not isinstance(layers, int):
            raise UserError(f"{where} of the student's config needs a transformer tower of open_clip's own in model_cfg.{TOWERS[name]}")
        if type(shape["width"]) is not int or shape["width"] < 1:
            raise UserError(f"{where}.width of the student's config must be a positive number, not {shape['width']!r}")
        for key in ("heads", "mlp"):
            counts = shape[key]
            if not isinstance(counts, list) or len(counts) != layers or any(type(c) is not int or c < 0 for c in counts):
                raise UserError(f"{where}.{key} of the student's config must be {layers} numbers (one a layer), not {counts!r}")
    return copy.deepcopy(dict(pruned))


def _keys(where: str, given: Any, allowed: Any, complete: bool = False) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"{where} of the student's config must be a mapping, not {given!r}")
    for key in given:
        if key not in allowed:
            raise UserError(f"unknown key {key!r} in {where} of the student's config. {near(str(key), allowed)}")
    if complete and len(given) < len(allowed):
        raise UserError(f"{where} of the student's config needs {', '.join(allowed)}")


def stand_in_cfg(model_cfg: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, Any]:
    """`model_cfg` with one head of the pruned width per layer: stock towers around the blocks that `put_blocks` replaces."""
    changed = copy.deepcopy(dict(model_cfg))
    if "image" in pruned:
        width = pruned["image"]["width"]
        changed["vision_cfg"].update(width=width, head_width=width, mlp_ratio=1.0)
    if "text" in pruned:
        changed["text_cfg"].update(width=pruned["text"]["width"], heads=1, mlp_ratio=1.0)
    return changed


def head_width(name: str, model_cfg: Mapping[str, Any]) -> int:
    """Dimensions of a head of the tower `image` or `text` that open_clip builds from `model_cfg`."""
    if name == "image":
        vision = CLIPVisionCfg(**model_cfg["vision_cfg"])
        return vision.width // (vision.width // vision.head_width)
    text = CLIPTextCfg(**model_cfg["text_cfg"])
    return text.width // text.heads


def with_shape(config: Mapping[str, Any], name: str, shape: TowerShape) -> dict[str, Any]:
    """A student's config with another shape of the tower `image` or `text`, of as many layers: in `model_cfg` where a stock
    config can say it, in `pruned` otherwise. Fixed sine-cosine positions, once pruned, are not those any more: they are learnable."""
    changed = copy.deepcopy(dict(config))
    part, pruned = changed["model_cfg"][TOWERS[name]], changed.pop("pruned", {})
    pruned.pop(name, None)
    if part.get("pos_embed_type", "learnable") != "learnable":
        part["pos_embed_type"] = "learnable"
    if shape.regular:
        heads = {"head_width": shape.head_width} if name == "image" else {"heads": shape.heads[0]}
        part.update(width=shape.width, mlp_ratio=mlp_ratio(shape.width, shape.mlp[0]), **heads)
    else:
        pruned[name] = {"width": shape.width, "heads": list(shape.heads), "mlp": list(shape.mlp)}
    return {**changed, "pruned": pruned} if pruned else changed


def mlp_ratio(width: int, units: int) -> float:
    """The `mlp_ratio` with which open_clip builds an MLP of `units`."""
    # open_clip truncates width * ratio, and a quotient may be rounded down.
    ratio = units / width
    return ratio if int(width * ratio) == units else (units + 0.5) / width
