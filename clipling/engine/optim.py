"""AdamW with the field's decay groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from clipling.engine.stages import Span
from clipling.models.depths import distances
from clipling.recipe import Optimiser


def parameter_groups(student: nn.Module, objective: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Tensors of fewer than two dimensions (biases, norms, scales) are not decayed, all others are.

    With `layer_decay` the student's tensors are grouped by their distance from the tower's output as well. A term's own groups
    (`parameter_groups()`) come last, with `lr_scale` 1 unless they say otherwise.
    """
    own: list[dict] = [dict(g) for term in objective.terms.values() for g in term.parameter_groups()]
    taken = {id(p) for g in own for p in g["params"]}
    far = distances(student) if layer_decay is not None and layer_decay < 1 else {}
    groups: dict[int, list[nn.Parameter]] = {0: []}
    for module, known in ((student, far), (objective, {})):
        for name, p in module.named_parameters():
            if p.requires_grad and id(p) not in taken:
                groups.setdefault(known.get(name, 0), []).append(p)
    made = []
    for distance, params in groups.items():
        scale = 1.0 if layer_decay is None else layer_decay**distance
        made.append({"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay, "lr_scale": scale})
        made.append({"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0, "lr_scale": scale})
    return [{"lr_scale": 1.0, **g} for g in [*made, *own] if g["params"]]


def build_optimiser(student: nn.Module, objective: nn.Module, settings: Optimiser) -> torch.optim.AdamW:
    """One AdamW; `fused` runs the update of all tensors in one kernel, on CPU too."""
    groups = parameter_groups(student, objective, settings.weight_decay, settings.layer_decay)
    fused = not any(g.get("maximize") for g in groups)
    return torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=fused)


def learning_rate(span: Span, step: int, steps_per_epoch: int) -> float:
    """Rate of the global step `step` within its stage: linear warm-up, then half a cosine to 0."""
    steps, at = span.end - span.begin, step - span.begin
    warmup = min(steps, round(span.stage.warmup * steps_per_epoch))
    if at < warmup:
        return span.stage.learning_rate * (at + 1) / warmup
    done = (at - warmup) / max(1, steps - warmup)
    return span.stage.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group; a group with a `fixed_lr` keeps that."""
    for group in optimiser.param_groups:
        group["lr"] = group.get("fixed_lr") or rate * group["lr_scale"]


def trained(optimiser: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return [p for g in optimiser.param_groups for p in g["params"]]
