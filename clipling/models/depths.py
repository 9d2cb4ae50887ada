"""How far each parameter is from its tower's output, for layer-wise learning rates (Howard and Ruder 2018; BEiT, arXiv 2106.08254)."""

from __future__ import annotations

import re

from open_clip.timm_model import TimmModel
from torch import nn

from clipling.models import towers
from clipling.models.dual import Student

# What counts the layers of a tower, by the names of their tensors.
LAYERS = re.compile(r"(?:^|\.)(?:resblocks|encoder\.layer)\.(\d+)\.")
RESNET = re.compile(r"^layer(\d)\.(\d+)\.")


def distances(student: Student) -> dict[str, int]:
    """Layers between each parameter of the student (by name) and its tower's output; 0 for projections, final norms and scales.

    Every residual block, or block of a convolutional tower, is one layer; what comes before the first (stem, embeddings) is one more.
    """
    found = dict.fromkeys((name for name, _ in student.named_parameters()), 0)
    for side, tower in (("visual", student.model.visual), ("text", student.model.text)):
        layer = _timm_layers(tower) if isinstance(tower, TimmModel) else _numbered_layers(tower)
        projections = {
            id(p) for part in towers.projection(tower) for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
        }
        last = max(layer.values(), default=0)
        for name, parameter in tower.named_parameters():
            if id(parameter) not in projections and name in layer:
                found[f"model.{side}.{name}"] = last - layer[name]
    return found


def _numbered_layers(tower: nn.Module) -> dict[str, int]:
    """Layer of each parameter, 0 for what comes before the first block; what comes after the last block belongs to the last + 1."""
    names = [name for name, _ in tower.named_parameters()]
    numbers = {name: _number(name) for name in names}
    ordered = sorted({n for n in numbers.values() if n is not None})
    place = {n: i + 1 for i, n in enumerate(ordered)}
    return {name: _place(name, numbers[name], place) for name in names}


def _number(name: str) -> tuple[int, int] | None:
    if found := LAYERS.search(name):
        return 0, int(found[1])
    if found := RESNET.match(name):
        return int(found[1]), int(found[2])
    return None


# Final norms and pooling, which come after the blocks.
AFTER = ("ln_post", "ln_final", "proj", "text_projection", "attnpool", "attn_pool", "pooler", "head")


def _place(name: str, number: tuple[int, int] | None, place: dict[tuple[int, int], int]) -> int:
    if number is not None:
        return place[number]
    return len(place) + 1 if name.removeprefix("transformer.").split(".")[0] in AFTER else 0


def _timm_layers(tower: TimmModel) -> dict[str, int]:
    """timm's own grouping of a trunk, finest first to last."""
    from timm.models import group_parameters

    groups = group_parameters(tower.trunk, tower.trunk.group_matcher(coarse=False), reverse=True)
    found = {f"trunk.{name}": int(number) for name, number in groups.items()}
    last = max(found.values(), default=0)
    return {name: found.get(name, last) for name, _ in tower.named_parameters()}
