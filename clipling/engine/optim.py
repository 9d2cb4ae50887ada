"""AdamW with the field's decay groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from clipling.engine.stages import Span
from clipling.recipe import Optimiser


def parameter_groups(student: nn.Module, objective: nn.Module, weight_decay: float) -> list[dict]:
    """Tensors of fewer than two dimensions (biases, norms, scales) are not decayed, all others are.

    A term's own groups (`parameter_groups()`) come last, with `lr_scale` 1 unless they say otherwise.
    """
    own: list[dict] = [dict(g) for term in objective.terms.values() for g in term.parameter_groups()]
    taken = {id(p) for g in own for p in g["params"]}
    rest = [p for m in (student, objective) for p in m.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        *own,
    ]
    return [{"lr_scale": 1.0, **g} for g in groups if g["params"]]


def build_optimiser(student: nn.Module, objective: nn.Module, settings: Optimiser) -> torch.optim.AdamW:
    """One AdamW; `fused` runs the update of all tensors in one kernel, on CPU too."""
    groups = parameter_groups(student, objective, settings.weight_decay)
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
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]


def trained(optimiser: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return [p for g in optimiser.param_groups for p in g["params"]]
